"""The binary protocol: requests judged, replies followed, denials put in their place.

Every message has a header of 24 bytes with its length.  A reply repeats opcode and
opaque of its request, so `pending` holds the (opcode, opaque) of requests that must
be answered; a reply that is not the next one's answers a quiet request, and passes.

A denied request is answered with status 8 and the text "access denied": at once if
no reply is owed, else in its turn.  Behind quiet requests, which may be answered or
not, it has no certain turn: it is sent on as a no-op, whose answer then becomes the
error.

Only requests of the shape that their opcode asks for are sent on; the others are
answered as memcached would and dropped, for memcached 1.6.18 looks for the next
request inside some of them (a stat or gat with a value, an unknown opcode with a
key).

Source: memcached's protocol_binary.h, and the binary protocol page of its wiki.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from struct import Struct

from parsers.memcache.clock import Clock
from parsers.memcache.commands import MAX_KEY, OPCODES, UNKNOWN_OPCODE, Opcode
from parsers.memcache.rule import KeyTest, key_tests
from parsers.memcache.text import MAX_PENDING
from proxylib import DROP, INJECT, MORE, PASS, Connection, EntryType, Matcher, ParserError

HEADER = Struct(">BBHBBHIIQ")
"""magic, opcode, key length, extras length, data type, vbucket or status, body
length, opaque, cas."""

REQUEST_MAGIC, REPLY_MAGIC = 0x80, 0x81
NOOP, STAT = 10, 16

ACCESS_DENIED = 8, b"access denied"
INVALID_ARGUMENTS = 4, b"Invalid arguments"
UNKNOWN_COMMAND = 0x81, b"Unknown command"

STATUS = {
    0: "OK",
    1: "NOT_FOUND",
    2: "EXISTS",
    3: "TOO_LARGE",
    4: "INVALID_ARGUMENTS",
    5: "NOT_STORED",
    6: "NON_NUMERIC",
    8: "ACCESS_DENIED",
    0x20: "AUTH_ERROR",
    0x21: "AUTH_CONTINUE",
    0x81: "UNKNOWN_COMMAND",
    0x82: "OUT_OF_MEMORY",
}
_READ = {0: "HIT", 1: "MISS"}
_READING = frozenset(code for code, shape in OPCODES.items() if shape.action in ("get", "gat"))

_PROTO = "binarymemcached"
_REQUEST = EntryType.Request
_RESPONSE = EntryType.Response
_REFUSED = EntryType.Denied

Owed = tuple[int, int, bytes, bool]
"""A reply owed to the client: opcode and opaque that it repeats; the error to send in
its place, if any; and whether the server sends something that the error replaces."""


def error_reply(opcode: int, opaque: int, status: int, text: bytes) -> bytes:
    """A whole error message."""
    return HEADER.pack(REPLY_MAGIC, opcode, 0, 0, 0, status, len(text), opaque, 0) + text


class BinaryProtocol:
    """Both directions of one binary connection."""

    __slots__ = ("_clock", "_connection", "_last_byte", "_matcher", "_pending", "_quiet", "_tests")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._matcher: Matcher | None = None
        self._tests: Mapping[str, KeyTest] = {}
        self._pending: deque[Owed] = deque()
        self._clock = Clock(connection.monotonic_ns, self._pending)
        self._quiet = False
        """Whether quiet requests were sent since the last one with a certain reply."""
        self._last_byte = ""
        """The status of an owed reply that has passed but for its last byte."""

    def requests(self, end_stream: bool, data: bytes, ops: list[int]) -> None:
        """Judge the requests at the front of `data`."""
        before = len(self._pending)
        self._judge(end_stream, data, ops)
        self._clock.requested(before)

    def _judge(self, end_stream: bool, data: bytes, ops: list[int]) -> None:
        connection = self._connection
        if (matcher := connection.matcher) is not self._matcher:
            self._matcher = matcher
            self._tests = key_tests(matcher)
        tests = self._tests
        pending = self._pending
        if len(pending) > MAX_PENDING:
            raise ParserError(f"more than {MAX_PENDING} requests wait for their replies")
        log = connection.log
        position, size = 0, len(data)
        need = 1
        while position < size:
            if size - position < 24:
                need = 24 - (size - position)
                _check_magic(data[position], REQUEST_MAGIC)
                break
            magic, opcode, key_length, extras, _, _, body, opaque, _ = HEADER.unpack_from(
                data, position
            )
            if magic != REQUEST_MAGIC or key_length + extras > body:
                _check_magic(magic, REQUEST_MAGIC)
                raise ParserError(
                    f"opcode {opcode}: extras of {extras} bytes and a key of {key_length}"
                    f" in a body of {body}"
                )
            shape = OPCODES.get(opcode, UNKNOWN_OPCODE)
            end = position + 24 + body
            # A header that is wrong by itself is refused without waiting for a key.
            error = _misshapen(shape, key_length, extras, body)
            key = b""
            if error is None:
                key_start = position + 24 + extras
                key_end = key_start + key_length
                if key_end > size:
                    need = key_end - size
                    break
                key = data[key_start:key_end]
            fields = {"opcode": opcode, "key": key}
            if error is not None:
                fields["status"] = error[1]
            elif not tests[shape.action](key):
                error = ACCESS_DENIED
            if error is None:
                log(_REQUEST, fields, _PROTO)
                ops += (PASS, end - position)
                if shape.quiet:
                    self._quiet = True
                else:
                    self._quiet = False
                    pending.append((opcode, opaque, b"", False))
            else:
                log(_REFUSED, fields, _PROTO)
                self._refuse(opcode, opaque, error_reply(opcode, opaque, *error), ops)
                ops += (DROP, end - position)
            if end > size:
                return
            position = end
        if end_stream and position < size:
            log(_REFUSED, {"status": "the connection ends inside a request"}, _PROTO)
        ops += (MORE, need)

    def _refuse(self, opcode: int, opaque: int, error: bytes, ops: list[int]) -> None:
        """Answer `error` in its place."""
        if self._quiet:
            self._quiet = False
            self._pending.append((NOOP, opaque, error, True))
            noop = HEADER.pack(REQUEST_MAGIC, NOOP, 0, 0, 0, 0, 0, opaque, 0)
            ops += (INJECT, self._connection.inject(False, noop))
        elif self._pending:
            self._pending.append((opcode, opaque, error, False))
        else:
            self._connection.inject(True, error)

    def replies(self, end_stream: bool, data: bytes, ops: list[int]) -> None:
        """Follow the replies at the front of `data`."""
        connection = self._connection
        pending = self._pending
        log = connection.log
        position, size = 0, len(data)
        need = 1
        clock = self._clock
        clock.start()
        if self._last_byte and data:
            latency = clock.latency()
            opcode, status_text = pending.popleft()[0], self._last_byte
            log(_RESPONSE, {"opcode": opcode, "key": b"", "status": status_text}, _PROTO, latency)
            self._last_byte = ""
            ops += (PASS, 1)
            position = 1
        while True:
            while pending and pending[0][2] and not pending[0][3]:
                ops += (INJECT, connection.inject(True, pending.popleft()[2]))
            if size - position < 24:
                if position < size:
                    need = 24 - (size - position)
                    _check_magic(data[position], REPLY_MAGIC)
                break
            magic, opcode, key_length, _, _, status, body, opaque, _ = HEADER.unpack_from(
                data, position
            )
            _check_magic(magic, REPLY_MAGIC)
            end = position + 24 + body
            owed = pending[0] if pending else None
            answers = owed is not None and owed[0] == opcode and owed[1] == opaque
            if opcode == STAT and answers and not status and key_length:
                # One of the statistics; the last message has no key.
                ops += (PASS, end - position)
                if end > size:
                    return
                position = end
                continue
            latency = 0
            text = (opcode in _READING and _READ.get(status)) or STATUS.get(status) or hex(status)
            if owed is not None and answers:
                if owed[3]:
                    if body:
                        raise ParserError(f"a no-op answered with {body} bytes")
                    pending.popleft()
                    ops += (INJECT, connection.inject(True, owed[2]), DROP, 24)
                    position = end
                    continue
                if end > size:
                    # Its last byte waits, so that what is owed next cannot overtake it.
                    self._last_byte = text
                    ops += (PASS, end - 1 - position)
                    if end - 1 == size:
                        ops += (MORE, 1)
                    return
                latency = clock.latency()
                pending.popleft()
            log(_RESPONSE, {"opcode": opcode, "key": b"", "status": text}, _PROTO, latency)
            ops += (PASS, end - position)
            if end > size:
                return
            position = end
        if end_stream and position < size:
            # The server is gone: the client may have what there is.
            ops += (PASS, size - position)
        elif position < size:
            ops += (MORE, need)


def _check_magic(magic: int, expected: int) -> None:
    if magic != expected:
        raise ParserError(f"a binary message begins with {expected:#x}, not {magic:#x}")


def _misshapen(shape: Opcode, key_length: int, extras: int, body: int) -> tuple[int, bytes] | None:
    """The error for a request that is not to be sent on because of its shape."""
    if not shape.known:
        return UNKNOWN_COMMAND if key_length or extras else None
    if (
        extras not in shape.extras
        or key_length > MAX_KEY
        or (shape.key is not None and shape.key != (key_length > 0))
        or (body > key_length + extras and not shape.value)
    ):
        return INVALID_ARGUMENTS
    return None
