"""The OnData loop: a raw parser is called again on what remains, until it has no more to say."""

from __future__ import annotations

from proxylib import limits
from proxylib.errors import ParserError
from proxylib.ops import DROP, ERROR, INJECT, MORE, NOP, PASS, WAIT
from proxylib.parser import Parser

MAX_OPS = 16
"""Capacity of a host's op list in the proxylib C ABI."""


def run_raw(
    parser: Parser,
    buffer: bytearray,
    reply: bool,
    end_stream: bool,
    data: list[bytes],
    ops: list[int],
) -> None:
    """Append flat ops for `data`, at most MAX_OPS of them.

    buffer: what waits to be injected in this direction.
    Raises what the parser raises, and ParserError for an impossible answer.
    """
    left = len(data[0]) if len(data) == 1 else sum(map(len, data))
    placed = 0
    for _ in range(MAX_OPS):
        answer = parser.on_data(reply, end_stream, data)
        try:
            op, n = answer
            valid = 0 < n <= limits.MAX_OP_BYTES or op == NOP
        except (TypeError, ValueError):
            raise ParserError(
                f"{type(parser).__name__}.on_data returned {answer!r:.100}, not (op, n)"
            ) from None
        if op == NOP:
            return
        if not valid:
            raise ParserError(f"op {op!r} with length {n!r}")
        if op == PASS or op == DROP:
            ops += (op, n)
            if n >= left:
                if n > left:
                    return
                data = []
            else:
                data = advance(data, n)
            left -= n
        elif op == INJECT:
            placed += n
            if placed > len(buffer):
                raise ParserError(f"INJECT of {placed} bytes, {len(buffer)} are there")
            ops += (op, n)
        elif op == MORE or op == ERROR or op == WAIT:
            ops += (op, n)
            return
        else:
            raise ParserError(f"unknown op {op!r}")


def advance(data: list[bytes], n: int) -> list[bytes]:
    """`data` without its first `n` bytes (fewer if it ends before)."""
    for index, chunk in enumerate(data):
        if n < len(chunk):
            return [chunk[n:] if n else chunk, *data[index + 1 :]]
        n -= len(chunk)
    return []
