"""Compression: unpacked to be judged, as far as a limit; what passes is as it came."""

import zlib

from proxylib import Exact, FramedParser, L7Rule, Message, ParserError, length_prefix, parser

PLAIN, PACKED = 0, 1
MAX_PLAIN = 64 << 10


def unpack(body):
    """The plain text of `body`, at most MAX_PLAIN bytes: a few bytes may announce gigabytes."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(body, MAX_PLAIN)
    except zlib.error as error:
        raise ParserError(f"a body that does not unpack: {error}") from error
    # At its end, and nothing behind it: the server must not read more than we have judged.
    if not stream.eof or stream.unused_data:
        raise ParserError(f"a body that is not one of {MAX_PLAIN} bytes at most")
    return plain


@parser("recipe.packed")
class Packed(FramedParser):
    """Frames of a length, 4 bytes; a flag; and ``cmd argument``, plain or packed by zlib."""

    framing = length_prefix(4, limit=16 << 10)

    class Rule(L7Rule):
        cmd = Exact()

    def request(self, frame):
        flag, body = frame[4:5], frame[5:]
        if flag == bytes([PACKED]):
            body = unpack(body)
        elif flag != bytes([PLAIN]):
            raise ParserError(f"not a flag: {flag!r}")
        return Message(cmd=body.partition(b" ")[0])

    def denied(self, request):
        error = bytes([PLAIN]) + b"DENIED"
        return len(error).to_bytes(4, "big") + error
