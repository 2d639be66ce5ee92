"""A chunked body, from one chunk-size line to the next.

The data between passes unseen, by PASS (or DROP) beyond what has arrived; the CRLF
behind it is checked together with the next size.  A size is hexadecimal digits and
nothing else: extensions, blanks and signs are where readers differ, and nobody needs
them.

The trailers of a request are dropped, as Envoy does: a server that takes them for
headers must not find there what no rule has seen.  Those of a reply pass.

Source: RFC 9112, section 7.1.
"""

from __future__ import annotations

import re

from parsers.http.heads import BadMessage, check_trailers, find_end
from proxylib import DROP, MORE, PASS

SIZE_DIGITS = 15
"""Most digits of a chunk size: within limits.MAX_OP_BYTES."""

_FIRST = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n").match
_NEXT = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})\r\n").match
_HALF_FIRST = re.compile(rb"(?:[0-9A-Fa-f]{1,15}\r?)?").fullmatch
_HALF_NEXT = re.compile(rb"\r?|\r\n(?:[0-9A-Fa-f]{1,15}\r?)?").fullmatch
_LONGEST = 2 + SIZE_DIGITS + 2


class Chunks:
    """One chunked body. Made when its head has been read; `read` follows it.

    drop: do not pass it. keep_trailers: pass them too.
    """

    __slots__ = ("_drop", "_first", "_keep_trailers", "_trailers")

    def __init__(self, *, drop: bool = False, keep_trailers: bool = False) -> None:
        self._drop = drop
        self._keep_trailers = keep_trailers
        self._first = True
        self._trailers = False
        """Whether the last chunk has been read."""

    def read(self, data: bytes, at: int, ops: list[int]) -> int:
        """Append ops for the body's part of `data` from `at` on.

        Returns the index of what follows the body, or -1 if `data` does not hold its end:
        the ops then end in MORE, or in one that exceeds the data.
        Raises BadMessage, the ops then being those of what was in order.
        """
        start = at
        try:
            if not self._trailers:
                at = self._skip(data, at)
        except BadChunk as bad:
            self._emit(bad.at - start, ops)
            raise
        self._emit(at - start, ops)
        if at > len(data):
            return -1
        if not self._trailers:
            ops += MORE, 1
            return -1
        return self._end(data, at, ops)

    def _emit(self, n: int, ops: list[int]) -> None:
        if n:
            ops += (DROP if self._drop else PASS), n

    def _skip(self, data: bytes, at: int) -> int:
        """Index behind the chunks that `data` has: perhaps beyond it."""
        size = len(data)
        first = self._first
        while at <= size:
            line = (_FIRST if first else _NEXT)(data, at)
            if line is None:
                part = data[at : at + _LONGEST]
                if not (_HALF_FIRST if first else _HALF_NEXT)(part):
                    raise BadChunk("a chunk size that is not a plain number", at)
                break
            length = int(line[1], 16)
            first = self._first = False
            at = line.end() + length
            if not length:
                self._trailers = True
                break
        return at

    def _end(self, data: bytes, at: int, ops: list[int]) -> int:
        """Read the trailers at `at`."""
        if data.startswith(b"\r\n", at):
            self._emit(2, ops)
            return at + 2
        if len(data) - at < 2 and b"\r\n".startswith(data[at:]):
            ops += MORE, 2 - (len(data) - at)
            return -1
        end = find_end(data, at, "the trailers")
        if not end:
            ops += MORE, 1
            return -1
        check_trailers(data[at:end])
        if self._drop or self._keep_trailers:
            self._emit(end - at, ops)
        else:
            ops += (DROP, end - 2 - at, PASS, 2)
        return end


class BadChunk(BadMessage):
    """A chunk cannot be read; `at` is where those before it end."""

    def __init__(self, reason: str, at: int) -> None:
        super().__init__(reason)
        self.at = at
