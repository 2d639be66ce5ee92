"""Which topics a request names: readers made from the schemas, one per API and version.

A reader walks a request only as far as its last topic: of the one topic of a Produce
request it sees the name and not a byte of the records behind it.  It is given the
bytes that are there, and says how far it would have to see (`Short`).

Where no topic stands for all of them, the reader finds `ALL`: a missing list, an
empty one where Kafka takes that for all, a regex that the server would match, and
a request wrapped into another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from parsers.kafka import roles, schema
from parsers.kafka.rule import ALL
from parsers.kafka.schema import FIXED, Item, Layout
from proxylib import ParserError

Step = Callable[[bytes, int, int, list[bytes], list[bytes]], int]
"""``step(data, at, limit, names, ids)``: index behind what it has read of
``data[at:limit]``; appends the names and ids of topics. Raises Short, ParserError."""

NO_ID = bytes(16)

_UNJUDGED = {
    # What a consumer no longer wants, or says that it has; where a listing goes on.
    (roles.FETCH, "ForgottenTopicsData"),
    (roles.SHARE_FETCH, "ForgottenTopicsData"),
    (roles.CONSUMER_GROUP_HEARTBEAT, "TopicPartitions"),
    (roles.DESCRIBE_TOPIC_PARTITIONS, "Cursor"),
}
_UNCHANGED = {
    # Where a missing list means "as before".
    (roles.CONSUMER_GROUP_HEARTBEAT, "SubscribedTopicNames"),
    (roles.SHARE_GROUP_HEARTBEAT, "SubscribedTopicNames"),
}
_EMPTY_IS_ALL = {
    (roles.METADATA, 0, "Topics"),
    (roles.DESCRIBE_TOPIC_PARTITIONS, 0, "Topics"),
}
_REGEXES = {"SubscribedTopicRegex", "SourceTopicRegex"}
_RESOURCES = {roles.DESCRIBE_CONFIGS, roles.ALTER_CONFIGS, roles.INCREMENTAL_ALTER_CONFIGS}
_TOPIC_RESOURCE = 2
"""What ResourceType says of a topic."""


class Short(Exception):
    """Not all is there: the reader must see up to index `end`."""

    def __init__(self, end: int) -> None:
        super().__init__(end)
        self.end = end


@cache
def reader(key: int, version: int) -> Step | None:
    """The reader for a request's body; None for an API without topics."""
    if key == roles.ENVELOPE:
        return _all_topics
    layout = schema.request(key, version)
    return _Compiler(key, version).struct(layout, last=True)


@cache
def skipper(layout: Layout) -> Step:
    """A step over a whole struct."""
    return _sequence([*map(_skip_of(layout.flexible), layout.items)], layout.flexible)


def skip_item(item: Item, flexible: bool) -> Step:
    """A step over one field."""
    return _skip_of(flexible)(item)


def _all_topics(data: bytes, at: int, limit: int, names: list[bytes], ids: list[bytes]) -> int:
    names.append(ALL)
    return at


class _Compiler:
    """Makes the reader of one API and version."""

    def __init__(self, key: int, version: int) -> None:
        self.key = key
        self.version = version

    def struct(self, layout: Layout, *, last: bool) -> Step | None:
        """The reader of a struct; None if it has no topics. last: nothing behind its
        last topic is wanted."""
        items = layout.items
        wanted = [self._wanted(item) for item in items]
        if not any(wanted):
            return None
        end = len(items) - wanted[::-1].index(True)
        steps: list[Step] = []
        for index, item in enumerate(items[:end] if last else items):
            if wanted[index]:
                steps.append(self._read(item, layout, last=last and index == end - 1))
            elif not (item.name == "ResourceType" and self.key in _RESOURCES):
                steps.append(_skip_of(layout.flexible)(item))
        return _sequence(steps, layout.flexible and not last)

    def _wanted(self, item: Item) -> bool:
        if (self.key, item.name) in _UNJUDGED:
            return False
        if item.topic or item.topic_id or item.name in _REGEXES:
            return True
        if item.name == "ResourceName" and self.key in _RESOURCES:
            return True
        return item.layout is not None and any(map(self._wanted, item.layout.items))

    def _read(self, item: Item, layout: Layout, *, last: bool) -> Step:
        flexible = layout.flexible
        if item.topic_id:
            # An id of zeros stands beside a name; alone it is an id that nobody has.
            return _read_id(not any(other.topic for other in layout.items))
        if item.layout is not None and not item.array:
            return self._nullable(item, self._inside(item.layout, last=last))
        if item.name in _REGEXES:
            return _read_regexes(flexible) if item.array else _read_regex(flexible)
        if item.layout is None:
            if item.array:
                null_is_all = (self.key, item.name) not in _UNCHANGED
                return _read_array(flexible, _read_name(flexible), None, null_is_all, False)
            if item.name == "ResourceName":
                return _read_resource(flexible)
            return _read_name(flexible, not any(other.topic_id for other in layout.items))
        return _read_array(
            flexible,
            self._inside(item.layout, last=False),
            self._inside(item.layout, last=True) if last else None,
            (self.key, item.name) not in _UNCHANGED,
            (self.key, self.version, item.name) in _EMPTY_IS_ALL,
        )

    def _inside(self, layout: Layout, *, last: bool) -> Step:
        step = self.struct(layout, last=last)
        assert step is not None, "only structs with topics are read"
        return step

    def _nullable(self, item: Item, inside: Step) -> Step:
        if not item.nullable:
            return inside

        def step(data: bytes, at: int, limit: int, names: list[bytes], ids: list[bytes]) -> int:
            if at >= limit:
                raise Short(at + 1)
            return at + 1 if data[at] > 127 else inside(data, at + 1, limit, names, ids)

        return step


def _sequence(steps: list[Step], flexible: bool) -> Step:
    """One step that does all of `steps`, neighbouring fixed ones at once."""
    merged: list[Step] = []
    fixed = 0
    for step in steps:
        size = getattr(step, "size", None)
        if size is not None:
            fixed += size
            continue
        if fixed:
            merged.append(_fixed(fixed))
            fixed = 0
        merged.append(step)
    if fixed:
        merged.append(_fixed(fixed))
    if flexible:
        merged.append(_skip_tags)
    if len(merged) == 1:
        return merged[0]
    parts = tuple(merged)

    def sequence(data: bytes, at: int, limit: int, names: list[bytes], ids: list[bytes]) -> int:
        for part in parts:
            at = part(data, at, limit, names, ids)
        return at

    return sequence


@cache
def _fixed(size: int) -> Step:
    def step(data: bytes, at: int, limit: int, names: list[bytes], ids: list[bytes]) -> int:
        return at + size

    step.size = size  # type: ignore[attr-defined]
    return step


def varint_at(data: bytes, at: int, limit: int) -> tuple[int, int]:
    """The unsigned varint at `at`, and the index behind it. Raises Short, ParserError."""
    value = shift = 0
    while True:
        if at >= limit:
            raise Short(at + 1)
        byte = data[at]
        at += 1
        if byte < 0x80:
            value |= byte << shift
            if value >> 32:
                raise ParserError("a varint of more than 32 bits")
            return value, at
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 28:
            raise ParserError("a varint of more than 32 bits")


def length_at(data: bytes, at: int, limit: int, flexible: bool, size: int) -> tuple[int, int]:
    """A length, or a count (-1 for null), and the index behind it.

    size: of the old form, bytes. Raises Short, ParserError.
    """
    if flexible:
        if at < limit and 0 < (byte := data[at]) < 0x80:
            return byte - 1, at + 1
        value, at = varint_at(data, at, limit)
        return value - 1, at
    end = at + size
    if end > limit:
        raise Short(end)
    value = int.from_bytes(data[at:end], "big")
    if value >> (8 * size - 1):
        if value != (1 << 8 * size) - 1:
            raise ParserError("a negative length")
        return -1, end
    return value, end


def _skip_tags(data: bytes, at: int, limit: int, names: list[bytes], ids: list[bytes]) -> int:
    if at < limit and not data[at]:
        return at + 1
    return skip_tags(data, at, limit)


def skip_tags(data: bytes, at: int, limit: int) -> int:
    """The index behind the tagged fields at `at`. Raises Short, ParserError."""
    count, at = varint_at(data, at, limit)
    for _ in range(count):
        _, at = varint_at(data, at, limit)
        size, at = varint_at(data, at, limit)
        at += size
    return at


def _skip_of(flexible: bool) -> Callable[[Item], Step]:
    return lambda item: _skip(item, flexible)


def _skip(item: Item, flexible: bool) -> Step:
    if not item.array:
        return _skip_single(item, flexible)
    size = FIXED.get(item.type)
    if size is None:
        single = _skip_single(item, flexible, element=True)

    def step(data: bytes, at: int, limit: int, names: list[bytes], ids: list[bytes]) -> int:
        count, at = length_at(data, at, limit, flexible, 4)
        if size is not None:
            return at + max(count, 0) * size
        for _ in range(count):
            at = single(data, at, limit, names, ids)
            if at > limit:
                raise Short(at)
        return at

    return step


def _skip_single(item: Item, flexible: bool, *, element: bool = False) -> Step:
    if item.type in FIXED:
        return _fixed(FIXED[item.type])
    size = 2 if item.type == "string" else 4
    if item.layout is not None:
        inside = skipper(item.layout)
        if element or not item.nullable:
            return inside

    def step(data: bytes, at: int, limit: int, names: list[bytes], ids: list[bytes]) -> int:
        if item.layout is not None:
            if at >= limit:
                raise Short(at + 1)
            return at + 1 if data[at] > 127 else inside(data, at + 1, limit, names, ids)
        length, at = length_at(data, at, limit, flexible, size)
        return at + length if length > 0 else at

    return step


def _read_name(flexible: bool, null_is_all: bool = True) -> Step:
    def step(data: bytes, at: int, limit: int, names: list[bytes], ids: list[bytes]) -> int:
        length, at = length_at(data, at, limit, flexible, 2)
        if length < 0:
            if null_is_all:
                names.append(ALL)
            return at
        end = at + length
        if end > limit:
            raise Short(end)
        names.append(data[at:end])
        return end

    return step


def _read_id(zero_counts: bool) -> Step:
    def step(data: bytes, at: int, limit: int, names: list[bytes], ids: list[bytes]) -> int:
        end = at + 16
        if end > limit:
            raise Short(end)
        if zero_counts or data[at:end] != NO_ID:
            ids.append(data[at:end])
        return end

    return step


def _read_regex(flexible: bool) -> Step:
    def step(data: bytes, at: int, limit: int, names: list[bytes], ids: list[bytes]) -> int:
        length, at = length_at(data, at, limit, flexible, 2)
        if length > 0:
            names.append(ALL)
            return at + length
        return at

    return step


def _read_regexes(flexible: bool) -> Step:
    regex = _read_regex(flexible)

    def step(data: bytes, at: int, limit: int, names: list[bytes], ids: list[bytes]) -> int:
        count, at = length_at(data, at, limit, flexible, 4)
        for _ in range(count):
            at = regex(data, at, limit, names, ids)
        return at

    return step


def _read_resource(flexible: bool) -> Step:
    """A resource's type and its name, which may be a topic's."""
    name = _read_name(flexible)

    def step(data: bytes, at: int, limit: int, names: list[bytes], ids: list[bytes]) -> int:
        if at >= limit:
            raise Short(at + 1)
        is_topic = data[at] == _TOPIC_RESOURCE
        return name(data, at + 1, limit, names if is_topic else [], ids)

    return step


def _read_array(
    flexible: bool, each: Step, last: Step | None, null_is_all: bool, empty_is_all: bool
) -> Step:
    """last: for the last element, where nothing behind its topic is wanted."""

    def step(data: bytes, at: int, limit: int, names: list[bytes], ids: list[bytes]) -> int:
        count, at = length_at(data, at, limit, flexible, 4)
        if count <= 0:
            if empty_is_all if count == 0 else null_is_all:
                names.append(ALL)
            return at
        for _ in range(count if last is None else count - 1):
            at = each(data, at, limit, names, ids)
            if at > limit:
                raise Short(at)
        return at if last is None else last(data, at, limit, names, ids)

    return step
