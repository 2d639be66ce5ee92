"""Regexes: RE2's syntax, searching, many at once, and bytes that are not UTF-8."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylib import RuleError, regex


@pytest.mark.parametrize("pattern", ["(", "[", "*", "a{2000}", r"\1", "(?<!x)y", "(?P<a>x", "\\"])
def test_check_refuses(pattern: str) -> None:
    with pytest.raises(RuleError, match=r"^file: .*not a valid RE2 regex"):
        regex.check("file", pattern)


@pytest.mark.parametrize(
    "pattern", ["", "a", "^a$", r"\pL+", "(?i)a", "[[:alpha:]]", "é", "(?s).*"]
)
def test_check_accepts(pattern: str) -> None:
    regex.check("file", pattern)


@pytest.mark.parametrize("make", [regex.searcher, regex.exhaustive_searcher])
@pytest.mark.parametrize(
    ("patterns", "found", "missed"),
    [
        (["b"], [b"abc"], [b"ac", b""]),
        (["^b"], [b"b", b"bc"], [b"ab"]),
        (["a", "b"], [b"a", b"b", b"xb"], [b"c"]),
        (["a", "a"], [b"a"], [b"c"]),
        ([""], [b"", b"x", b"\xff"], []),
        (["(?i)abc"], [b"xABCx"], [b"AB"]),
        (["^.$"], [b"a", "é".encode(), b"\xff", b"\x00"], [b"ab", b"", b"\xff\xff"]),
        (["�"], [b"\xff", "�".encode()], [b"a"]),
        (["^a\x00b$"], [b"a\x00b"], [b"a"]),
        (["é"], ["né".encode()], [b"n\xe9"]),
    ],
)
def test_search(make: object, patterns: list[str], found: list[bytes], missed: list[bytes]) -> None:
    test = make(patterns)  # type: ignore[operator]
    assert [test(text) for text in found] == [True] * len(found)
    assert [test(text) for text in missed] == [False] * len(missed)


@given(st.lists(st.sampled_from(["a", "^b", "c$", "[ab]c", "a.b"]), min_size=1), st.binary())
def test_both_searchers_agree(patterns: list[str], text: bytes) -> None:
    assert regex.searcher(patterns)(text) == regex.exhaustive_searcher(patterns)(text)


def test_hostile_pattern_is_linear() -> None:
    test = regex.searcher(["(a*)*b", "(a|a)*c"])
    assert not test(b"a" * 200_000)


def test_a_program_is_bounded_and_what_it_costs_is_paid() -> None:
    budget = regex.Budget(instructions=50_000)
    with regex.spending(budget):
        regex.check("k", "^small$")
        assert 49_900 < budget.instructions < 50_000
        with pytest.raises(RuleError, match=r"^k: .*pattern too large"):
            regex.check("k", r"\pL{1,300}")
        regex.check("k", "^one more$")
        with pytest.raises(RuleError, match="pattern too large"):
            regex.check("k", r"\pL{1,300}")
        with pytest.raises(RuleError, match="too large together"):
            regex.check("k", "^small$")
    regex.check("k", "^small$")
    with pytest.raises(RuleError, match="longer than 65536"):
        regex.check("k", "a" * 65537)
