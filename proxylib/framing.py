"""Where a frame ends: by a delimiter, by a length field, or by a function of yours.

A `Framing` looks at the buffered bytes from a position on and says where the
frame that starts there ends, or how many bytes are missing to know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxylib import limits
from proxylib.errors import ParserError

FrameEnd = Callable[[bytes, int], int]
"""``end(data, start)``: index behind the frame, or minus the number of bytes that
are missing to go on (at least 1). Raises ParserError for a frame past its limit."""


@dataclass(frozen=True, slots=True)
class Framing:
    """How frames are delimited: by `lines`, `length_prefix`, or a function of yours."""

    end: FrameEnd
    """``end(data, start)``: the index behind the frame that begins at `start`, or minus the
    number of bytes that are missing to know it (at least 1). Raises ParserError for a frame
    past its limit: without a limit of its own, limits.MAX_HELD ends the connection."""
    strip: int = 0
    """Bytes at a frame's end that are not shown to the parser: a delimiter's."""


def lines(delimiter: bytes = b"\r\n", *, limit: int = limits.MAX_LINE) -> Framing:
    """Frames that end in `delimiter`, at most `limit` bytes long with it.

    The parser sees them without the delimiter. A longer one is a ParserError, which
    closes the connection.  Raises ValueError for an empty delimiter, or a limit that
    is shorter than it.
    """
    width = len(delimiter)
    if not 0 < width <= limit:
        raise ValueError(f"a delimiter of {width} bytes, with a limit of {limit}")

    def end(data: bytes, start: int) -> int:
        found = data.find(delimiter, start)
        if found < 0:
            if len(data) - start >= limit:
                raise ParserError(f"line longer than {limit} bytes")
            return -1
        if found + width - start > limit:
            raise ParserError(f"line longer than {limit} bytes")
        return found + width

    return Framing(end, width)


def length_prefix(
    size: int,
    *,
    offset: int = 0,
    adjust: int = 0,
    little_endian: bool = False,
    limit: int = limits.MAX_FRAME,
) -> Framing:
    """Frames with an unsigned length field of `size` bytes, `offset` bytes into the header.

    The field counts the bytes behind itself, plus `adjust` (negative if it counts
    itself or the header too).  A frame, header included, is at most `limit` bytes;
    a longer one, or one shorter than its header, is a ParserError as soon as its length
    is known.  The parser sees it with its header.
    Raises ValueError for a size that is not 1 to 8, a negative offset, or a limit that
    is shorter than the header.
    """
    header = offset + size
    if not 1 <= size <= 8 or offset < 0 or limit < header:
        raise ValueError(f"a length of {size} bytes at {offset}, with a limit of {limit}")
    order: str = "little" if little_endian else "big"

    def end(data: bytes, start: int) -> int:
        have = len(data) - start
        if have < header:
            return have - header
        length = int.from_bytes(data[start + offset : start + header], order)  # type: ignore[arg-type]
        total = header + length + adjust
        if total < header or total > limit:
            raise ParserError(f"frame of {total} bytes (limit {limit})")
        return start + total if have >= total else have - total

    return Framing(end)
