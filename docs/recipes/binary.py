"""Length-prefixed binary: a magic byte, an opcode, a length, a key, a value."""

import struct

from proxylib import (
    Exact,
    FramedParser,
    L7Rule,
    Message,
    ParserError,
    Prefix,
    length_prefix,
    parser,
)

HEADER = struct.Struct(">BBHB")  # magic, opcode, length of the whole frame, length of the key
MAGIC = 0xD2
OPCODES = {1: b"GET", 2: b"PUT", 3: b"DELETE"}


@parser("recipe.binary")
class Binary(FramedParser):
    """Frames whose length field, 2 bytes behind the first 2, counts the whole frame."""

    framing = length_prefix(2, offset=2, adjust=-4, limit=1 << 15)

    class Rule(L7Rule):
        cmd = Exact("GET", "PUT", "DELETE")
        key = Prefix()

    def request(self, frame):
        if len(frame) < HEADER.size:
            raise ParserError(f"a frame of {len(frame)} bytes")
        magic, opcode, _, size = HEADER.unpack_from(frame)
        key = frame[HEADER.size : HEADER.size + size]
        if magic != MAGIC or opcode not in OPCODES or len(key) < size:
            raise ParserError(f"not a request: {frame[:16].hex(' ')}")
        return Message(cmd=OPCODES[opcode], key=key)

    def denied(self, request):
        return HEADER.pack(MAGIC, 0xFF, HEADER.size, 0)
