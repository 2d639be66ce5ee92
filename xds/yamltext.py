"""YAML text to plain values and the places they stand at, in one pass over its events.

The parser is libyaml (PyYAML's own where that is missing: the same, slower).  Only
its events are used.  What makes values of them is here, with a budget over the
whole text: no tags but those of plain data, no merge keys, no keys that are not
text, no key twice, and aliases that count as often as they are used.  Plain
scalars mean what YAML 1.2's core schema says, but for numbers in other bases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple, NoReturn, TypeAlias

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

Path: TypeAlias = tuple[str | int, ...]
"""Keys and indices from a document's root to a value in it."""

Node: TypeAlias = "int | tuple[int, dict[str, Node] | list[Node]]"
"""Where a value stands (see `mark`), and where what is in it stands: under its keys
or indices. A value under a key stands where its key does."""

MAX_DEPTH = 48
"""Deepest nesting. A policy needs twelve."""

MAX_NODES = 1_000_000
"""Most values in one file, each use of an alias counted anew (alias bombs)."""

MAX_KEYS = 10_000
"""Most keys of one mapping. A policy needs twenty, its labels some more."""

MAX_PROBLEMS = 100
"""Most problems reported for one file; a hostile one could make millions."""

_CORE = "tag:yaml.org,2002:"
_NOT_TEXT = frozenset("~nNtTfF.+-0123456789")
"""First characters of plain scalars that may be something else than text."""

_DECIMAL = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,99}|[0-9]{1,99}(\.[0-9]{0,99})?)([eE][-+]?[0-9]{1,3})?")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_REFUSED_CHARACTER = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
"""What YAML 1.2 (section 5.1) has no place for, half surrogate pairs included."""


class Trouble(NamedTuple):
    """Something that is refused. Line and column count from 0."""

    line: int
    column: int
    path: Path
    message: str


@dataclass(frozen=True, slots=True)
class _Anchored:
    """A value that aliases may name: how many values it is, and how deep it goes."""

    value: Any
    node: Node
    size: int
    height: int


class _Stopped(Exception):
    """Nothing more can be read; the reason is among the troubles."""


def line_of(mark: int) -> int:
    """The line, from 0, of a node's mark."""
    return mark >> 32


def column_of(mark: int) -> int:
    """The column, from 0, of a node's mark."""
    return mark & 0xFFFFFFFF


def mark_of(node: Node) -> int:
    """The mark of a node."""
    return node if isinstance(node, int) else node[0]


def read(text: str) -> tuple[list[tuple[Any, Node]], list[Trouble]]:
    """The values and nodes of every document in `text`, and what is wrong with it."""
    bad = _REFUSED_CHARACTER.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start())
        column = bad.start() - text.rfind("\n", 0, bad.start()) - 1
        return [], [Trouble(line, column, (), "a character that YAML does not allow")]
    reader = _Reader(text)
    try:
        found = list(reader.documents())
    except _Stopped:
        found = []
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line, mark.column) if mark is not None else (0, 0)
        what = (error.problem or error.context or "syntax error").strip().split("\n")[0]
        hint = " (indent with spaces)" if _is_tab(text, *place) else ""
        reader.troubles.append(Trouble(*place, (), f"not valid YAML: {what}{hint}"))
    except yaml.YAMLError as error:
        what = str(error).strip().split("\n")[0]
        reader.troubles.append(Trouble(0, 0, (), f"not valid YAML: {what}"))
    return (found if not reader.troubles else []), reader.troubles


def _is_tab(text: str, line: int, column: int) -> bool:
    lines = text.split("\n", line + 1)
    return line < len(lines) and lines[line][column : column + 1] == "\t"


class _Reader:
    """Events to values. Methods take the event that starts a value and return the value."""

    def __init__(self, text: str) -> None:
        self.troubles: list[Trouble] = []
        self._next = _events(text)
        self._budget = MAX_NODES
        self._depth = 0
        self._deepest = 0
        self._path: list[str | int] = []
        self._anchors: dict[str, _Anchored | None] = {}

    def documents(self) -> Iterator[tuple[Any, Node]]:
        while True:
            event = self._next()
            if isinstance(event, StreamEndEvent):
                return
            if isinstance(event, DocumentStartEvent):
                self._anchors.clear()
                yield self._value(self._next())

    def _value(self, event: Any) -> tuple[Any, Node]:
        value: Any
        node: Node
        start = event.start_mark
        mark = start.line << 32 | start.column
        self._spend(event, 1)
        kind = type(event)
        if kind is AliasEvent:
            return self._alias(event, mark)
        anchor = event.anchor
        if anchor is None:
            if kind is ScalarEvent:
                return self._scalar(event), mark
            return self._collection(event, mark)
        # While it is None, the value is not complete: an alias inside itself.
        self._anchors[anchor] = None
        before, outer, self._deepest = self._budget, self._deepest, self._depth
        if kind is ScalarEvent:
            value, node = self._scalar(event), mark
        else:
            value, node = self._collection(event, mark)
        height = self._deepest - self._depth
        self._deepest = max(outer, self._deepest)
        self._anchors[anchor] = _Anchored(value, node, before - self._budget + 1, height)
        return value, node

    def _alias(self, event: Any, mark: int) -> tuple[Any, Node]:
        if event.anchor not in self._anchors:
            self._stop(event, f"not valid YAML: found undefined alias {event.anchor!r}")
        found = self._anchors[event.anchor]
        if found is None or self._depth + found.height > MAX_DEPTH:
            self._stop(event, f"nested deeper than {MAX_DEPTH} (an alias inside itself?)")
        # The alias itself was counted already.
        self._spend(event, found.size - 1)
        self._deepest = max(self._deepest, self._depth + found.height)
        node = found.node
        return found.value, mark if isinstance(node, int) else (mark, node[1])

    def _collection(self, event: Any, mark: int) -> tuple[Any, Node]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._stop(event, f"nested deeper than {MAX_DEPTH}")
        self._deepest = max(self._deepest, self._depth)
        is_mapping = type(event) is MappingStartEvent
        if event.tag not in (None, "!", _CORE + ("map" if is_mapping else "seq")):
            self._report(event, f"YAML tag {event.tag!r} is not used in policies")
        found = self._mapping(mark) if is_mapping else self._sequence(mark)
        self._depth -= 1
        return found

    def _sequence(self, mark: int) -> tuple[Any, Node]:
        values: list[Any] = []
        nodes: list[Node] = []
        path = self._path
        path.append(0)
        event = self._next()
        while type(event) is not SequenceEndEvent:
            value, node = self._value(event)
            values.append(value)
            nodes.append(node)
            path[-1] = len(values)
            event = self._next()
        path.pop()
        return values, (mark, nodes)

    def _mapping(self, mark: int) -> tuple[Any, Node]:
        values: dict[str, Any] = {}
        nodes: dict[str, Node] = {}
        path = self._path
        event = self._next()
        while type(event) is not MappingEndEvent:
            start = event.start_mark
            if len(values) >= MAX_KEYS:
                self._stop(event, f"more than {MAX_KEYS} keys in one mapping")
            key = self._key(event, nodes)
            path.append(key)
            value, node = self._value(self._next())
            path.pop()
            if key not in values:
                values[key] = value
                at = start.line << 32 | start.column
                nodes[key] = at if isinstance(node, int) else (at, node[1])
            event = self._next()
        return values, (mark, nodes)

    def _key(self, event: Any, seen: dict[str, Node]) -> str:
        """The key that starts with `event`; one that cannot stay is reported."""
        if type(event) is not ScalarEvent:
            self._report(event, "a key must be text, not a list or mapping; put it in quotes")
            self._value(event)
            return ""
        key = self._value(event)[0]
        if not isinstance(key, str):
            self._report(event, f"a key must be text, not {event.value!r}; put it in quotes")
        elif key == "<<" and event.implicit[0]:
            self._report(event, "merge keys (<<) are not used in policies; write it out")
        elif key in seen:
            line = line_of(mark_of(seen[key])) + 1
            message = f"the same key twice; the first is in line {line}"
            self._report(event, message, key)
        return str(event.value)

    def _scalar(self, event: Any) -> object:
        text: str = event.value
        if not text.isascii() and _REFUSED_CHARACTER.search(text) is not None:
            # An escape in double quotes can say what the text itself may not have.
            self._report(event, "half of a surrogate pair is no character")
            return ""
        tag = event.tag
        if tag is None:
            if event.implicit[0] and (not text or text[0] in _NOT_TEXT):
                return _plain(text)
            return text
        name = tag.removeprefix(_CORE)
        value = _plain(text)
        if tag == "!" or name == "str":
            return text
        if name in _TYPES and type(value) is _TYPES[name]:
            return value
        self._report(event, f"YAML tag {tag!r} is not used in policies")
        return text

    def _spend(self, event: Any, values: int) -> None:
        self._budget -= values
        if self._budget < 0:
            self._stop(event, f"more than {MAX_NODES} values in one file, aliases included")

    def _report(self, event: Any, message: str, *below: str) -> None:
        mark = event.start_mark
        path = (*self._path, *below)
        self.troubles.append(Trouble(mark.line, mark.column, path, message))
        if len(self.troubles) >= MAX_PROBLEMS:
            raise _Stopped

    def _stop(self, event: Any, message: str) -> NoReturn:
        self._report(event, message)
        raise _Stopped


_TYPES = {"null": type(None), "bool": bool, "int": int, "float": float}


def _plain(text: str) -> object:
    """What a plain scalar means; other spellings stay text, and are refused where that is not."""
    if text in _WORDS:
        return _WORDS[text]
    if _DECIMAL.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and isfinite(number := float(text)):
        return number
    return text


def _events(text: str) -> Any:
    """The function that returns the next event of `text`."""
    if yaml.__with_libyaml__:
        from yaml.cyaml import CSafeLoader

        return CSafeLoader(text).get_event
    return yaml.SafeLoader(text).get_event
