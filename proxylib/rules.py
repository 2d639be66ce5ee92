"""L7 rules: a parser's rule class says which keys a policy may use and what they mean.

An author declares the keys as class attributes::

    class Rule(L7Rule):
        cmd = Exact("READ", "WRITE", "HALT", "RESET")
        file = Regex()

Validation, and the compiled matcher that the data path calls, follow from that.
All given keys of one rule must match; a request is allowed if any rule matches;
a rule without keys matches everything; an empty value counts as not given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Self

from proxylib import regex
from proxylib.errors import RuleError
from proxylib.message import Properties, Value

Matcher = Callable[[Properties], bool]
"""Whether a message is covered by the rules it was compiled from."""

Test = Callable[[bytes], bool]


class Field:
    """One key of a rule class, and the message property that it tests.

    of: the property, if its name is not the key's.  doc: what it means, in a few words, for
    ``proxylib parser describe``.
    """

    kind: ClassVar[str]
    """How it compares, in a word: exact, prefix, ..."""

    def __init__(self, *, of: str = "", doc: str = "") -> None:
        self.of = of
        self.doc = doc
        self.key = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.key = name
        self.of = self.of or name

    def check(self, value: str) -> None:
        """Raise RuleError unless `value` is legal for this key."""

    def test(self, values: Sequence[str], deny: bool) -> Test:
        """A test that is true for a property that any of `values` covers."""
        raise NotImplementedError


class Exact(Field):
    """The property equals the value. With `choices`, other values are refused."""

    kind = "exact"

    def __init__(self, *choices: str, of: str = "", doc: str = "") -> None:
        super().__init__(of=of, doc=doc)
        self.choices = choices

    def check(self, value: str) -> None:
        if self.choices and value not in self.choices:
            raise RuleError(self.key, value, f"must be one of {', '.join(self.choices)}")

    def test(self, values: Sequence[str], deny: bool) -> Test:
        return frozenset(value.encode() for value in values).__contains__


class Prefix(Field):
    """The property starts with the value."""

    kind = "prefix"

    def test(self, values: Sequence[str], deny: bool) -> Test:
        return affix_test([value.encode() for value in values], suffix=False)


class Suffix(Field):
    """The property ends with the value."""

    kind = "suffix"

    def test(self, values: Sequence[str], deny: bool) -> Test:
        return affix_test([value.encode() for value in values], suffix=True)


class Contains(Field):
    """The value stands somewhere in the property."""

    kind = "contains"

    def test(self, values: Sequence[str], deny: bool) -> Test:
        needles = [value.encode() for value in values]
        return lambda text: any(needle in text for needle in needles)


class Regex(Field):
    """The RE2 value is found in the property (it searches: anchor it with ^ and $)."""

    kind = "regex"

    def check(self, value: str) -> None:
        regex.check(self.key, value)

    def test(self, values: Sequence[str], deny: bool) -> Test:
        return (regex.exhaustive_searcher if deny else regex.searcher)(values)


def affix_test(affixes: Iterable[bytes], *, suffix: bool) -> Test:
    """A test that is true for text that starts (or ends) with any of `affixes`.

    One set look-up per distinct length, so that the cost does not grow with
    their number.
    """
    by_length: dict[int, set[bytes]] = defaultdict(set)
    for affix in affixes:
        by_length[len(affix)].add(affix)
    if 0 in by_length:
        return lambda text: True
    groups = sorted(by_length.items())
    if all(len(group) == 1 for _, group in groups) and len(groups) <= 4:
        few = tuple(affix for _, group in groups for affix in group)
        return (lambda text: text.endswith(few)) if suffix else (lambda text: text.startswith(few))
    if suffix:
        return lambda text: any(text[-n:] in group for n, group in groups)
    return lambda text: any(text[:n] in group for n, group in groups)


class L7Rule:
    """One L7 rule of a policy. Subclass it in a parser as ``Rule``, with a `Field` per key.

    All keys that a rule gives must match; a request is allowed if any rule matches; a rule
    without keys matches everything; an empty value counts as not given.
    """

    fields: ClassVar[Mapping[str, Field]] = {}
    """The keys that it knows, those of its base classes included."""
    __slots__ = ("pairs",)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, item in vars(cls).items():
            if isinstance(item, type) and issubclass(item, Field):
                raise TypeError(f"{cls.__qualname__}.{name}: write {item.__name__}()")
        own = {name: item for name, item in vars(cls).items() if isinstance(item, Field)}
        cls.fields = {**cls.fields, **own}

    def __init__(self, pairs: Mapping[str, str]) -> None:
        """Validate the key/value `pairs` of a policy document.

        Raises RuleError for an unknown key or a value that the key refuses.
        """
        self.pairs = {key: value for key, value in pairs.items() if value}
        for key, value in pairs.items():
            field = self.fields.get(key)
            if field is None:
                known = ", ".join(self.fields) or "none"
                raise RuleError(key, value, f"unknown key (known: {known})")
            if value:
                field.check(value)
        self.check()

    def check(self) -> None:
        """Hook: raise RuleError for keys that do not go together; they are in `self.pairs`."""

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({self.pairs!r})"

    @classmethod
    def compile(cls, rules: Sequence[Self], *, deny: bool = False) -> Matcher:
        """The matcher for "any of `rules`".

        deny: the rules refuse what they match, so a test must not miss.
        """
        alternatives = [
            [(cls.fields[key], value) for key, value in rule.pairs.items()] for rule in rules
        ]
        return _any_of(alternatives, deny)


def always(message: Properties) -> bool:
    """The matcher of a rule without keys."""
    return True


def never(message: Properties) -> bool:
    """The matcher of no rule at all."""
    return False


Alternative = list[tuple[Field, str]]


def _any_of(alternatives: list[Alternative], deny: bool) -> Matcher:
    """Alternatives split by their first exact key, so that a look-up stays one dict access.

    Those without that key are asked beside the bucket, not copied into each.
    """
    if not alternatives:
        return never
    if any(not alternative for alternative in alternatives):
        return always
    exact = next((f for a in alternatives for f, _ in a if isinstance(f, Exact)), None)
    if exact is None:
        return _residual(alternatives, deny)
    buckets: dict[str, list[Alternative]] = defaultdict(list)
    rest: list[Alternative] = []
    for alternative in alternatives:
        value = next((v for f, v in alternative if f is exact), None)
        if value is None:
            rest.append(alternative)
        else:
            buckets[value].append([(f, v) for f, v in alternative if f is not exact])
    table: dict[Value, Matcher] = {}
    for value, bucket in buckets.items():
        table[value] = table[value.encode()] = _any_of(bucket, deny)
    others = _any_of(rest, deny)
    key = exact.of
    several: list[Matcher] = []

    def match(message: Properties) -> bool:
        value = message[key]
        if type(value) is not bytes:
            if not isinstance(value, (str, int)):
                # Several values may be in several buckets. It is rare, so made when it comes.
                if not several:
                    several.append(_residual(alternatives, deny))
                return several[0](message)
            value = str(value)
        matcher = table.get(value)
        if matcher is None:
            return others(message)
        return matcher(message) or others(message)

    return match


def _residual(alternatives: list[Alternative], deny: bool) -> Matcher:
    """Alternatives without exact keys: one combined test per kind and property."""
    singles: dict[Field, list[str]] = defaultdict(list)
    matchers: list[Matcher] = []
    for alternative in alternatives:
        if len(alternative) == 1:
            field, value = alternative[0]
            singles[field].append(value)
        else:
            matchers.append(_all_of(alternative, deny))
    matchers += [_on(field.of, field.test(values, deny), deny) for field, values in singles.items()]
    if len(matchers) == 1:
        return matchers[0]
    return lambda message: any(matcher(message) for matcher in matchers)


def _all_of(alternative: Alternative, deny: bool) -> Matcher:
    matchers = [_on(field.of, field.test([value], deny), deny) for field, value in alternative]
    return lambda message: all(matcher(message) for matcher in matchers)


def _on(name: str, test: Test, deny: bool) -> Matcher:
    # Of several values, an allowing rule must cover each, a denying one only one.
    of_several = any if deny else all

    def match(message: Properties) -> bool:
        value = message[name]
        if type(value) is bytes:
            return test(value)
        if isinstance(value, (str, int)):
            return test(str(value).encode())
        # Anything else must not miss a rule in silence.
        if not isinstance(value, (tuple, list)) or not all(type(v) is bytes for v in value):
            raise TypeError(
                f"property {name!r} is {value!r}: not str, bytes, int, or several bytes"
            )
        return of_several(map(test, value))

    return match
