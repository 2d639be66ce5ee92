"""The server's stream: replies followed to their ends, and denials put in their places.

Values of RESP2 and RESP3 nest, so a reply is read value by value: `_open` holds how many
are missing on each level.  What is read passes at once; of a reply nothing is kept but
what tells its status.

Beside replies there are pushes, which answer no request: frames of their own type in
RESP3; in RESP2, arrays that a connection with subscriptions gets.  SUBSCRIBE and its like
are answered by such messages, one per channel, whose last number says how many
subscriptions there are now.
"""

from __future__ import annotations

import re

from parsers.redis.state import NOPERM, PROTO, Kind, Owed, State
from proxylib import DROP, INJECT, MORE, PASS, EntryType, ParserError

MAX_REPLY_LINE = 1 << 20
"""Longest line, bytes: an error, or what MONITOR shows of a request."""

MAX_DEPTH = 64
"""Deepest nesting of a reply. Redis's own have less than ten levels; Lua's may have more."""

MAX_ELEMENTS = 1 << 32
"""Most elements of one array: as many as a key can have."""

MAX_BULK = 512 << 20
"""Longest string: Redis's own limit."""

_NUMBER = re.compile(rb"-1|0|[1-9][0-9]{0,9}")
_SIGNED = re.compile(rb"-?[0-9]{1,19}")
_WORD = re.compile(rb"[A-Z][A-Z0-9_]{0,23}")
_LINES = b"+-:,#(_"
_BULKS = b"$=!"
_AGGREGATES = {42: 1, 126: 1, 62: 1, 37: 2, 124: 2}
"""``*~>%|``, and how many values an element has."""
_ARRAY, _PUSH, _ATTRIBUTE, _MAP, _ERROR, _SIMPLE = b"*>|%-+"
_MESSAGES = frozenset({b"message", b"pmessage", b"smessage"})
_MAX_WORD = 32

_RESPONSE = EntryType.Response


class Replies:
    """The direction from server to client."""

    __slots__ = (
        "_channels",
        "_confirmed",
        "_first",
        "_last",
        "_op",
        "_open",
        "_owed",
        "_patterns",
        "_position",
        "_resp3",
        "_shards",
        "_state",
        "_status",
        "_streaming",
        "_tail",
    )

    def __init__(self, state: State) -> None:
        self._state = state
        self._position = 0
        self._open: list[int] = []
        self._tail = False
        """Whether a string has passed but for the CRLF behind it."""
        # The frame that is passing: what it answers, its first byte, its status, the
        # last number in it.
        self._owed: Owed | None = None
        self._op = PASS
        self._first = 0
        self._status = "OK"
        self._last = 0
        # What the server has told: the version, its subscriptions, whether it monitors.
        self._resp3 = False
        self._channels = 0
        self._patterns = 0
        self._shards = 0
        self._streaming = False
        self._confirmed = 0

    def read(self, end_stream: bool, data: bytes, ops: list[int]) -> None:
        """Follow the replies at the front of `data`."""
        state = self._state
        pending, connection = state.pending, state.connection
        now = connection.monotonic_ns()
        size = len(data)
        self._position = 0
        while True:
            if not self._open:
                while pending and pending[0].kind is Kind.DENIAL:
                    pending.popleft()
                    ops += (INJECT, connection.inject(True, NOPERM))
                if self._position == size or not self._begin(data):
                    break
            start = self._position
            try:
                done = self._follow(data)
            finally:
                state.inside_reply = bool(self._open)
                if self._position > start:
                    ops += (self._op, self._position - start)
            if self._position > size:
                return
            if not done:
                break
            self._finish(now, ops)
        if not end_stream or self._position < size:
            ops += (MORE, 1)

    def _begin(self, data: bytes) -> bool:
        """Find out what the next frame answers; False if more of it is needed."""
        pending = self._state.pending
        owed = pending[0] if pending else None
        first = data[self._position]
        self._owed, self._op = owed, PASS
        subscribing = owed is not None and owed.kind is Kind.CONFIRMATIONS
        subscribed = self._channels or self._patterns or self._shards
        if first == _PUSH or (first == _ARRAY and not self._resp3 and (subscribing or subscribed)):
            word = _word(data, self._position)
            if word is None:
                return False
            if owed is not None and subscribing and word.upper() == owed.command:
                pass
            elif first == _PUSH or word in _MESSAGES:
                self._owed = None
            elif owed is None:
                raise ParserError("a reply to no request")
        elif self._streaming and first == _SIMPLE:
            self._owed = None
        elif owed is None:
            # Such as "max number of clients reached"; it has no request.
            if first != _ERROR:
                raise ParserError("a reply to no request")
        elif owed.kind is Kind.REPLACED:
            if first != _ERROR:
                raise ParserError("the server did not refuse what stands for a denied request")
            self._op = DROP
        self._first, self._status, self._last = first, "OK", 0
        self._open.append(1)
        return True

    def _follow(self, data: bytes) -> bool:
        """Read values to the end of the frame; False if more data is needed."""
        size, levels = len(data), self._open
        position = self._position
        while levels:
            if self._tail:
                if size - position < 2:
                    _check_crlf(data, position)
                    return False
                _check_crlf(data, position)
                self._tail = False
                self._position = position = position + 2
                self._close()
                continue
            end = data.find(b"\r\n", position)
            if end < 0 or end - position > MAX_REPLY_LINE:
                if size - position > MAX_REPLY_LINE:
                    raise ParserError(f"a line of a reply is longer than {MAX_REPLY_LINE} bytes")
                if position < size:
                    _check_kind(data[position])
                return False
            kind = data[position]
            _check_kind(kind)
            if kind in _LINES:
                self._note(kind, data, position, end)
                self._position = position = end + 2
                self._close()
                continue
            text = data[position + 1 : end]
            if not _NUMBER.fullmatch(text):
                raise ParserError("a reply has a length that is none")
            number = int(text)
            if kind in _BULKS:
                if number > MAX_BULK:
                    raise ParserError(f"a reply has a string longer than {MAX_BULK} bytes")
                if number < 0:
                    self._note(kind, data, position, end)
                    self._position = position = end + 2
                    self._close()
                    continue
                self._tail = True
                self._position = position = end + 2 + number
                if position > size:
                    return False
                continue
            self._position = position = end + 2
            self._descend(kind, number)
        return True

    def _descend(self, kind: int, number: int) -> None:
        """An aggregate of `number` elements begins."""
        levels = self._open
        if number > MAX_ELEMENTS:
            raise ParserError(f"a reply has more than {MAX_ELEMENTS} elements")
        if len(levels) >= MAX_DEPTH:
            raise ParserError(f"a reply is nested deeper than {MAX_DEPTH}")
        if kind == _ATTRIBUTE or (kind == _PUSH and len(levels) > 1):
            # They stand before a value and are none themselves.
            levels[-1] += 1
        if number < 0 and len(levels) == 1:
            self._status = "NIL"
        if number > 0:
            levels.append(number * _AGGREGATES[kind])
        else:
            self._close()

    def _close(self) -> None:
        """A value has ended, and with it all that it is the last element of."""
        levels = self._open
        levels[-1] -= 1
        while levels and not levels[-1]:
            levels.pop()
            if levels:
                levels[-1] -= 1

    def _note(self, kind: int, data: bytes, position: int, end: int) -> None:
        """Keep of a value on one line what tells the reply's status."""
        if kind == 58:  # :
            if _SIGNED.fullmatch(data, position + 1, end):
                self._last = int(data[position + 1 : end])
        elif len(self._open) == 1:
            if kind == _ERROR or kind == _SIMPLE:
                word = _WORD.match(data, position + 1, min(end, position + 25))
                self._status = word[0].decode() if word else ("ERR" if kind == _ERROR else "OK")
            elif kind in b"$_":
                self._status = "NIL"

    def _finish(self, now: int, ops: list[int]) -> None:
        """A frame has ended."""
        owed, state = self._owed, self._state
        if owed is None:
            return
        if owed.kind is Kind.CONFIRMATIONS and self._first in (_ARRAY, _PUSH):
            if not self._confirm(owed):
                return
        elif owed.kind is Kind.REPLY:
            self._learn(owed.command)
        self._confirmed = 0
        state.pending.popleft()
        if owed.kind is Kind.REPLACED:
            ops += (INJECT, state.connection.inject(True, NOPERM))
            return
        fields: dict[str, bytes | str] = {"command": owed.command, "status": self._status}
        state.connection.log(_RESPONSE, fields, PROTO, now - owed.sent)

    def _confirm(self, owed: Owed) -> bool:
        """A message about a subscription has ended; True if it is the last that is owed."""
        self._confirmed += 1
        command, total = owed.command, self._last
        if command in (b"SSUBSCRIBE", b"SUNSUBSCRIBE"):
            left = self._shards = max(total, 0)
        elif command in (b"PSUBSCRIBE", b"PUNSUBSCRIBE"):
            left = self._patterns = max(total - self._channels, 0)
        else:
            left = self._channels = max(total - self._patterns, 0)
        return self._confirmed >= owed.messages if owed.messages else not left

    def _learn(self, command: bytes) -> None:
        """What a reply says about the connection."""
        if command == b"HELLO" and self._first in (_ARRAY, _MAP):
            self._resp3 = self._first == _MAP
        elif command == b"RESET" and self._first == _SIMPLE:
            self._resp3 = self._streaming = False
            self._channels = self._patterns = self._shards = 0
        elif command == b"MONITOR":
            self._streaming = self._first == _SIMPLE
            self._state.monitoring = self._streaming


def _check_kind(kind: int) -> None:
    if kind not in _LINES and kind not in _BULKS and kind not in _AGGREGATES:
        raise ParserError(f"a reply has no values that begin with {bytes([kind])!r}")


def _check_crlf(data: bytes, position: int) -> None:
    if not b"\r\n".startswith(data[position : position + 2]):
        raise ParserError("a string in a reply is not as long as it says")


def _word(data: bytes, position: int) -> bytes | None:
    """The string that an array or push begins with, b"" if none; None if more is needed."""
    for mark in (b"", b"$"):
        if mark and not data.startswith(mark, position):
            return None if position == len(data) else b""
        end = data.find(b"\r\n", position, position + _MAX_WORD)
        if end < 0:
            return None if len(data) - position < _MAX_WORD else b""
        number = data[position + 1 : end]
        if not _NUMBER.fullmatch(number) or int(number) < 1:
            return b""
        position = end + 2
    length = int(number)
    if length > _MAX_WORD:
        return b""
    return data[position : position + length] if position + length <= len(data) else None
