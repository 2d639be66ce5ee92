"""From server to client: replies paired with requests in their order.

A reply nobody asked for closes the connection, as does one that cannot be read.  Answers
of ours are put in their turn.  Bodies pass unseen, but for the last byte, so that an
answer that is due next cannot overtake it.
"""

from __future__ import annotations

from parsers.http.chunks import Chunks
from parsers.http.heads import CHUNKED, BadMessage, find_end
from parsers.http.reply import REPLY_HEAD, SWITCHING, UNTIL_CLOSE, Reply, read_reply
from parsers.http.state import Answer, Owed, State
from proxylib import (
    DROP,
    ERROR,
    INJECT,
    MORE,
    PASS,
    EntryType,
    ErrorCode,
    ParserError,
    limits,
)

_RESPONSE = EntryType.Response


class Replies:
    """The reply direction of one connection."""

    __slots__ = ("_chunks", "_last", "_last_byte", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._chunks: Chunks | None = None
        """The body that is being read."""
        self._last_byte = False
        """Whether all but the last byte of a reply has passed."""
        self._last: Reply | None = None
        """The last reply: the next one's head may be the same, byte for byte."""

    def on_data(self, end_stream: bool, data: bytes, ops: list[int]) -> None:
        """Follow the replies at the front of `data`."""
        if self._state.tunnel:
            ops += PASS, limits.MAX_OP_BYTES
            return
        try:
            left = self._read(data, ops)
        except BadMessage as bad:
            raise ParserError(f"the server sent {bad}") from None
        else:
            if end_stream and left:
                self._state.log_error("the connection ends inside a reply")

    def _read(self, data: bytes, ops: list[int]) -> bool:
        """Follow the replies in `data`; returns whether the beginning of one is left."""
        state = self._state
        pending = state.pending
        connection = state.connection
        log = connection.log if connection.logged else None
        now = connection.monotonic_ns()
        start, at, size = 0, 0, len(data)
        if self._chunks is not None and data:
            start = at = self._chunks.read(data, 0, ops)
            if at < 0:
                return False
            self._chunks = None
            state.pop()
        elif self._last_byte and data:
            self._last_byte = False
            at = 1
            state.pop()
        while True:
            while pending and isinstance(answer := pending[0], Answer):
                start = _pass(start, at, ops)
                state.pop()
                ops += INJECT, state.connection.inject(True, answer.text)
                if answer.closes:
                    ops += ERROR, ErrorCode.CLOSE
                    return False
            if at >= size:
                break
            if not pending:
                _pass(start, at, ops)
                raise BadMessage("a reply to no request")
            reply = self._last
            if reply is not None and data.startswith(reply.raw, at):
                end = at + len(reply.raw)
            else:
                start = _pass(start, at, ops)
                end = find_end(data, at, REPLY_HEAD)
                if not end:
                    break
                reply = self._last = read_reply(data[at:end])
            owed = pending[0]
            assert not isinstance(owed, Answer), "answers of ours are given at once"
            if reply.status < 200:
                start = _pass(start, at, ops)
                self._interim(reply, owed, ops)
                if state.tunnel:
                    return False
                start = at = end
                continue
            asked, path, since, cost = owed
            if log is not None:
                fields = {**asked.fields, "path": path, "status": reply.status}
                log(_RESPONSE, fields, "http", now - since)
            if asked.tunnel:
                state.switching = False
            length = 0 if asked.head_only else reply.length
            if length >= 0 and end + length <= size and reply.head is reply.raw:
                at = end + length
            else:
                _pass(start, at, ops)
                start = at = self._body(reply, length, data, end, ops)
                if at < 0:
                    return False
            state.replying = False
            pending.popleft()
            state.cost -= cost
        _pass(start, at, ops)
        ops += MORE, 1
        return at < size

    def _interim(self, reply: Reply, owed: Owed, ops: list[int]) -> None:
        """Pass a reply before the reply."""
        if reply.status != SWITCHING:
            self._pass_head(reply, 0, ops)
            return
        if not owed[0].tunnel:
            raise BadMessage("a switch of protocols that nobody asked for")
        if len(self._state.pending) > 1:
            # The client has not waited, and its 400 has no turn any more.
            raise BadMessage("a WebSocket to a client that has said something else meanwhile")
        self._log(reply, owed)
        self._pass_head(reply, 0, ops)
        ops += PASS, limits.MAX_OP_BYTES
        self._state.switching = False
        self._state.tunnel = True
        self._state.pop()

    def _body(self, reply: Reply, length: int, data: bytes, at: int, ops: list[int]) -> int:
        """Pass a reply whose body begins at `at`; returns its end, -1 if it is not there."""
        if length == CHUNKED:
            self._pass_head(reply, 0, ops)
            self._chunks = Chunks(keep_trailers=True)
            at = self._chunks.read(data, at, ops)
            if at >= 0:
                self._chunks = None
                return at
        elif length == UNTIL_CLOSE:
            self._pass_head(reply, 0, ops)
            ops += PASS, limits.MAX_OP_BYTES
        else:
            end = at + length
            if end <= len(data):
                self._pass_head(reply, length, ops)
                return end
            self._pass_head(reply, length - 1, ops)
            if end - 1 == len(data):
                ops += MORE, 1
            self._last_byte = True
        self._state.replying = True
        return -1

    def _pass_head(self, reply: Reply, more: int, ops: list[int]) -> None:
        """Pass a head, and `more` bytes behind it."""
        if reply.head is reply.raw:
            ops += PASS, len(reply.raw) + more
            return
        ops += INJECT, self._state.connection.inject(True, reply.head), DROP, len(reply.raw)
        if more:
            ops += PASS, more

    def _log(self, reply: Reply, owed: Owed) -> None:
        asked, path, since, _ = owed
        connection = self._state.connection
        fields = {**asked.fields, "path": path, "status": reply.status}
        connection.log(_RESPONSE, fields, "http", connection.monotonic_ns() - since)


def _pass(start: int, at: int, ops: list[int]) -> int:
    """Pass what is between; returns `at`."""
    if start < at:
        ops += PASS, at - start
    return at
