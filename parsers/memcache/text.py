"""The text protocol: requests judged, replies followed, denials put in their place.

A denied request is answered ``CLIENT_ERROR access denied``.  If no reply is owed
to the client, that goes out at once; otherwise it waits in `pending`, the queue of
owed replies, until those before it have passed.

Meta requests with the q flag may or may not be answered, so they are not in the
queue.  From one of them up to the next ``mn``, the no-op, no reply can be told for
certain to be the one that is owed next: a quiet request's error looks like any
other's.  There a denied request is itself sent on as ``mn``, whose answer then
becomes the error: MN answers nothing else, so when it comes, all that was asked
before has been answered.  Which of the replies before it belong to which requests
is a guess by their form, and matters to the log alone.

A value is passed (or dropped) by its announced length, unseen and whatever its
size.  The commonest messages (get with one key, set, a hit, a stored) have fast
paths; everything else is read by lines.py.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from functools import lru_cache

from parsers.memcache.clock import Clock
from parsers.memcache.commands import Reply
from parsers.memcache.lines import Request, parse
from parsers.memcache.replies import (
    BARRIER,
    DENIED,
    LINE,
    LIST,
    LISTING,
    META,
    META_VALUE,
    NOOP,
    NOTHING,
    OWED,
    UNKNOWN,
    VALUE,
    VALUES,
    WATCH,
    Owed,
    fits,
    status_of,
)
from parsers.memcache.rule import Compiled, KeyTest, key_tests
from proxylib import DROP, INJECT, MORE, PASS, Connection, EntryType, Matcher, ParserError

ACCESS_DENIED = b"CLIENT_ERROR access denied\r\n"

MAX_LINE = 2048
"""Longest request line, bytes: memcached closes a connection that sends more
without a line end."""

MAX_KEYS_LINE = 256 << 10
"""Longest line of a request for several keys, bytes: a thousand of the longest
keys. memcached itself has no limit there."""

MAX_REPLY_LINE = 64 << 10
"""Longest reply line, bytes; memcached's are below 3 KiB."""

MAX_PENDING = 1 << 18
"""Most replies owed to one client: more requests than Envoy's and the kernel's
buffers hold between client and server. Most entries are a pointer."""

_PROTO = "textmemcached"
_REQUEST = EntryType.Request
_RESPONSE = EntryType.Response
_REFUSED = EntryType.Denied

# Nothing possessive or atomic: before 3.11.5 CPython may keep half of a repeated group.
_GETS = re.compile(rb"(get) ([^\x00-\x20\x7f]{1,250})()\r\n(?:get [^\x00-\x20\x7f]{1,250}\r\n)*")
_SET = re.compile(
    rb"set ([^\x00-\x20\x7f]{1,250}) [0-9]{1,9} (?:-?[0-9]{1,9}|1[0-9]{9}) ([0-9]{1,9})"
    rb"( noreply)?\r\n"
)
_META_GETS = re.compile(
    rb"(mg) ([^\x00-\x20\x7f]{1,250})((?: [cfhklstv]){0,8})\r\n"
    rb"(?:mg [^\x00-\x20\x7f]{1,250}\3\r\n)*"
)
"""With flags that change neither what mg does nor whose reply is whose."""
_META_REPLY = re.compile(
    rb"(?:(EN|HD(?: [^\r\n]{0,256})?)|VA ([0-9]{1,10})(?: [^\r\n]*)?)\r\n"
).match
_SHORT_META = {b"EN\r\n": b"EN", b"HD\r\n": b"HD"}
_PLAIN_VALUE = re.compile(rb"VALUE [^\n ]+ [0-9]+ ([0-9]{1,10})\r\n").match
_MANY_KEYS = re.compile(rb" *(?:b?gets?|gats?) ")
_G, _S, _M, _V = b"gsmV"
_RUNS = {_G: _GETS.match, _M: _META_GETS.match}
"""Requests of one key, all alike but for the key, by their first byte."""


class TextProtocol:
    """Both directions of one text connection."""

    __slots__ = (
        "_at_once",
        "_clock",
        "_connection",
        "_hits",
        "_matcher",
        "_may_get",
        "_may_set",
        "_pending",
        "_quiet",
        "_streaming",
        "_tests",
        "_value_end",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._matcher: Matcher | None = None
        self._tests: Mapping[str, KeyTest] = {}
        self._may_get: KeyTest = bool
        self._may_set: KeyTest = bool
        self._at_once = False
        """Whether several requests can be judged before they are logged."""
        self._pending: deque[Owed] = deque()
        self._clock = Clock(connection.monotonic_ns, self._pending)
        self._quiet = False
        """Whether quiet requests were sent since the last no-op."""
        self._hits = False
        """Whether the reply that is passing has had a value."""
        self._value_end = False
        """Whether a meta value has passed but for the CRLF behind it."""
        self._streaming = False
        """Whether the connection has become a watcher."""

    def _use(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._tests = key_tests(matcher)
        # Audit mode's matcher, and others that are not ours, must be asked entry by entry.
        self._at_once = isinstance(matcher, Compiled)
        self._may_get = self._tests["get"]
        self._may_set = self._tests["set"]

    def requests(self, end_stream: bool, data: bytes, ops: list[int]) -> None:
        """Judge the requests at the front of `data`."""
        before = len(self._pending)
        self._judge(end_stream, data, ops)
        self._clock.requested(before)

    def _judge(self, end_stream: bool, data: bytes, ops: list[int]) -> None:
        connection = self._connection
        if (matcher := connection.matcher) is not self._matcher:
            self._use(matcher)
        pending = self._pending
        if len(pending) > MAX_PENDING:
            raise ParserError(f"more than {MAX_PENDING} requests wait for their replies")
        log, logged = connection.log, connection.logged
        runs = _RUNS.get
        position, size = 0, len(data)
        while position < size:
            first = data[position]
            if (
                not self._quiet
                and (run := runs(first))
                and (match := run(data, position))
                and _distinct(match[3])
            ):
                position = self._gets(match, logged, ops)
                continue
            if first == _S and not self._quiet and (match := _SET.match(data, position)):
                key, length, noreply = match.groups()
                end = match.end() + int(length) + 2
                fields = {"command": b"set", "keys": key}
                if self._may_set(key):
                    if logged:
                        log(_REQUEST, fields, _PROTO)
                    if noreply is None:
                        pending.append(OWED[b"set"])
                    ops += (PASS, end - position)
                else:
                    log(_REFUSED, fields, _PROTO)
                    if noreply is None:
                        self._refuse(ACCESS_DENIED, end - position, ops)
                    else:
                        ops += (DROP, end - position)
            else:
                line_end = data.find(b"\n", position) + 1
                _check_line(data, position, line_end or size)
                if not line_end:
                    break
                end = self._request(data[position:line_end], ops) + line_end
            if end > size:
                return
            position = end
        if end_stream and position < size:
            log(_REFUSED, {"status": "the connection ends inside a request line"}, _PROTO)
        ops += (MORE, 1)

    def _gets(self, match: re.Match[bytes], logged: bool, ops: list[int]) -> int:
        """Judge requests that are alike but for their keys; returns their end."""
        command, key, flags = match.groups()
        start, end = match.span()
        rest = len(command) + len(flags) + 3
        keys = [key]
        if end - start > rest + len(key):
            line_end = flags + b"\r\n"
            keys = match[0][len(command) + 1 : -len(line_end)].split(line_end + command + b" ")
        log = self._connection.log
        owed, may_get = OWED[command], self._may_get
        if self._at_once and all(map(may_get, keys)):
            if logged:
                for key in keys:
                    log(_REQUEST, {"command": command, "keys": key}, _PROTO)
            self._pending.extend([owed] * len(keys))
            ops += (PASS, end - start)
            return end
        for key in keys:
            fields = {"command": command, "keys": key}
            if may_get(key):
                log(_REQUEST, fields, _PROTO)
                self._pending.append(owed)
                ops += (PASS, rest + len(key))
            else:
                log(_REFUSED, fields, _PROTO)
                self._refuse(ACCESS_DENIED, rest + len(key), ops)
        return end

    def _request(self, line: bytes, ops: list[int]) -> int:
        """Judge any request line; returns the length of the value behind it."""
        request = parse(line[: -2 if len(line) > 2 and line[-2] == 13 else -1])
        fields = {"command": request.command, "keys": request.logged_keys}
        length = len(line) + request.value
        error = request.error or (b"" if self._allows(request) else ACCESS_DENIED)
        if not error:
            self._connection.log(_REQUEST, fields, _PROTO)
            self._owe(request)
            ops += (PASS, length)
            return request.value
        if request.error:
            fields["status"] = error[:-2]
        self._connection.log(_REFUSED, fields, _PROTO)
        if request.silent or request.reply is Reply.NONE:
            ops += (DROP, length)
        else:
            self._refuse(error, length, ops)
        return request.value

    def _allows(self, request: Request) -> bool:
        keys = request.keys or (b"",)
        for action in request.actions:
            test = self._tests[action]
            for key in keys:
                if not test(key):
                    return False
        return True

    def _owe(self, request: Request) -> None:
        if request.quiet:
            self._quiet = True
        elif not request.silent and request.reply is not Reply.NONE:
            owed = OWED.get(request.command, UNKNOWN)
            if self._quiet:
                owed = (owed[0], owed[1], request.tokens)
                self._quiet = request.reply is not Reply.NOOP
            self._pending.append(owed)

    def _refuse(self, error: bytes, length: int, ops: list[int]) -> None:
        """Drop a request of `length` bytes and answer `error` in its place."""
        if self._quiet:
            self._quiet = False
            self._pending.append((BARRIER, error, ()))
            ops += (INJECT, self._connection.inject(False, b"mn\r\n"))
        elif self._pending:
            self._pending.append((DENIED, error, None))
        else:
            self._connection.inject(True, error)
        ops += (DROP, length)

    def replies(self, end_stream: bool, data: bytes, ops: list[int]) -> None:
        """Follow the replies at the front of `data`."""
        clock = self._clock
        clock.start()
        pending = self._pending
        log = self._connection.log if self._connection.logged else None
        short_meta = _SHORT_META.get
        start, position, size = 0, 0, len(data)
        while position < size:
            owed = pending[0] if pending else NOTHING
            kind = owed[0]
            if kind == VALUES and data.startswith(b"END\r\n", position):
                end = position + 5
                status = b"HIT" if self._hits else b"MISS"
                self._hits = False
            elif kind == VALUES and (match := _PLAIN_VALUE(data, position)):
                end = match.end() + int(match[1]) + 2
                if not data.startswith(b"END\r\n", end):
                    self._hits = True
                    position = end
                    continue
                end += 5
                status = b"HIT"
                self._hits = False
            elif (
                kind == LINE
                and owed[2] is None
                and data[position] != _V
                and (end := data.find(b"\n", position) + 1)
            ):
                status = status_of(data[position:end].rstrip(b"\r\n"))
            elif kind == DENIED:
                start = self._pass(start, position, ops)
                self._answer_denied(ops)
                continue
            elif (
                kind == META
                and owed[2] is None
                and not self._value_end
                and not self._streaming
                and (status := short_meta(data[position : position + 4], b""))
            ):
                end = position + 4
            elif (
                kind == META
                and owed[2] is None
                and not self._value_end
                and not self._streaming
                and (match := _META_REPLY(data, position))
                and (end := match.end() + (int(match[2]) + 2 if match[1] is None else 0)) <= size
            ):
                status = match[1] or b"VA"
            else:
                self._pass(start, position, ops)
                end = self._reply(owed, data, position, ops)
                if end > size:
                    return
                start = position
                if end == position:
                    break
                start = position = end
                continue
            if log is not None:
                log(_RESPONSE, {"command": owed[1], "status": status}, _PROTO, clock.latency())
            pending.popleft()
            position = end
        self._pass(start, position, ops)
        if position > size:
            return
        if pending and pending[0][0] == DENIED:
            self._answer_denied(ops)
        if end_stream and position < size:
            # The server is gone: the client may have what there is.
            ops += (PASS, size - position)
        elif position < size:
            ops += (MORE, 1)

    def _answer_denied(self, ops: list[int]) -> None:
        """Send the errors whose turn it is."""
        pending = self._pending
        while pending and pending[0][0] == DENIED:
            ops += (INJECT, self._connection.inject(True, pending.popleft()[1]))

    def _reply(self, owed: Owed, data: bytes, position: int, ops: list[int]) -> int:
        """Follow any reply; returns the position behind it, or as it was if more is needed."""
        size = len(data)
        if self._value_end:
            if size - position < 2:
                return position
            self._value_end = False
            return self._settle(owed, b"VA", position, position + 2, ops)
        if self._streaming:
            # Whole lines, so that an error to a denied request stands between two.
            return self._pass(position, max(data.rfind(b"\n") + 1, position), ops)
        if match := META_VALUE.match(data, position) or VALUE.match(data, position):
            return self._reply_value(owed, match, position, size, ops)
        end = data.find(b"\n", position) + 1
        if not end:
            if size - position > MAX_REPLY_LINE:
                raise ParserError(f"reply line longer than {MAX_REPLY_LINE} bytes")
            return position
        line = data[position:end].rstrip(b"\r\n")
        if line.startswith((b"VALUE ", b"VA ")):
            raise ParserError(f"a reply whose length cannot be read: {line[:60]!r}")
        if owed[0] == LIST and line.startswith(LISTING):
            return self._pass(position, end, ops)
        if line == b"MN":
            owed = self._overtake()
        if not fits(owed, line):
            self._connection.log(_RESPONSE, {"command": b"", "status": status_of(line)}, _PROTO)
            return self._pass(position, end, ops)
        if owed[0] == BARRIER:
            self._pending.popleft()
            ops += (INJECT, self._connection.inject(True, owed[1]), DROP, end - position)
            return end
        if owed[0] == VALUES:
            self._hits = False
        elif owed[0] == WATCH:
            self._streaming = line == b"OK"
        return self._settle(owed, status_of(line), position, end, ops)

    def _overtake(self) -> Owed:
        """What MN answers; replies that were owed before it were taken for others."""
        pending = self._pending
        while pending and pending[0][2] is not None and pending[0][0] not in (NOOP, BARRIER):
            pending.popleft()
        return pending[0] if pending else NOTHING

    def _reply_value(
        self, owed: Owed, header: re.Match[bytes], position: int, size: int, ops: list[int]
    ) -> int:
        """Follow a meta value, or a value that nobody waits for."""
        end = header.end() + int(header[1]) + 2
        if owed[0] == VALUES and header.re is VALUE:
            self._hits = True
            return self._pass(position, end, ops)
        if owed[0] != META or header.re is VALUE or not fits(owed, b"VA" + header[2]):
            self._connection.log(_RESPONSE, {"command": b"", "status": b"VA"}, _PROTO)
            return self._pass(position, end, ops)
        if end <= size:
            return self._settle(owed, b"VA", position, end, ops)
        # Its last bytes wait, so that what is owed next cannot overtake it.
        self._value_end = True
        return self._pass(position, end - 2, ops)

    def _settle(self, owed: Owed, status: bytes, position: int, end: int, ops: list[int]) -> int:
        """Pass the end of the reply that was owed."""
        latency = self._clock.latency()
        self._pending.popleft()
        self._connection.log(_RESPONSE, {"command": owed[1], "status": status}, _PROTO, latency)
        return self._pass(position, end, ops)

    def _pass(self, position: int, end: int, ops: list[int]) -> int:
        if end > position:
            ops += (PASS, end - position)
        return end


@lru_cache(maxsize=1024)
def _distinct(flags: bytes) -> bool:
    """Whether no flag is given twice."""
    given = flags.split()
    return len(set(given)) == len(given)


def _check_line(data: bytes, start: int, end: int) -> None:
    """Raise ParserError for a request line, or the beginning of one, past its limit."""
    if end - start > MAX_LINE:
        limit = MAX_KEYS_LINE if _MANY_KEYS.match(data, start) else MAX_LINE
        if end - start > limit:
            raise ParserError(f"request line longer than {limit} bytes")
