"""Many conditions at once say what each says by itself."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylib.http_match import SET_SIZE, Condition, compile_conditions, literal


@pytest.mark.parametrize(
    ("condition", "holds", "fails"),
    [
        (Condition("a", "exact", "1"), [b"1"], [b"11", b"", None]),
        (Condition("a", "exact", "Ab", ignore_case=True), [b"aB", b"Ab"], [b"a", None]),
        (Condition("a", "exact", "1", invert=True), [b"2", b""], [b"1", None]),
        (Condition("a", "exact", "", missing_is_empty=True), [b"", None], [b"1"]),
        (
            Condition("a", "exact", "1", invert=True, missing_is_empty=True),
            [b"2", b"", None],
            [b"1"],
        ),
        (Condition("a", "prefix", "ab"), [b"ab", b"abc"], [b"xab", None]),
        (Condition("a", "suffix", "ab"), [b"ab", b"xab"], [b"abc", None]),
        (Condition("a", "contains", "ab"), [b"xabx"], [b"xa", None]),
        (Condition("a", "contains", "AB", ignore_case=True), [b"xabx"], [b"xa", None]),
        (Condition("a", "regex", "[0-9]+"), [b"42"], [b"x42", b"42x", b"", b"4\xff", None]),
        (Condition("a", "regex", "[0-9]+", invert=True), [b"x", b""], [b"42", None]),
        (Condition("a", "regex", "/x$"), [b"/x"], [b"/xx", b"/x$"]),
        (Condition("a", "regex", "a|b"), [b"a", b"b"], [b"ab"]),
        (Condition("a", "range", range=(-1, 10)), [b"-1", b"9", b"+5"], [b"10", b"x", b"1.5", b""]),
        (Condition("a", "present"), [b"", b"x"], [None]),
        (Condition("a", "present", invert=True), [None], [b"", b"x"]),
    ],
)
@pytest.mark.parametrize("deny", [False, True])
def test_conditions(
    condition: Condition, holds: list[bytes | None], fails: list[bytes | None], deny: bool
) -> None:
    met = compile_conditions([[condition]], deny=deny)
    for value in holds + fails:
        expected = value in holds
        assert condition.holds(value) == expected
        assert bool(met(lambda name, v=value: v)) == expected, value  # type: ignore[misc]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("/path1$", "/path1"),
        ("^GET$", "GET"),
        (r"/gmem\.UserManager/GetName", "/gmem.UserManager/GetName"),
        ("/gmem.UserManager/GetName", None),
        (r"a\$", "a$"),
        (r"\d", None),
        ("", ""),
        ("a*", None),
        ("a$b", None),
        (r"a\\", "a\\"),
    ],
)
def test_literals(pattern: str, text: str | None) -> None:
    assert literal(pattern) == text


_CONDITIONS = st.builds(
    Condition,
    st.sampled_from([":path", "a"]),
    st.sampled_from(["exact", "regex", "prefix", "present"]),
    st.sampled_from(["x", "xy", "x.", "x+", ".y"]),
    invert=st.booleans(),
    missing_is_empty=st.booleans(),
)


@given(
    st.lists(st.lists(_CONDITIONS, max_size=3), min_size=1, max_size=5),
    st.sampled_from([b"x", b"xy", b"y", b""]),
    st.sampled_from([None, b"x", b"xx", b"zy"]),
    st.booleans(),
)
def test_together_as_each_by_itself(
    rules: list[list[Condition]], path: bytes, header: bytes | None, deny: bool
) -> None:
    values = {":path": path, "a": header}
    judge = compile_conditions(rules, deny=deny)
    met = judge(lambda name: values[name])
    left, of_path = judge.on_paths({**values, ":path": b"another"}.__getitem__)
    assert met == (left if of_path is None else left & of_path(path))
    for index, rule in enumerate(rules):
        assert bool(met >> index & 1) == all(c.holds(values[c.name]) for c in rule)


def test_many_rules() -> None:
    rules = [[Condition(":path", "regex", f"/{i}/[a-z]+")] for i in range(5 * SET_SIZE + 3)]
    met = compile_conditions(rules)
    assert met(lambda name: b"/321/abc") == 1 << 321
    assert met(lambda name: b"/999/abc") == 0
    assert re.fullmatch("/321/[a-z]+", "/321/abc")
