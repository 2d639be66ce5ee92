"""Segments: how frames of version 5 travel once STARTUP is answered.

Native protocol 5, section 2 ("frame format"): a header of 3 bytes (5 if lz4 was
negotiated) and its CRC24, a payload of at most 131071 bytes, its CRC32.  A
self-contained segment holds whole frames; a longer frame is cut over several.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

from parsers.cassandra.compression import decompress_block
from parsers.cassandra.frames import Malformed
from proxylib import ParserError

MAX_PAYLOAD = (1 << 17) - 1
_WHOLE = 1 << 17
_WHOLE_COMPRESSED = 1 << 34
_CRC24_START = 0x875060
_CRC24_POLYNOMIAL = 0x1974F0B
_CRC32_START = zlib.crc32(b"\xfa\x2d\x55\xca")
_CRC32 = struct.Struct("<I").unpack_from


def _crc24_table() -> tuple[int, ...]:
    def step(crc: int) -> int:
        for _ in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= _CRC24_POLYNOMIAL
        return crc

    return tuple(step(byte << 16) for byte in range(256))


_CRC24 = _crc24_table()


def crc24(data: bytes) -> int:
    """The checksum of a segment's header."""
    crc = _CRC24_START
    for byte in data:
        crc = (crc << 8 & 0xFFFFFF) ^ _CRC24[crc >> 16 ^ byte]
    return crc


def header_size(compressed: bool) -> int:
    """Bytes of a header with its checksum. compressed: lz4 was negotiated."""
    return 8 if compressed else 6


@lru_cache(maxsize=1024)
def read_header(header: bytes) -> tuple[int, int, bool]:
    """Payload bytes on the wire, plain bytes (0: not compressed), self-contained.

    header: as long as `header_size` says. Remembered: messages of one length have the
    same. Raises ParserError for a wrong checksum: nothing behind it can be read.
    """
    head, crc = header[:-3], header[-3:]
    if crc24(head) != int.from_bytes(crc, "little"):
        raise ParserError("a segment header with a wrong CRC24")
    bits = int.from_bytes(head, "little")
    if len(head) == 5:
        return bits & MAX_PAYLOAD, bits >> 17 & MAX_PAYLOAD, bool(bits & _WHOLE_COMPRESSED)
    return bits & MAX_PAYLOAD, 0, bool(bits & _WHOLE)


def read_payload(data: bytes, at: int, length: int, plain: int) -> bytes:
    """The plain payload at `at`. Raises ParserError if it is not what was sent."""
    end = at + length
    payload = data[at:end]
    if zlib.crc32(payload, _CRC32_START) != _CRC32(data, end)[0]:
        raise ParserError("a segment payload with a wrong CRC32")
    if not plain:
        return payload
    try:
        return decompress_block(payload, plain)
    except Malformed as error:
        raise ParserError(f"a segment: {error}") from error


def pack(payload: bytes, compressed: bool) -> bytes:
    """A self-contained segment with whole frames; its payload is left uncompressed."""
    if compressed:
        head = (len(payload) | _WHOLE_COMPRESSED).to_bytes(5, "little")
    else:
        head = (len(payload) | _WHOLE).to_bytes(3, "little")
    crc = zlib.crc32(payload, _CRC32_START).to_bytes(4, "little")
    return head + crc24(head).to_bytes(3, "little") + payload + crc
