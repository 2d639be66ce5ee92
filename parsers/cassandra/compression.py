"""Decompression with a bound, by the names that STARTUP negotiates.

lz4 is what the native protocol says: the plain length, four bytes, then an LZ4
block; snappy is its raw format, which begins with the plain length.
"""

from __future__ import annotations

import cramjam

from parsers.cassandra.frames import Malformed

MAX_PLAIN = 16 << 20
"""Largest body that we decompress, bytes: Cassandra's default for a frame. LZ4 and
snappy can announce more than two hundred times what they are given."""

ALGORITHMS = ("lz4", "snappy")


def decompress(algorithm: str, body: bytes) -> bytes:
    """The plain body of a frame of version 3 or 4. Raises Malformed."""
    if algorithm == "lz4":
        return decompress_block(body[4:], int.from_bytes(body[:4]))
    length = _snappy_length(body)
    return _into(cramjam.snappy.decompress_raw_into, body, length)


def decompress_block(block: bytes, length: int) -> bytes:
    """An LZ4 block of exactly `length` plain bytes. Raises Malformed."""
    return _into(cramjam.lz4.decompress_block_into, block, length) if length else b""


def _into(decompressor: object, packed: bytes, length: int) -> bytes:
    if length > MAX_PLAIN:
        raise Malformed(f"{len(packed)} bytes that decompress to {length}")
    plain = bytearray(length)
    try:
        written = decompressor(packed, plain)  # type: ignore[operator]
    except cramjam.DecompressionError as error:
        raise Malformed(f"a body that does not decompress: {error}") from error
    if written != length:
        raise Malformed(f"a body that decompresses to {written} bytes, not {length}")
    return bytes(plain)


def _snappy_length(body: bytes) -> int:
    length = 0
    for index, byte in enumerate(body[:5]):
        length |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return length
    raise Malformed("a snappy body without its length")
