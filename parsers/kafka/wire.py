"""Kafka's types on the wire: any message to a dict, by its layout, and back.

This is for what is rare: denied requests, ApiVersions, tests.  What every request
goes through is topics.py.

`decode` is a generator, so that a message that arrives in pieces need not be kept:
what it has read may be dropped.  ``bytes`` and ``records`` are skipped unseen.

Source: the Kafka protocol guide, and KIP-482 for compact types and tagged fields.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from typing import Any

from parsers.kafka.schema import FIXED, Item, Layout
from proxylib import ParserError

MAX_ELEMENTS = 20_000
"""Most array elements and tagged fields of one message that is decoded: an honest
request lists some thousand partitions; each costs some hundred bytes of memory."""

MAX_STRING = 32_767
"""Longest string, bytes: what a 16-bit length can say, and Kafka's limit for compact
ones too."""

Values = dict[str, Any]
Step = Generator[int, None, Any]

_FORMATS = {
    "bool": ">?",
    "int8": ">b",
    "int16": ">h",
    "uint16": ">H",
    "int32": ">i",
    "int64": ">q",
    "float64": ">d",
    "uuid": "16s",
}
_PACK: dict[str, Callable[..., bytes]] = {k: struct.Struct(f).pack for k, f in _FORMATS.items()}
_UNPACK: dict[str, Callable[[bytes], tuple[Any, ...]]] = {
    k: struct.Struct(f).unpack for k, f in _FORMATS.items()
}


class Source:
    """Bytes as they arrive. `left`: how many the message still has."""

    __slots__ = ("at", "data", "elements", "left")

    def __init__(self, data: bytes, at: int, left: int) -> None:
        self.data = data
        self.at = at
        """Index of the next byte to read; past the data while bytes are skipped."""
        self.left = left
        self.elements = 0

    def skip(self, n: int) -> None:
        """Go on behind the next `n` bytes, arrived or not."""
        if n > self.left:
            raise ParserError("a field runs past the end of its message")
        self.left -= n
        self.at += n

    def take(self, n: int) -> Generator[int, None, bytes]:
        """The next `n` bytes; yields how many are missing until they are there."""
        start = self.at
        self.skip(n)
        if self.at > len(self.data):
            self.at -= n
            while self.at + n > len(self.data):
                yield self.at + n - len(self.data)
            start = self.at
            self.at += n
        return self.data[start : self.at]

    def count(self) -> None:
        """One more element. Raises ParserError past MAX_ELEMENTS."""
        self.elements += 1
        if self.elements > MAX_ELEMENTS:
            raise ParserError(f"a message with more than {MAX_ELEMENTS} elements")


def decode(source: Source, layout: Layout) -> Step:
    """Read a struct: a generator of the number of missing bytes; returns its values.

    Raises ParserError for what is malformed.
    """
    values: Values = {}
    for item in layout.items:
        values[item.name] = yield from _value(source, item, layout.flexible)
    if layout.flexible:
        count = yield from _varint(source)
        for _ in range(count):
            source.count()
            tag = yield from _varint(source)
            size = yield from _varint(source)
            tagged = layout.tagged.get(tag)
            if tagged is None:
                source.skip(size)
                continue
            end = source.left - size
            values[tagged.name] = yield from _value(source, tagged, True)
            if source.left != end:
                raise ParserError(f"tagged field {tagged.name} is not as long as it says")
    return values


def decode_whole(data: bytes, layout: Layout, at: int = 0) -> Values:
    """`decode` of bytes that are all there, from index `at` to the end of `data`."""
    steps = decode(Source(data, at, len(data) - at), layout)
    try:
        next(steps)
    except StopIteration as done:
        values: Values = done.value
        return values
    raise ParserError("a message that ends too early")


def _value(source: Source, item: Item, flexible: bool) -> Step:
    if not item.array:
        return (yield from _single(source, item, flexible))
    count = yield from _length(source, flexible, 4)
    if count < 0:
        _check_null(item)
        return None
    size = FIXED.get(item.type, 1)
    if count * size > source.left:
        raise ParserError(f"{item.name}: {count} elements in {source.left} bytes")
    values = []
    for _ in range(count):
        source.count()
        values.append((yield from _single(source, item, flexible, element=True)))
    return values


def _single(source: Source, item: Item, flexible: bool, *, element: bool = False) -> Step:
    if (size := FIXED.get(item.type)) is not None:
        return _UNPACK[item.type]((yield from source.take(size)))[0]
    if item.layout is not None:
        if item.nullable and not element and (yield from source.take(1))[0] > 127:
            return None
        return (yield from decode(source, item.layout))
    length = yield from _length(source, flexible, 2 if item.type == "string" else 4)
    if length < 0:
        if not element:
            _check_null(item)
        return None
    if item.type != "string":
        source.skip(length)
        return b""
    if length > MAX_STRING:
        raise ParserError(f"{item.name}: a string of {length} bytes")
    return (yield from source.take(length))


def _check_null(item: Item) -> None:
    # Records may be null in practice whatever the schema says of some versions.
    if not item.nullable and item.type != "records":
        raise ParserError(f"{item.name} is null")


def _length(source: Source, flexible: bool, size: int) -> Generator[int, None, int]:
    """A length; -1 for null."""
    if flexible:
        return (yield from _varint(source)) - 1
    length = int.from_bytes((yield from source.take(size)), "big", signed=True)
    if length < -1:
        raise ParserError(f"a length of {length}")
    return length


def _varint(source: Source) -> Generator[int, None, int]:
    value = 0
    for shift in range(0, 35, 7):
        byte = (yield from source.take(1))[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 32:
                break
            return value
    raise ParserError("a varint of more than 32 bits")


def encode(layout: Layout, values: Values) -> bytes:
    """The bytes of a struct; fields that `values` lacks have their defaults."""
    out = bytearray()
    _encode(out, layout, values)
    return bytes(out)


def _encode(out: bytearray, layout: Layout, values: Values) -> None:
    for item in layout.items:
        _put(out, item, values.get(item.name, item.default), layout.flexible)
    if layout.flexible:
        given = [
            (tag, item)
            for tag, item in sorted(layout.tagged.items())
            if values.get(item.name, item.default) != item.default
        ]
        out += varint(len(given))
        for tag, item in given:
            field = bytearray()
            _put(field, item, values[item.name], True)
            out += varint(tag) + varint(len(field)) + field


def _put(out: bytearray, item: Item, value: Any, flexible: bool) -> None:
    if item.array:
        if value is None and not item.nullable:
            value = ()
        out += length(-1 if value is None else len(value), flexible, 4)
        for element in value or ():
            _put_single(out, item, element, flexible, element=True)
    else:
        _put_single(out, item, value, flexible)


def _put_single(
    out: bytearray, item: Item, value: Any, flexible: bool, *, element: bool = False
) -> None:
    if item.type in FIXED:
        out += _PACK[item.type](value)
    elif item.layout is not None:
        if item.nullable and not element:
            out += b"\xff" if value is None else b"\x01"
        if value is not None:
            _encode(out, item.layout, value)
    else:
        if value is None and not item.nullable:
            value = b""
        size = 2 if item.type == "string" else 4
        out += length(-1 if value is None else len(value), flexible, size)
        out += value or b""


def length(value: int, flexible: bool, size: int) -> bytes:
    """A length, or a count; -1 for null. size: of the old form, bytes."""
    return varint(value + 1) if flexible else value.to_bytes(size, "big", signed=True)


def varint(value: int) -> bytes:
    """An unsigned varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
