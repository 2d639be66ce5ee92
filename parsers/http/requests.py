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

from collections.abc import Callable, Sequence
from typing import cast

from parsers.http.chunks import Chunks
from parsers.http.heads import CHUNKED, MAX_HEAD, BadMessage, find_end
from parsers.http.request import REQUEST_HEAD, Request, Section, read_request, with_edits
from parsers.http.state import (
    BAD_REQUEST,
    CONTINUE,
    DENIED,
    Answer,
    State,
)
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
    log_fields,
    normalize_path,
    path_test,
)

_REQUEST = EntryType.Request
_DENIED = EntryType.Denied


class Requests:
    """The request direction of one connection."""

    __slots__ = ("_chunks", "_last", "_matcher", "_passing", "_state", "_test", "_tested")

    def __init__(self, state: State) -> None:
        self._state = state
        self._chunks: Chunks | None = None
        """The body that is being read."""
        self._passing = False
        """Whether it goes to the server."""
        self._last: Section | None = None
        """The last request's header fields: the next one often has the same."""
        self._test: Callable[[bytes], bool] | None = None
        self._tested: Section | None = None
        self._matcher: Matcher | None = None
        """What says whether a path is allowed with the rest of a request, of which request
        and policy."""

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
        state.check()
        connection = state.connection
        matcher = connection.matcher
        at, size = 0, len(data)
        if self._chunks is not None and data:
            at = self._chunks.read(data, 0, ops)
            if at < 0:
                return False
            self._chunks = None
        start = at
        now = connection.monotonic_ns()
        log = connection.log if connection.logged else None
        while at < size:
            last = self._last
            if last is not None and last.plain and data.startswith(last.before, at):
                # The commonest: as the last one, but for a path in its normal form.
                begin = at + len(last.before)
                path_end = data.find(b" ", begin)
                path = data[begin:path_end]
                end = path_end + len(last.tail)
                if (
                    data.startswith(last.tail, path_end)
                    and normalize_path(path) is path
                    and end - at <= MAX_HEAD
                    and self._allows(path, last, matcher)
                ):
                    if log is not None:
                        log(_REQUEST, {**last.message, "path": path}, "http")
                    self._note(path, last, now)
                    at = end + last.length
                    continue
            if start < at:
                ops += PASS, at - start
                start = at
            at = self._next(data, at, matcher, ops)
            if at < 0:
                return False
            if at == start:
                break
            start = at
        if start < at:
            ops += PASS, at - start
        if at <= size:
            ops += MORE, 1
        return at < size

    def _allows(self, path: bytes, last: Section, matcher: Matcher) -> bool:
        """Whether a request is allowed that has another path than the last one."""
        if last is not self._tested or matcher is not self._matcher:
            self._tested, self._matcher = last, matcher
            self._test = path_test(matcher, last.message)
        if self._test is not None:
            return self._test(path)
        return matcher({**last.message, "path": path}) is True

    def _next(self, data: bytes, at: int, matcher: Matcher, ops: list[int]) -> int:
        """Judge the request that begins at `at`; returns its end.

        That is `at` itself if its head is not all there, and -1 if nothing can follow.
        """
        state = self._state
        if state.switching:
            raise BadMessage("data behind a request for a WebSocket, before its answer")
        # Some old clients end a body with a line end more (RFC 9112 2.2).
        blank = 2 if data.startswith(b"\r\n", at) else 0
        end = find_end(data, at + blank, REQUEST_HEAD)
        if not end:
            return at
        request = read_request(data[at + blank : end], self._last)
        section = self._last = request.section
        length = section.length
        if blank:
            ops += DROP, 2
        came = end - at - blank
        head = self._judge(request, matcher)
        if not head:
            ops += DROP, came
            if not self._deny(request, ops):
                return -1
        elif head is request.head and not request.changed:
            ops += PASS, came
        else:
            ops += INJECT, state.connection.inject(False, head), DROP, came
        if length == CHUNKED:
            self._passing = bool(head)
            self._chunks = Chunks(drop=not head)
            end = self._chunks.read(data, end, ops)
            if end >= 0:
                self._chunks = None
            return end
        if length:
            ops += (PASS if head else DROP), length
        return end + length

    def _judge(self, request: Request, matcher: Matcher) -> bytes:
        """The head to send on, if the request is allowed; else nothing."""
        message, method, path, head, _, section = request
        connection = self._state.connection
        verdict: object = method != b"CONNECT" and matcher(message)
        if isinstance(verdict, HeaderEdits):
            head = with_edits(request, verdict) if verdict else b""
            message = log_fields(message, verdict)
        elif section.shown is not None:
            message["headers"] = cast("Sequence[bytes]", section.shown)
        if not verdict or not head:
            message["status"] = 403
            connection.log(_DENIED, message, "http")
            return b""
        if section.expects:
            self._answer(CONTINUE)
        if section.asked.tunnel:
            self._state.switching = True
        connection.log(_REQUEST, message, "http")
        self._note(path, section, connection.monotonic_ns())
        return head

    def _note(self, path: bytes, section: Section, now: int) -> None:
        """Remember that a request has gone to the server."""
        state = self._state
        asked = section.asked
        if len(path) > limits.MAX_LOG_VALUE:
            path = path[: limits.MAX_LOG_VALUE]
        cost = asked.cost + len(path)
        state.cost += cost
        state.pending.append((asked, path, now, cost))

    def _deny(self, request: Request, ops: list[int]) -> bool:
        """Answer a denied request; returns whether others may follow."""
        section = request.section
        last = section.closes and not section.length
        answer = DENIED[section.asked.head_only, last]
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
