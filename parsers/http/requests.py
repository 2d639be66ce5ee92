"""From client to server: each request passed on, or answered in the server's place.

Of a request only the head is seen, and the chunk-size lines of a chunked body; the rest
passes or is dropped unseen.  A request that is denied is dropped with its body, and
answered 403 in its turn.

What cannot be read is answered 400, in its turn as well, and the connection then closes;
nothing that comes behind it is looked at.  If it shows only in a body whose head has gone
on, the 400 stands for that request, whose reply the server cannot give any more.

Behind a request for a WebSocket nothing may follow before it is answered: whether it were
a request or not, nobody could tell.
"""

from __future__ import annotations

from parsers.http.chunks import Chunks
from parsers.http.heads import CHUNKED, BadMessage, find_end
from parsers.http.request import REQUEST_HEAD, Request, read_request, with_edits
from parsers.http.state import BAD_REQUEST, CONTINUE, DENIED, Answer, Owed, State
from proxylib import (
    DROP,
    ERROR,
    INJECT,
    MORE,
    PASS,
    EntryType,
    ErrorCode,
    HeaderEdits,
    Matcher,
    OnError,
    ParserError,
    limits,
)

_REQUEST = EntryType.Request
_DENIED = EntryType.Denied


class Requests:
    """The request direction of one connection."""

    __slots__ = ("_chunks", "_last", "_passing", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._chunks: Chunks | None = None
        """The body that is being read."""
        self._passing = False
        """Whether it goes to the server."""
        self._last: Request | None = None
        """The last request: the next one's head is often the same, byte for byte."""

    def on_data(self, end_stream: bool, data: bytes, ops: list[int]) -> None:
        """Judge the requests at the front of `data`."""
        if self._state.tunnel:
            ops += PASS, limits.MAX_OP_BYTES
            return
        try:
            left = self._read(data, ops)
        except BadMessage as bad:
            self._refuse(bad, ops)
        else:
            if end_stream and left:
                self._state.log_error("the connection ends inside a request")

    def _read(self, data: bytes, ops: list[int]) -> bool:
        """Judge the requests in `data`; returns whether the beginning of one is left."""
        state = self._state
        matcher = state.connection.matcher
        at, size = 0, len(data)
        if self._chunks is not None and data:
            at = self._chunks.read(data, 0, ops)
            if at < 0:
                return False
            self._chunks = None
        while at < size:
            if state.switching:
                raise BadMessage("data behind a request for a WebSocket, before its answer")
            # Some old clients end a body with a line end more (RFC 9112 2.2).
            blank = 2 if data.startswith(b"\r\n", at) else 0
            end = find_end(data, at + blank, REQUEST_HEAD)
            if not end:
                break
            raw = data[at + blank : end]
            request = self._last
            if request is None or request.raw != raw:
                request = self._last = read_request(raw, request)
            if blank:
                ops += DROP, 2
            head = self._judge(request, matcher)
            length = request.section.length
            at = end
            if not head:
                ops += DROP, len(raw)
                if not self._deny(request, ops):
                    return False
            elif head is raw or head is request.raw:
                ops += PASS, len(raw)
            else:
                ops += INJECT, state.connection.inject(False, head), DROP, len(raw)
            if length == CHUNKED:
                self._passing = bool(head)
                self._chunks = Chunks(drop=not head)
                at = self._chunks.read(data, at, ops)
                if at < 0:
                    return False
                self._chunks = None
            elif length:
                ops += (PASS if head else DROP), length
                at += length
        if at <= size:
            ops += MORE, 1
        return at < size

    def _judge(self, request: Request, matcher: Matcher) -> bytes:
        """The head to send on, if the request is allowed; else nothing."""
        state = self._state
        connection = state.connection
        verdict: object = not request.tunnels and matcher(request.message)
        head = request.head
        logged = request.logged
        if isinstance(verdict, HeaderEdits):
            head = with_edits(request, verdict) if verdict else b""
        if not verdict or not head:
            connection.log(_DENIED, {**logged, "status": 403}, "http")
            return b""
        connection.log(_REQUEST, logged, "http")
        if request.section.expects:
            self._answer(CONTINUE)
        asked = request.asked
        state.owe(Owed(asked))
        if asked.tunnel:
            state.switching = True
        return head

    def _deny(self, request: Request, ops: list[int]) -> bool:
        """Answer a denied request; returns whether others may follow."""
        last = request.section.closes and not request.section.length
        answer = DENIED[request.asked.head_only, last]
        if last:
            self._end_with(answer, ops)
        else:
            self._answer(answer)
        return not last

    def _answer(self, answer: Answer) -> None:
        """Give an answer of ours in its turn."""
        if self._state.pending:
            self._state.owe(answer)
        else:
            self._state.connection.inject(True, answer.text)

    def _end_with(self, answer: Answer, ops: list[int]) -> None:
        """Give an answer that closes the connection; nothing more is read."""
        at_once = not self._state.pending
        self._answer(answer)
        if at_once:
            ops += ERROR, ErrorCode.CLOSE
        else:
            ops += DROP, limits.MAX_OP_BYTES

    def _refuse(self, bad: BadMessage, ops: list[int]) -> None:
        """Answer what cannot be read."""
        state = self._state
        if state.connection.on_error == OnError.PASS_THROUGH:
            raise ParserError(str(bad)) from None
        state.log_error(str(bad))
        if self._chunks is not None and self._passing and state.pending:
            if state.replying and len(state.pending) == 1:
                # The server answers before it has all: there is no turn for another.
                ops += ERROR, ErrorCode.CLOSE
                return
            state.take_back()
        self._chunks = None
        self._end_with(BAD_REQUEST, ops)
