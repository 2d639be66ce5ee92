"""Frames of the native protocol, versions 3 to 5: header, body, and our error replies.

Native protocol specification, sections 2 to 4 and 9.  A body is read piece by
piece through `Body`, which knows what has arrived and what the header announced.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from proxylib import limits

VERSIONS: Final = (3, 4, 5)
SEGMENTED: Final = 5
"""From this version on, frames travel in segments once STARTUP is answered."""

HEADER: Final = struct.Struct(">BBhBi")
"""Version, flags, stream, opcode, length of the body."""
HEADER_SIZE: Final = 9

MAX_LENGTH: Final = 256 << 20
"""Longest body that the specification allows, bytes."""

MAX_READ: Final = limits.MAX_HELD - (1 << 20)
"""How far into a body we can look, bytes: what is looked at is withheld until the
verdict. Cassandra takes frames of 16 MiB by default."""


class Opcode(IntEnum):
    """What a frame is (section 2.4)."""

    ERROR = 0x00
    STARTUP = 0x01
    READY = 0x02
    AUTHENTICATE = 0x03
    OPTIONS = 0x05
    SUPPORTED = 0x06
    QUERY = 0x07
    RESULT = 0x08
    PREPARE = 0x09
    EXECUTE = 0x0A
    REGISTER = 0x0B
    EVENT = 0x0C
    BATCH = 0x0D
    AUTH_CHALLENGE = 0x0E
    AUTH_RESPONSE = 0x0F
    AUTH_SUCCESS = 0x10


COMPRESSED: Final = 0x01
TRACING: Final = 0x02
PAYLOAD: Final = 0x04
WARNING: Final = 0x08
FLAGS: Final = 0x1F
"""Every flag that the specification knows."""

PROTOCOL_ERROR: Final = 0x000A
UNAUTHORIZED: Final = 0x2100
UNPREPARED: Final = 0x2500

ERRORS: Final = {
    0x0000: "Server error",
    0x000A: "Protocol error",
    0x0100: "Bad credentials",
    0x1000: "Unavailable",
    0x1001: "Overloaded",
    0x1002: "Is bootstrapping",
    0x1003: "Truncate error",
    0x1100: "Write timeout",
    0x1200: "Read timeout",
    0x1300: "Read failure",
    0x1400: "Function failure",
    0x1500: "Write failure",
    0x1600: "CDC write failure",
    0x1700: "CAS write unknown",
    0x2000: "Syntax error",
    0x2100: "Unauthorized",
    0x2200: "Invalid",
    0x2300: "Config error",
    0x2400: "Already exists",
    0x2500: "Unprepared",
}
"""Error codes (section 9), as the log names them."""


class Malformed(ValueError):
    """A frame says what it cannot mean; the text says what."""


class Short(Exception):
    """The verdict needs bytes that have not arrived: the first `need` of the body."""

    def __init__(self, need: int) -> None:
        self.need = need


class Body:
    """Reads a body from its front.

    data[start:start + have] is what has arrived of its `length` bytes. Each method
    raises Malformed for what exceeds the length, and Short for what is to come.
    """

    __slots__ = ("data", "have", "length", "position", "start")

    def __init__(self, data: bytes, start: int, have: int, length: int) -> None:
        self.data = data
        self.start = start
        self.position = start
        self.have = start + have
        self.length = start + length

    def skip(self, n: int) -> int:
        """Go past `n` bytes; returns where they begin in `data`."""
        position = self.position
        end = position + n
        if end > self.have or n < 0:
            self._fail(n, end)
        self.position = end
        return position

    def _fail(self, n: int, end: int) -> None:
        if n < 0:
            raise Malformed(f"a length of {n}")
        if end > self.length:
            raise Malformed(f"{n} bytes announced where the message has {self.length - end + n}")
        need = end - self.start
        if need > MAX_READ:
            raise Malformed(f"a message that would have to be read to its byte {need}")
        raise Short(need)

    def read_byte(self) -> int:
        return self.data[self.skip(1)]

    def read_short(self) -> int:
        at = self.skip(2)
        return self.data[at] << 8 | self.data[at + 1]

    def read_int(self) -> int:
        at = self.skip(4)
        return int.from_bytes(self.data[at : at + 4], signed=True)

    def read_bytes(self, n: int) -> bytes:
        at = self.skip(n)
        return bytes(self.data[at : at + n])

    def read_string(self) -> bytes:
        """A [string] or [short bytes]."""
        return self.read_bytes(self.read_short())

    def read_long_string(self) -> bytes:
        return self.read_bytes(self.read_int())

    def skip_value(self) -> None:
        """A [value] or [bytes]: below 0, nothing follows."""
        n = self.read_int()
        if n > 0:
            self.skip(n)

    def skip_payload(self) -> None:
        """A custom payload, [bytes map]."""
        for _ in range(self.read_short()):
            self.skip(self.read_short())
            self.skip_value()

    def skip_warnings(self) -> None:
        """The warnings of a reply, [string list]."""
        for _ in range(self.read_short()):
            self.skip(self.read_short())


def error(version: int, stream: int, code: int, text: str, extra: bytes = b"") -> bytes:
    """An ERROR frame for the client. extra: what follows the text for this code."""
    message = text.encode()
    body = struct.pack(">iH", code, len(message)) + message + extra
    return HEADER.pack(0x80 | version, 0, stream, Opcode.ERROR, len(body)) + body
