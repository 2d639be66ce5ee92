"""Which of many HTTP rules a request meets, at a cost that hardly grows with their number.

A rule is a list of conditions (Envoy's HeaderMatcher), all of which must hold.  For
each header that any rule names there is one table from its value to the rules that
this value satisfies, as the bits of an integer; the rules that a request meets are
the bits that all tables agree on.  Values are looked up as texts, then in RE2 sets.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from proxylib import regex

Kind = Literal["exact", "prefix", "suffix", "contains", "regex", "range", "present"]

Find = Callable[[str], bytes | None]
"""The value of a header by its lower-case name, several joined by commas; None if missing."""

Table = Callable[[bytes | None], int]
"""From a header's value to the rules that it leaves possible."""

PSEUDO_HEADERS = {
    ":method": "method",
    ":path": "path",
    ":authority": "host",
    ":scheme": "scheme",
}
"""The property of a request that a pseudo header stands for."""

SET_SIZE = 64
"""Most regexes in one RE2 set: its automaton has a bounded memory, and says "no match"
when it is used up."""

_MAX_REMEMBERED = 1024
_MAX_REMEMBERED_TEXT = 256


@dataclass(frozen=True, slots=True)
class Condition:
    """One HeaderMatcher: what the header `name` must be.

    name: lower case; ``:method``, ``:path``, ``:authority`` and ``:scheme`` are the
    request line's. present: the header is there. range: a decimal integer, start
    included, end not. regex: the whole value. invert: the contrary; a missing header
    then still does not hold, but for kind "present". missing_is_empty: a missing header counts
    as an empty one.
    """

    name: str
    kind: Kind
    value: str = ""
    range: tuple[int, int] = (0, 0)
    ignore_case: bool = False
    invert: bool = False
    missing_is_empty: bool = False

    @property
    def plain(self) -> bool:
        """Whether its answer comes from a table of texts and sets."""
        plain = self.kind in ("exact", "regex") and not self.ignore_case
        return plain and not self.invert and not self.missing_is_empty

    def holds(self, value: bytes | None) -> bool:
        """Whether the condition holds for a header's value."""
        if value is None and self.missing_is_empty:
            value = b""
        if self.kind == "present":
            return (value is not None) != self.invert
        if value is None:
            return False
        return self._test(value) != self.invert

    def _test(self, value: bytes) -> bool:
        wanted = self.value.encode()
        if self.ignore_case:
            value, wanted = value.lower(), wanted.lower()
        match self.kind:
            case "exact":
                return value == wanted
            case "prefix":
                return value.startswith(wanted)
            case "suffix":
                return value.endswith(wanted)
            case "contains":
                return wanted in value
            case "range":
                start, end = self.range
                number = _INTEGER.fullmatch(value)
                return number is not None and start <= int(number[0]) < end
        return regex.whole(self.value)(value)


_INTEGER = re.compile(rb"[+-]?[0-9]{1,19}")


def compile_conditions(rules: Sequence[Sequence[Condition]], *, deny: bool = False) -> Rules:
    """The function that tells which of `rules` a request meets: bit i for rule i.

    deny: a miss would let something through, so no bounded automaton decides.
    """
    everything = (1 << len(rules)) - 1
    named: dict[str, dict[Condition, int]] = defaultdict(dict)
    for index, rule in enumerate(rules):
        for condition in rule:
            named[condition.name].setdefault(condition, 0)
            named[condition.name][condition] |= 1 << index
    # The request line first: it tells most rules apart.
    names = sorted(named, key=lambda name: (not name.startswith(":"), name))
    return Rules(everything, [(name, _table(named[name], everything, deny)) for name in names])


class Rules:
    """Tells the rules that a request meets, one bit each."""

    __slots__ = ("_everything", "_tables")

    def __init__(self, everything: int, tables: Sequence[tuple[str, Table]]) -> None:
        self._everything = everything
        self._tables = tables

    def __call__(self, find: Find) -> int:
        left = self._everything
        for name, table in self._tables:
            left &= table(find(name))
            if not left:
                return 0
        return left

    def on_paths(self, find: Find) -> tuple[int, Table | None]:
        """For requests that differ from this one in their path alone: the rules that all
        else leaves possible, and the table for the path, if any rule names it."""
        left = self._everything
        of_path: Table | None = None
        for name, table in self._tables:
            if name == ":path":
                of_path = table
            else:
                left &= table(find(name))
        return left, of_path


def _table(conditions: Mapping[Condition, int], everything: int, deny: bool) -> Table:
    texts: dict[bytes, list[int]] = defaultdict(list)
    patterns: list[tuple[str, int]] = []
    others: list[tuple[Condition, int]] = []
    for position, condition in enumerate(conditions):
        text = condition.value if condition.kind == "exact" else literal(condition.value)
        if not condition.plain:
            others.append((condition, position))
        elif text is not None:
            texts[text.encode()].append(position)
        elif deny:
            others.append((condition, position))
        else:
            patterns.append((condition.value, position))
    sets = [
        ([position for _, position in part], regex.whole_set([pattern for pattern, _ in part]))
        for part in (patterns[i : i + SET_SIZE] for i in range(0, len(patterns), SET_SIZE))
    ]
    bits = list(conditions.values())
    # The rules with a condition here, and whether none has two.
    named, apart = 0, True
    for rules in bits:
        apart &= not named & rules
        named |= rules
    unnamed = everything & ~named
    recent: dict[bytes | None, int] = {}

    def work_out(value: bytes | None) -> int:
        held = [position for condition, position in others if condition.holds(value)]
        if value is not None:
            held += texts.get(value, ())
            for positions, found in sets:
                held += [positions[index] for index in found(value)]
        # A rule is out if any of its conditions on this header does not hold.
        if apart:
            left = unnamed
            for position in held:
                left |= bits[position]
            return left
        left = everything
        for position, rules in enumerate(bits):
            if position not in held:
                left &= ~rules
        return left

    def table(value: bytes | None) -> int:
        left = recent.get(value)
        if left is None:
            left = work_out(value)
            if value is None or len(value) <= _MAX_REMEMBERED_TEXT:
                if len(recent) >= _MAX_REMEMBERED:
                    recent.clear()
                recent[value] = left
        return left

    return table


_LITERAL = re.compile(r"\^?((?:[A-Za-z0-9_/ ,:@=~%&!\"'#<>;-]|\\[^A-Za-z0-9\x80-\U0010ffff])*)\$?")


def literal(pattern: str) -> str | None:
    """The only text that the regex `pattern` matches as a whole; None if it is not that simple."""
    found = _LITERAL.fullmatch(pattern)
    return re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL) if found else None
