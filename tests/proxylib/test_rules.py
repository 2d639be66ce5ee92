"""Rules: what a rule class refuses, and what its compiled matcher lets through."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylib import (
    Contains,
    Exact,
    Field,
    L7Rule,
    Message,
    Prefix,
    Regex,
    RuleError,
    Suffix,
    affix_test,
)

Pairs = dict[str, str]


class Rule(L7Rule):
    cmd = Exact("GET", "PUT")
    name = Exact()
    path = Prefix()
    tail = Suffix(of="path")
    body = Contains()
    file = Regex()


def matcher(*rules: Pairs, deny: bool = False):  # type: ignore[no-untyped-def]
    return Rule.compile([Rule(pairs) for pairs in rules], deny=deny)


def message(**values: bytes | str | int | list[bytes]) -> Message:
    return Message(**{"cmd": b"", "name": b"", "path": b"", "body": b"", "file": b"", **values})


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ({"nope": "x"}, r"^nope: 'x': unknown key \(known: cmd, name, path, tail, body, file\)$"),
        ({"nope": ""}, r"^nope: unknown key"),
        ({"cmd": "get"}, r"^cmd: 'get': must be one of GET, PUT$"),
        ({"file": "("}, r"^file: '\(': not a valid RE2 regex: "),
        ({"file": r"(a)\1"}, r"not a valid RE2 regex"),
        ({"file": "(?=x)"}, r"not a valid RE2 regex"),
    ],
)
def test_refused(pairs: Pairs, reason: str) -> None:
    with pytest.raises(RuleError, match=reason) as caught:
        Rule(pairs)
    assert caught.value.key == next(iter(pairs))
    assert caught.value.value == next(iter(pairs.values()))


def test_a_parser_without_rules_accepts_only_empty_ones() -> None:
    assert L7Rule({}).pairs == {}
    with pytest.raises(RuleError, match=r"known: none"):
        L7Rule({"cmd": "x"})


def test_fields_are_inherited() -> None:
    class More(Rule):
        extra = Exact()

    assert list(More.fields) == [*Rule.fields, "extra"]
    assert list(Rule.fields) == ["cmd", "name", "path", "tail", "body", "file"]


def test_check_sees_all_keys() -> None:
    class Picky(Rule):
        def check(self) -> None:
            if "file" in self.pairs and "cmd" not in self.pairs:
                raise RuleError("file", self.pairs["file"], "needs a cmd")

    Picky({"cmd": "GET", "file": "x"})
    Picky({"file": ""})
    with pytest.raises(RuleError, match="needs a cmd"):
        Picky({"file": "x"})


@pytest.mark.parametrize(
    ("rules", "allowed", "denied"),
    [
        pytest.param([], [], [message()], id="no rule matches nothing"),
        pytest.param([{}], [message(), message(cmd=b"PUT")], [], id="no keys match all"),
        pytest.param([{"cmd": ""}], [message(cmd=b"PUT")], [], id="empty value is not given"),
        pytest.param(
            [{"cmd": "GET"}], [message(cmd=b"GET"), message(cmd="GET")],
            [message(cmd=b"get"), message(cmd=b"GET "), message()], id="exact",
        ),
        pytest.param(
            [{"path": "/a"}], [message(path=b"/a"), message(path=b"/abc")],
            [message(path=b"x/a"), message(path=b"/")], id="prefix",
        ),
        pytest.param(
            [{"tail": ".py"}], [message(path=b"a.py")], [message(path=b"a.pyc")], id="suffix, of"
        ),
        pytest.param(
            [{"body": "ell"}], [message(body=b"hello")], [message(body=b"help")], id="contains"
        ),
        pytest.param(
            [{"file": "b+"}], [message(file=b"abbc")], [message(file=b"ac")], id="regex searches"
        ),
        pytest.param(
            [{"file": "^a$"}], [message(file=b"a")], [message(file=b"ab"), message(file=b"a\n")],
            id="regex anchored",
        ),
        pytest.param(
            [{"cmd": "GET", "path": "/a", "file": "x"}],
            [message(cmd=b"GET", path=b"/a1", file=b"x")],
            [
                message(cmd=b"PUT", path=b"/a1", file=b"x"),
                message(cmd=b"GET", path=b"/b", file=b"x"),
                message(cmd=b"GET", path=b"/a", file=b"y"),
            ],
            id="all keys of a rule",
        ),
        pytest.param(
            [{"cmd": "GET", "path": "/a"}, {"cmd": "PUT"}, {"path": "/free"}],
            [
                message(cmd=b"GET", path=b"/a"), message(cmd=b"PUT", path=b"/z"),
                message(cmd=b"GET", path=b"/free"), message(path=b"/free"),
            ],
            [message(cmd=b"GET", path=b"/z"), message(path=b"/a")],
            id="any rule",
        ),
        pytest.param(
            [{"name": "a", "cmd": "GET"}, {"cmd": "PUT", "name": "b"}],
            [message(name=b"a", cmd=b"GET"), message(name=b"b", cmd=b"PUT")],
            [message(name=b"a", cmd=b"PUT"), message(name=b"b", cmd=b"GET")],
            id="two exact keys",
        ),
        pytest.param(
            [{"name": "7"}], [message(name=7), message(name=b"7"), message(name="7")],
            [message(name=77)], id="numbers by their digits",
        ),
        pytest.param(
            [{"name": "é"}, {"body": "é"}],
            [message(name="é".encode()), message(body="né".encode())], [message(name=b"\xe9")],
            id="UTF-8",
        ),
        pytest.param(
            [{"name": "a"}], [], [message(name=b"\xff"), message(name=b"a\x00")], id="odd bytes"
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("deny", [False, True], ids=["allow", "deny"])
def test_matching(
    rules: list[Pairs], allowed: list[Message], denied: list[Message], deny: bool
) -> None:
    match = matcher(*rules, deny=deny)
    assert [match(each) for each in allowed] == [True] * len(allowed)
    assert [match(each) for each in denied] == [False] * len(denied)


@pytest.mark.parametrize(
    ("rules", "values", "allowed", "denied"),
    [
        ([{"name": "a"}, {"name": "b"}], [b"a", b"b"], True, True),
        ([{"name": "a"}, {"name": "b"}], [b"a", b"c"], False, True),
        ([{"name": "a"}, {"name": "b"}], [b"c", b"d"], False, False),
        ([{"name": "a", "cmd": "GET"}], [b"a", b"b"], False, True),
        ([{"name": "a", "cmd": "PUT"}], [b"a", b"a"], False, False),
        ([{"name": "a"}], [], True, False),
    ],
)
def test_several_values(
    rules: list[Pairs], values: list[bytes], allowed: bool, denied: bool
) -> None:
    """Allowed if each is covered; denied if any is."""
    request = message(cmd=b"GET", name=values)
    assert matcher(*rules)(request) is allowed
    assert matcher(*rules, deny=True)(request) is denied


@pytest.mark.parametrize("key", ["path", "body", "file"])
def test_several_values_under_any_kind_of_key(key: str) -> None:
    one, both = message(**{key: [b"a", b"x"]}), message(**{key: [b"a", b"ab"]})
    assert (matcher({key: "a"})(one), matcher({key: "a"})(both)) == (False, True)
    assert matcher({key: "a"}, deny=True)(one)


WORDS = st.sampled_from(["", "a", "b", "ab", "ba", "aa"])
RULES = st.fixed_dictionaries({}, optional={"name": WORDS, "path": WORDS, "body": WORDS})


@given(st.lists(RULES, max_size=6), st.tuples(WORDS, WORDS, WORDS))
def test_compiled_rules_say_what_each_rule_says(
    rules: list[Pairs], values: tuple[str, str, str]
) -> None:
    name, path, body = values
    expected = any(
        rule.get("name") in (None, "", name)
        and path.startswith(rule.get("path", ""))
        and rule.get("body", "") in body
        for rule in rules
    )
    given_ = message(name=name.encode(), path=path.encode(), body=body.encode())
    assert matcher(*rules)(given_) is expected


@given(st.lists(st.binary(max_size=4), max_size=12), st.binary(max_size=6))
def test_affixes(affixes: list[bytes], text: bytes) -> None:
    assert affix_test(affixes, suffix=False)(text) == any(map(text.startswith, affixes))
    assert affix_test(affixes, suffix=True)(text) == any(map(text.endswith, affixes))


@pytest.mark.parametrize("value", [["bad"], (7,), bytearray(b"bad"), {"a": 1}, None, 1.5])
@pytest.mark.parametrize("deny", [True, False])
@pytest.mark.parametrize("kind", [Exact, Prefix, Contains, Regex])
def test_a_value_of_a_wrong_type_never_slips_by(
    kind: type[Field], deny: bool, value: object
) -> None:
    class Rule(L7Rule):
        tag = kind()

    matcher = Rule.compile([Rule({"tag": "bad"})], deny=deny)
    with pytest.raises(TypeError, match="property 'tag'"):
        matcher({"tag": value})  # type: ignore[dict-item]


def test_rules_without_the_exact_key_are_not_copied_to_every_value_of_it() -> None:
    compiled: list[int] = []

    class Counting(Prefix):
        def test(self, values: Sequence[str], deny: bool) -> Callable[[bytes], bool]:
            compiled.append(len(values))
            return super().test(values, deny)

    class Counted(L7Rule):
        name = Exact()
        path = Counting()

    rules = [{"name": str(n), "path": "/a"} for n in range(100)]
    rules += [{"path": f"/{n}"} for n in range(100)]
    match = Counted.compile([Counted(pairs) for pairs in rules])
    assert sum(compiled) == 200
    assert match({"name": b"7", "path": b"/a/b"})
    assert match({"name": b"7", "path": b"/99x"})
    assert match({"name": b"none", "path": b"/42"})
    assert not match({"name": b"none", "path": b"/a"})
    assert match({"name": (b"7",), "path": b"/a"}), "several values are asked one by one"
