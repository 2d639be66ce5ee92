"""r2d2 as a parser: the property that cuts do not matter, and its rules.

Its dialogues at both levels are in tests/native/test_dialogues.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsers.r2d2 import R2d2
from proxylib import RuleError
from proxylib.testing import Host, check_chunking
from proxylib.testing.strategies import cut_at

RULES = [{"cmd": "READ", "file": "^/public/"}, {"cmd": "HALT"}]

lines = st.lists(
    st.sampled_from(
        [
            b"READ /public/plan\r\n",
            b"READ /secret\r\n",
            b"READ\r\n",
            b"READ  /public/plan\r\n",
            b"WRITE /public/plan\r\n",
            b"HALT\r\n",
            b"RESET\r\n",
            b"\r\n",
            b"HALT\n",
            b"\xff\0\r",
        ]
    ),
    max_size=8,
).map(b"".join)


@given(lines, lines, st.lists(st.integers(1, 100), unique=True))
def test_cuts_do_not_matter(client: bytes, server: bytes, cuts: list[int]) -> None:
    at = sorted(cuts)
    dialogue = [(False, client), (True, server), (False, client)]
    check_chunking("r2d2", dialogue, RULES, also=[lambda data: cut_at(data, at)])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"cmd": "JUMP"}, "cmd: 'JUMP': must be one of READ, WRITE, HALT, RESET"),
        ({"cmd": "HALT", "file": "x"}, "HALT has no file"),
        ({"file": "("}, "not a valid RE2 regex"),
        ({"droid": "r2"}, "unknown key"),
    ],
)
def test_refused_rules(pairs: dict[str, str], message: str) -> None:
    with pytest.raises(RuleError) as error:
        R2d2.Rule(pairs)
    assert message in str(error.value)


def test_a_line_without_end_closes() -> None:
    host = Host("r2d2", RULES)
    host.client(b"READ /public/" + b"x" * 5000)
    assert host.closed
    assert "longer than 4096 bytes" in str(host.log[-1].fields["status"])
