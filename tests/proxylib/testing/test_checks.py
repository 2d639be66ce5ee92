"""The checks that every parser must pass find what they are for."""

from __future__ import annotations

import pytest

from proxylib import MORE, PASS, BatchParser, Parser, parser
from proxylib.registry import parser_names
from proxylib.testing import check_parser
from proxylib.testing.checks import hostile_dialogues

SAMPLES = [b"READ x\r\nWRITE y\r\n", b"HALT\r\n"]


@pytest.mark.parametrize("name", [name for name in parser_names() if not name.startswith("test.")])
def test_our_own_parsers_pass(name: str) -> None:
    check_parser(name, SAMPLES, dialogues=60)


def test_a_parser_that_panics_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxylib.registry._factories", {})

    @parser("panics")
    class Panics(Parser):
        def on_data(self, reply, end_stream, data):
            text = b"".join(data)
            if b"\xff" in text:
                raise ZeroDivisionError
            return (PASS, len(text)) if text else (MORE, 1)

    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        check_parser("panics", SAMPLES)


def test_a_parser_to_which_cuts_matter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxylib.registry._factories", {})

    @parser("cuts")
    class Cuts(BatchParser):
        """Takes what came at once for a message."""

        def on_batch(self, reply, end_stream, data, ops):
            self.connection.log(0, {"length": len(data)})
            ops += (PASS, len(data), MORE, 1) if data else (MORE, 1)

    with pytest.raises(AssertionError, match="with the dialogue"):
        check_parser("cuts", SAMPLES)


def test_the_dialogues_are_the_same_each_time() -> None:
    assert list(hostile_dialogues(SAMPLES, 50, 1)) == list(hostile_dialogues(SAMPLES, 50, 1))
    assert list(hostile_dialogues(SAMPLES, 50, 1)) != list(hostile_dialogues(SAMPLES, 50, 2))
