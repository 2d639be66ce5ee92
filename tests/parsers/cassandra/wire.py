"""Frames as a client and a server of the native protocol write them.

Written apart from the parser: a second reading of the specification.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import lz4.block
import snappy

ERROR, STARTUP, READY, AUTHENTICATE, OPTIONS, SUPPORTED = 0, 1, 2, 3, 5, 6
QUERY, RESULT, PREPARE, EXECUTE, REGISTER, EVENT, BATCH = 7, 8, 9, 10, 11, 12, 13
AUTH_CHALLENGE, AUTH_RESPONSE, AUTH_SUCCESS = 14, 15, 16

KEYSPACE = 0x80


def short(n: int) -> bytes:
    return n.to_bytes(2)


def integer(n: int) -> bytes:
    return n.to_bytes(4, signed=True)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return short(len(data)) + data


def long_string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return integer(len(data)) + data


def value(data: bytes | None) -> bytes:
    return integer(-1) if data is None else integer(len(data)) + data


def string_map(pairs: Iterable[tuple[str, str]]) -> bytes:
    items = list(pairs)
    return short(len(items)) + b"".join(string(k) + string(v) for k, v in items)


def frame(version: int, opcode: int, body: bytes = b"", stream: int = 0, flags: int = 0) -> bytes:
    head = bytes((version, flags)) + stream.to_bytes(2, signed=True) + bytes((opcode,))
    return head + len(body).to_bytes(4) + body


def compressed(algorithm: str, raw: bytes) -> bytes:
    """The same frame, compressed."""
    body = raw[9:]
    if algorithm == "lz4":
        packed = len(body).to_bytes(4) + lz4.block.compress(body, store_size=False)
    else:
        packed = snappy.compress(body)
    return bytes((raw[0], raw[1] | 1)) + raw[2:5] + len(packed).to_bytes(4) + packed


def startup(version: int = 4, stream: int = 0, **options: str) -> bytes:
    pairs = [("CQL_VERSION", "3.0.0"), *options.items()]
    return frame(version, STARTUP, string_map(pairs), stream)


def ready(version: int = 4, stream: int = 0) -> bytes:
    return frame(0x80 | version, READY, b"", stream)


def parameters(
    version: int,
    values: Iterable[bytes | None] = (),
    *,
    keyspace: str = "",
    names: bool = False,
    flags: int = 0,
) -> bytes:
    """<query_parameters>, with consistency ONE."""
    given = list(values)
    flags |= (0x01 if given else 0) | (0x40 if names else 0) | (KEYSPACE if keyspace else 0)
    body = short(1) + (integer(flags) if version >= 5 else bytes((flags,)))
    if given:
        body += short(len(given))
        for index, item in enumerate(given):
            body += (string(f"v{index}") if names else b"") + value(item)
    if flags & 0x04:
        body += integer(100)
    if flags & 0x08:
        body += value(b"page")
    if flags & 0x10:
        body += short(8)
    if flags & 0x20:
        body += (7).to_bytes(8)
    return body + (string(keyspace) if keyspace else b"")


def query(
    statement: str | bytes,
    version: int = 4,
    stream: int = 0,
    *,
    flags: int = 0,
    values: Iterable[bytes | None] = (),
    keyspace: str = "",
    names: bool = False,
    options: int = 0,
) -> bytes:
    rest = parameters(version, values, keyspace=keyspace, names=names, flags=options)
    return frame(version, QUERY, long_string(statement) + rest, stream, flags)


def prepare(statement: str, version: int = 4, stream: int = 0, keyspace: str = "") -> bytes:
    body = long_string(statement)
    if version >= 5:
        body += integer(1) + string(keyspace) if keyspace else integer(0)
    return frame(version, PREPARE, body, stream)


def execute(
    prepared: bytes, version: int = 4, stream: int = 0, values: Iterable[bytes | None] = ()
) -> bytes:
    body = string(prepared) + (string(b"m" * 16) if version >= 5 else b"")
    return frame(version, EXECUTE, body + parameters(version, values), stream)


def batch(
    statements: Iterable[str | bytes],
    version: int = 4,
    stream: int = 0,
    *,
    values: Iterable[bytes | None] = (),
    keyspace: str = "",
) -> bytes:
    """Statements as text, and prepared ids as bytes, with the same values each."""
    items, given = list(statements), list(values)
    body = bytes(1) + short(len(items))
    for item in items:
        body += b"\1" + string(item) if isinstance(item, bytes) else b"\0" + long_string(item)
        body += short(len(given)) + b"".join(map(value, given))
    return frame(version, BATCH, body + parameters(version, keyspace=keyspace), stream)


def void(version: int = 4, stream: int = 0) -> bytes:
    return frame(0x80 | version, RESULT, integer(1), stream)


def rows(body: bytes, version: int = 4, stream: int = 0) -> bytes:
    return frame(0x80 | version, RESULT, integer(2) + body, stream)


def keyspace_set(keyspace: str, version: int = 4, stream: int = 0) -> bytes:
    return frame(0x80 | version, RESULT, integer(3) + string(keyspace), stream)


def prepared(known: bytes, version: int = 4, stream: int = 0, tail: bytes = b"meta") -> bytes:
    body = integer(4) + string(known) + (string(b"m" * 16) if version >= 5 else b"") + tail
    return frame(0x80 | version, RESULT, body, stream)


def error(
    code: int, text: str = "no", version: int = 4, stream: int = 0, extra: bytes = b""
) -> bytes:
    return frame(0x80 | version, ERROR, integer(code) + string(text) + extra, stream)


def unauthorized(version: int = 4, stream: int = 0, reason: str = "") -> bytes:
    return error(0x2100, "Request Unauthorized" + reason, version, stream)


def unprepared(known: bytes, version: int = 4, stream: int = 0) -> bytes:
    text = f"Prepared query with ID {known.hex()} not found on this connection"
    return error(0x2500, text, version, stream, string(known))


def crc24(data: bytes) -> int:
    crc = 0x875060
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1974F0B
    return crc


def segment(
    payload: bytes, *, lz4_header: bool = False, pack: bool = False, whole: bool = True
) -> bytes:
    """One segment. lz4_header: lz4 was negotiated; pack: and used."""
    body, plain = payload, 0
    if pack:
        body, plain = lz4.block.compress(payload, store_size=False), len(payload)
    if lz4_header:
        head = (len(body) | plain << 17 | whole << 34).to_bytes(5, "little")
    else:
        head = (len(body) | whole << 17).to_bytes(3, "little")
    crc = zlib.crc32(body, zlib.crc32(b"\xfa\x2d\x55\xca"))
    return head + crc24(head).to_bytes(3, "little") + body + crc.to_bytes(4, "little")


def segments(raw: bytes, size: int = 131071, **options: bool) -> bytes:
    """A frame cut over several segments."""
    parts = [raw[i : i + size] for i in range(0, len(raw), size)]
    return b"".join(segment(part, whole=False, **options) for part in parts)
