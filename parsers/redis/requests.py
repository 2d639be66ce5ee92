"""The client's stream: requests read as far as their keys, judged, and carried on.

A request is an array of bulk strings, or an inline line.  It is held until its command
and keys are seen; the arguments behind those pass, or are dropped, unread.  Lengths are
taken in their one canonical form, for what another reader takes for another length would
let a request past the policy.
"""

from __future__ import annotations

import re

from parsers.redis.commands import CONTAINERS, Command, command_of
from parsers.redis.inline import MAX_INLINE, split
from parsers.redis.keys import locate, reach
from parsers.redis.rule import judge
from parsers.redis.state import PROTO, Kind, Owed, State
from proxylib import DROP, INJECT, MORE, PASS, EntryType, ParserError

MAX_ARGUMENTS = 1 << 20
"""Most arguments of a request."""

MAX_SEEN = 1 << 15
"""Most arguments that are read to find a request's keys, so that one request takes no
longer than a parser's call may."""

MAX_HELD = 8 << 20
"""Most bytes of a request that wait for its keys."""

MAX_BULK = 512 << 20
"""Longest argument: Redis's own limit."""

MAX_LOGGED_KEYS = 32

SUBSCRIBING = frozenset(
    {b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"SUNSUBSCRIBE"}
)
_NOT_IN_TRANSACTIONS = SUBSCRIBING | {b"HELLO", b"MONITOR"}
_NEVER = {
    b"SYNC": "what replication sends cannot be judged",
    b"PSYNC": "what replication sends cannot be judged",
    b"CLIENT|REPLY": "replies that are left out cannot be paired with their requests",
}

_COUNT = re.compile(rb"\*([1-9][0-9]{0,6})\r\n")
_LENGTH = re.compile(rb"\$(0|[1-9][0-9]{0,8})\r\n")
_COUNT_BEGINS = re.compile(rb"\*(?:[1-9][0-9]{0,6}\r?)?")
_LENGTH_BEGINS = re.compile(rb"(?:\$(?:(?:0|[1-9][0-9]{0,8})\r?)?)?")
_LONGEST_HEADER = 12
_LEAST = 6
"""Bytes of the shortest argument, ``$0``."""

_REQUEST = EntryType.Request
_DENIED = EntryType.Denied


class Requests:
    """The direction from client to server."""

    __slots__ = ("_args", "_count", "_left", "_need", "_op", "_seen", "_state", "_tail")

    def __init__(self, state: State) -> None:
        self._state = state
        self._need = 1
        # A request that is not judged yet: its arguments so far, and where the next begins.
        self._args: list[bytes] = []
        self._count = 0
        self._seen = 0
        # One that is: what becomes of the arguments that are left, and of a CRLF.
        self._op = PASS
        self._left = 0
        self._tail = False

    def read(self, end_stream: bool, data: bytes, ops: list[int]) -> None:
        """Judge the requests at the front of `data`."""
        now = self._state.connection.monotonic_ns()
        position, size = 0, len(data)
        while position < size:
            self._need = 1
            if self._tail or self._left:
                end = self._carry_on(data, position, ops)
            elif self._count or data[position] == 42:  # *
                end = self._array(data, position, ops, now)
            else:
                end = self._line(data, position, ops, now)
            if end > size:
                return
            if end == position:
                break
            position = end
        if end_stream and position < size:
            status = "the connection ends inside a request"
            self._state.connection.log(_DENIED, {"status": status}, PROTO)
        ops += (MORE, self._need)

    def _carry_on(self, data: bytes, position: int, ops: list[int]) -> int:
        """Pass or drop what is left of a judged request; returns the position behind it."""
        if self._tail:
            if not _ends_bulk(data, position):
                return position
            self._tail = False
            ops += (self._op, 2)
            return position + 2
        match = _LENGTH.match(data, position)
        if match is None:
            _check_beginning(_LENGTH_BEGINS, data, position)
            return position
        self._left -= 1
        end = match.end() + _bulk_length(match)
        self._tail = True
        ops += (self._op, end - position)
        return end

    def _array(self, data: bytes, start: int, ops: list[int], now: int) -> int:
        """Read an array of bulk strings as far as its keys, and judge it."""
        size = len(data)
        if not self._count:
            match = _COUNT.match(data, start)
            if match is None:
                _check_beginning(_COUNT_BEGINS, data, start)
                return start
            self._count = int(match[1])
            if self._count > MAX_ARGUMENTS:
                raise ParserError(f"a request of more than {MAX_ARGUMENTS} arguments")
            self._seen = match.end() - start
        args, count = self._args, self._count
        position = start + self._seen
        wanted = _wanted(args, count)
        while True:
            if len(args) >= wanted:
                wanted = _wanted(args, count)
                if len(args) >= wanted:
                    break
            if wanted > MAX_SEEN:
                raise ParserError(f"the keys of a request are among {wanted} arguments")
            # Looked at no sooner, so that it does not matter how the stream is cut.
            missing = _LEAST * (wanted - len(args) - 1) + 1 - (size - position)
            if missing > 0:
                self._need = missing
                return start
            match = _LENGTH.match(data, position)
            if match is None:
                _check_beginning(_LENGTH_BEGINS, data, position)
                return start
            end = match.end() + _bulk_length(match)
            if end + 2 - start > MAX_HELD:
                raise ParserError(f"the keys of a request are not in its first {MAX_HELD} bytes")
            if end + 2 > size:
                self._need = end + 2 - size
                return start
            _ends_bulk(data, end)
            args.append(data[match.end() : end])
            position = end + 2
            self._seen = position - start
        self._args, self._count = [], 0
        self._left = count - len(args)
        self._judge(args, count, position - start, ops, now)
        return position

    def _line(self, data: bytes, start: int, ops: list[int], now: int) -> int:
        """Judge an inline command."""
        end = data.find(b"\n", start) + 1
        if (end or len(data)) - start > MAX_INLINE:
            raise ParserError(f"an inline command longer than {MAX_INLINE} bytes")
        if not end:
            return start
        args = split(data[start : end - 1].removesuffix(b"\r"))
        if args:
            self._judge(args, len(args), end - start, ops, now)
        else:
            ops += (PASS, end - start)
        return end

    def _judge(self, args: list[bytes], count: int, length: int, ops: list[int], now: int) -> None:
        """Pass or drop a request whose first `length` bytes are seen."""
        state = self._state
        connection = state.connection
        command = command_of(args)
        found = locate(command, args, count)
        keys = found.keys
        fields: dict[str, bytes | str | tuple[bytes, ...]] = {
            "command": command.name,
            "keys": keys[0] if len(keys) == 1 else keys[:MAX_LOGGED_KEYS],
        }
        status = self._restriction(command)
        if not status and judge(connection.matcher, command, found):
            self._op = PASS
            connection.log(_REQUEST, fields, PROTO)
            self._owe(command.name, count, now)
        else:
            self._op = DROP
            if status:
                fields["status"] = status
            connection.log(_DENIED, fields, PROTO)
            if instead := state.refuse(command.name, now):
                ops += (INJECT, connection.inject(False, instead))
        ops += (self._op, length)

    def _restriction(self, command: Command) -> str:
        """Why a command cannot be let through, whatever the policy; "" if it can."""
        name, state = command.name, self._state
        if name in _NEVER:
            return _NEVER[name]
        if state.in_transaction and name in _NOT_IN_TRANSACTIONS:
            return "not in a transaction: replies could not be told apart"
        if state.monitoring and name != b"QUIT":
            return "not while monitoring: replies could not be told apart"
        return ""

    def _owe(self, name: bytes, count: int, now: int) -> None:
        """A request has gone on: remember what it does to the connection."""
        state = self._state
        if name in SUBSCRIBING:
            # Without channels: an error, or all that there are.
            state.owe(Owed(Kind.CONFIRMATIONS, name, now, count - 1))
            return
        state.owe(Owed(Kind.REPLY, name, now))
        if name == b"MONITOR":
            state.monitoring = True
        elif count == 1:
            if name == b"MULTI":
                state.in_transaction = True
            elif name in (b"EXEC", b"DISCARD", b"RESET"):
                state.in_transaction = False


def _wanted(args: list[bytes], count: int) -> int:
    """How many arguments must be seen before the request can be judged."""
    if not args:
        return 1
    if len(args) == 1 and args[0].upper() in CONTAINERS:
        return min(2, count)
    return reach(command_of(args), args, count)


def _bulk_length(match: re.Match[bytes]) -> int:
    length = int(match[1])
    if length > MAX_BULK:
        raise ParserError(f"an argument longer than {MAX_BULK} bytes")
    return length


def _ends_bulk(data: bytes, position: int) -> bool:
    """Whether the CRLF behind a bulk string is there; ParserError for anything else."""
    end = data[position : position + 2]
    if not b"\r\n".startswith(end):
        raise ParserError("an argument is not as long as it says")
    return len(end) == 2


def _check_beginning(begins: re.Pattern[bytes], data: bytes, position: int) -> None:
    """Raise ParserError unless more bytes could make a header of what is there."""
    if not begins.fullmatch(data, position, position + _LONGEST_HEADER):
        raise ParserError("a request is an array of bulk strings, with plain lengths")
