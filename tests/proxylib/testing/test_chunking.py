"""The chunking check: it runs dialogues, and finds a parser that depends on chunks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from proxylib import NOP, PASS, Op, Parser, registry
from proxylib.parser import ClassFactory
from proxylib.testing import byte_by_byte, check_chunking, play

DIALOGUE = [(False, b"HALT\r\nRESET\r\n"), (True, b"OK\r\n"), (False, b"HALT\r\n")]


def test_play() -> None:
    outcome = play("r2d2", DIALOGUE, [{"cmd": "HALT"}])
    assert outcome.to_server == b"HALT\r\nHALT\r\n"
    assert outcome.to_client == b"ERROR\r\nOK\r\n"
    assert outcome.verdicts == (
        (False, "PASS", 6), (False, "DROP", 7), (True, "PASS", 4), (False, "PASS", 6),
    )  # fmt: skip
    assert [record.entry_type.name for record in outcome.log] == ["Request", "Denied", "Request"]
    assert not outcome.closed


def test_invariant_parser() -> None:
    outcome = check_chunking("r2d2", DIALOGUE, [{"cmd": "HALT"}], deny=[{"cmd": "RESET"}])
    assert outcome == play("r2d2", DIALOGUE, [{"cmd": "HALT"}], cut=byte_by_byte)


class Greedy(Parser):
    """Passes what begins with a request, whatever stands behind it in the chunk."""

    def on_data(self, reply: bool, end_stream: bool, data: Sequence[bytes]) -> tuple[Op, int]:
        whole = b"".join(data)
        if not whole:
            return NOP, 0
        return (PASS if whole.startswith(b"ok") else Op.DROP), len(whole)


def test_finds_a_parser_that_depends_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._factories, "greedy", ClassFactory(Greedy))
    with pytest.raises(AssertionError, match="cut by"):
        check_chunking("greedy", [(False, b"okay")])
