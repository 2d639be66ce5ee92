"""Requests: what each asks for, judged.

QUERY and PREPARE carry a statement, EXECUTE an id, BATCH some of each.  All other
requests touch no data: they pass unlogged, as far as they can be read.  A denied
request is answered with Unauthorized on its stream and goes no further; one that
cannot be read, with a protocol error.
"""

from __future__ import annotations

from parsers.cassandra import frames
from parsers.cassandra.compression import ALGORITHMS, decompress
from parsers.cassandra.frames import SEGMENTED, Body, Malformed, Opcode
from parsers.cassandra.session import Asked, Kind, Session, asking, loggable, together
from parsers.cassandra.statements import MAX_ACCESSES, Reading, Unreadable
from proxylib import EntryType, ParserError

QUERY, PREPARE, EXECUTE, BATCH, STARTUP = map(
    int, (Opcode.QUERY, Opcode.PREPARE, Opcode.EXECUTE, Opcode.BATCH, Opcode.STARTUP)
)
_UNLOGGED = frozenset((Opcode.OPTIONS, Opcode.REGISTER, Opcode.AUTH_RESPONSE))
_PLAIN = Asked(Kind.PLAIN)

_REQUEST = int(EntryType.Request)
_DENIED = int(EntryType.Denied)

# Flags of query parameters (section 4.1.4) that decide how they are read.
_VALUES = 0x01
_PAGE_SIZE = 0x04
_PAGING_STATE = 0x08
_SERIAL = 0x10
_TIMESTAMP = 0x20
_NAMES = 0x40
KEYSPACE = 0x80
_PREPARE_KEYSPACE = 0x01

_FIRST_PAYLOAD = 4
"""The first version with custom payloads."""


class Unprepared(Exception):
    """An id that no PREPARE on this connection was answered with."""

    def __init__(self, prepared_id: bytes) -> None:
        self.prepared_id = prepared_id


class Requests:
    """Judges the requests of one connection."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def judge(
        self,
        head: tuple[int, int, int, int, int],
        data: bytes,
        start: int,
        have: int,
    ) -> bool:
        """Whether a request goes on to the server; if not, it has been answered.

        head: the frame's header. data[start:start + have]: what has arrived of its
        body. Raises Short if the verdict needs more, and ParserError for what only
        closing the connection is an answer to.
        """
        session = self.session
        version, _, stream, _, _ = head
        if stream < 0 or stream in session.asked:
            what = "is not a client's" if stream < 0 else "waits for its reply"
            raise ParserError(f"a request on stream {stream}, which {what}")
        try:
            asked = self._read(head, data, start, have)
        except (Malformed, Unprepared) as error:
            self._refuse(version, stream, error)
            return False
        reading = asked.reading
        if reading is not None:
            matches = session.connection.matcher
            log = session.connection.log
            allowed = True
            for access in reading.accesses:
                if not matches(access):
                    allowed = False
                    break
            if allowed and asked.kind == Kind.USE:
                # What is under way may yet be carried out in the new keyspace.
                allowed = all(map(matches, session.affected(asked)))
            entry = _REQUEST if allowed else _DENIED
            for access in reading.accesses:
                log(entry, loggable(access))
            if not allowed:
                session.answer(frames.error(version, stream, frames.UNAUTHORIZED, _why(reading)))
                return False
        session.ask(stream, asked)
        return True

    def _refuse(self, version: int, stream: int, error: Malformed | Unprepared) -> None:
        session = self.session
        if isinstance(error, Unprepared):
            known = error.prepared_id
            text = "unknown prepared query id"
            answer = frames.error(
                version,
                stream,
                frames.UNPREPARED,
                f"Prepared query with ID {known.hex()} not found on this connection",
                len(known).to_bytes(2) + known,
            )
        else:
            text = str(error)
            answer = frames.error(version, stream, frames.PROTOCOL_ERROR, text)
        session.connection.log(_DENIED, {"error": text})
        session.answer(answer)

    def _read(
        self, head: tuple[int, int, int, int, int], data: bytes, start: int, have: int
    ) -> Asked:
        """What a request asks for."""
        session = self.session
        version, flags, _, opcode, length = head
        if session.version and version != session.version:
            raise Malformed(
                f"a request of version {version} on a connection of version {session.version}"
            )
        if flags & ~frames.FLAGS:
            raise Malformed(f"unknown flags {flags:#04x}")
        if flags & frames.COMPRESSED:
            if not session.compression or session.segmented or opcode == STARTUP:
                raise Malformed("a compressed request where none may stand")
            if have < length:
                Body(data, start, have, length).skip(length)
            data = decompress(session.compression, data[start : start + length])
            start, have, length = 0, len(data), len(data)
        body = Body(data, start, have, length)
        if flags & frames.PAYLOAD:
            if version < _FIRST_PAYLOAD:
                # Cassandra 2 does not know the flag, and takes the payload for the statement.
                raise Malformed("a custom payload, which this version does not have")
            body.skip_payload()
        if opcode == QUERY:
            return self._query(version, body)
        if opcode == EXECUTE:
            return self._prepared(body.read_string())
        if opcode == PREPARE:
            return self._prepare(version, body)
        if opcode == BATCH:
            return asking(self._batch(version, body), Kind.PLAIN)
        if opcode == STARTUP:
            return self._startup(version, body)
        if opcode in _UNLOGGED:
            return _PLAIN
        raise Malformed(f"a request with opcode {opcode:#04x}")

    def _query(self, version: int, body: Body) -> Asked:
        statement = body.read_long_string()
        return asking(self._statement(statement, _keyspace(version, body)))

    def _prepare(self, version: int, body: Body) -> Asked:
        statement = body.read_long_string()
        keyspace = None
        if version >= SEGMENTED and body.read_int() & _PREPARE_KEYSPACE:
            keyspace = body.read_string()
        return asking(self._statement(statement, keyspace), Kind.PREPARE)

    def _batch(self, version: int, body: Body) -> Reading:
        body.read_byte()
        parts: list[tuple[bool, bytes]] = []
        for _ in range(body.read_short()):
            kind = body.read_byte()
            if kind > 1:
                raise Malformed(f"a batch with a statement of kind {kind}")
            parts.append((kind == 1, body.read_string() if kind else body.read_long_string()))
            for _ in range(body.read_short()):
                body.skip_value()
        keyspace = _keyspace(version, body)
        readings = [
            self._known(part) if is_id else self._statement(part, keyspace)
            for is_id, part in dict.fromkeys(parts)
        ]
        reading = together(readings)
        if len(reading.accesses) > MAX_ACCESSES:
            return _unreadable(f"a batch that touches more than {MAX_ACCESSES} tables")
        return reading

    def _prepared(self, prepared_id: bytes) -> Asked:
        asked = self.session.prepared.get(prepared_id)
        if asked is None:
            raise Unprepared(prepared_id)
        return asked

    def _known(self, prepared_id: bytes) -> Reading:
        reading = self._prepared(prepared_id).reading
        assert reading is not None, "what was prepared was read"
        return reading

    def _statement(self, statement: bytes, keyspace: bytes | None) -> Reading:
        try:
            return self.session.read(statement, keyspace)
        except Unreadable as error:
            return _unreadable(str(error))

    def _startup(self, version: int, body: Body) -> Asked:
        session = self.session
        if session.version or session.starting is not None:
            raise Malformed("a second STARTUP")
        options: dict[str, str] = {}
        for _ in range(body.read_short()):
            # Cassandra reads names whatever their case.
            name = body.read_string().decode("utf-8", "replace").upper()
            value = body.read_string().decode("utf-8", "replace")
            if name in options:
                raise Malformed(f"STARTUP with two options {name}")
            options[name] = value
        compression = options.get("COMPRESSION", "").lower()
        readable = ALGORITHMS if version < SEGMENTED else ALGORITHMS[:1]
        if "COMPRESSION" in options and compression not in readable:
            raise Malformed(f"compression {compression!r} (known: {', '.join(readable)})")
        return Asked(Kind.STARTUP, None, version, compression)


def _unreadable(text: str) -> Reading:
    """A statement that only a rule for everything allows."""
    return Reading(({"query_action": b"", "query_table": b"", "error": text},))


def _why(reading: Reading) -> str:
    error = next((access["error"] for access in reading.accesses if "error" in access), "")
    return f"Request Unauthorized: {error!s}" if error else "Request Unauthorized"


def _keyspace(version: int, body: Body) -> bytes | None:
    """The keyspace that the parameters of a QUERY or BATCH name, if they do.

    Cassandra reads those of a BATCH as it does a QUERY's, though the specification gives
    them no values and no pages: what we did not skip, it would not take for the keyspace.
    """
    body.skip(2)
    if version < SEGMENTED:
        _no_keyspace(body.read_byte())
        return None
    flags = body.read_int()
    if not flags & KEYSPACE:
        return None
    if flags & _VALUES:
        for _ in range(body.read_short()):
            if flags & _NAMES:
                body.skip(body.read_short())
            body.skip_value()
    if flags & _PAGE_SIZE:
        body.skip(4)
    if flags & _PAGING_STATE:
        body.skip_value()
    if flags & _SERIAL:
        body.skip(2)
    if flags & _TIMESTAMP:
        body.skip(8)
    return body.read_string()


def _no_keyspace(flags: int) -> None:
    if flags & KEYSPACE:
        # Some servers read it all the same: their table would not be ours.
        raise Malformed("a keyspace for one request, which this version does not have")
