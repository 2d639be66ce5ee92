"""Dialogues as tests: what is expected is what happens, or a diff says where not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylib.testing.dialogue import check_dialogue, escape, unescape

RULES = [{"cmd": "READ", "file": "^plans/"}]

SCRIPT = r"""
    # The droid may read plans.
    client: READ plans/x\r\nREAD secret\r\n
      server gets: READ plans/x\r\n
      client gets: ERROR\r\n
      log: Request cmd=READ file=plans/x
      log: Denied cmd=READ file=secret

    server: OK\r\n
      client gets: OK\r\n
    client: HA
    client ends
"""


def test_what_happens_is_what_is_expected() -> None:
    check_dialogue("r2d2", SCRIPT, RULES)


def test_a_difference_is_a_diff() -> None:
    with pytest.raises(AssertionError) as raised:
        check_dialogue("r2d2", SCRIPT.replace("Denied cmd=READ", "Denied cmd=WRITE"), RULES)
    text = str(raised.value)
    assert "-  log: Denied cmd=WRITE file=secret" in text
    assert "+  log: Denied cmd=READ file=secret" in text


def test_more_than_expected_is_a_difference() -> None:
    with pytest.raises(AssertionError, match=r"\+  log: Request"):
        check_dialogue("r2d2", "client: HALT\\r\\n\n  server gets: HALT\\r\\n")


def test_a_closed_connection() -> None:
    check_dialogue(
        "r2d2",
        f"""
        client: {"x" * 5_000}
          log: Denied status=Parser error: line longer than 4096 bytes
          closed
        server: x
          the connection is closed already
        """,
        chunking=False,
    )


@pytest.mark.parametrize("line", ["hello", "clients: x", "client end", r"client: \x0"])
def test_a_script_that_cannot_be_read(line: str) -> None:
    with pytest.raises(ValueError):
        check_dialogue("r2d2", line)


@given(st.binary())
def test_bytes_survive_a_script(data: bytes) -> None:
    assert unescape(escape(data).strip()) == data
