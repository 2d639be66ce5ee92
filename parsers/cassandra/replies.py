"""Replies: paired with their requests by stream id, read only where they teach us.

That is the answer to STARTUP (what is in force from now on), the id that answers a
PREPARE, the keyspace that answers a USE, and the code of an error, for the log.
All else of a reply passes unread.
"""

from __future__ import annotations

from parsers.cassandra import frames
from parsers.cassandra.compression import decompress
from parsers.cassandra.frames import Body, Malformed, Opcode
from parsers.cassandra.session import Asked, Kind, Session
from proxylib import EntryType, ParserError

ERROR, RESULT, EVENT = map(int, (Opcode.ERROR, Opcode.RESULT, Opcode.EVENT))
_STARTED = (Opcode.READY, Opcode.AUTHENTICATE)

_RESPONSE = int(EntryType.Response)

_SET_KEYSPACE = 3
_PREPARED = 4
MAX_ID = 256
"""Longest prepared id that is remembered, bytes; Cassandra's have 16."""

_PREFIXED = frames.TRACING | frames.PAYLOAD | frames.WARNING


class Replies:
    """Follows the replies of one connection."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def judge(
        self, head: tuple[int, int, int, int, int], data: bytes, start: int, have: int
    ) -> bool:
        """Take up what a reply says; always True, for every reply passes.

        The arguments are those of `Requests.judge`. Raises Short, and ParserError
        for a reply that nobody asked for or that cannot be read.
        """
        _, flags, stream, opcode, length = head
        session = self.session
        asked = session.asked.get(stream)
        if asked is None:
            # The server's own news, or its word on a connection that it gives up.
            if (stream < 0 and opcode == EVENT) or opcode == ERROR:
                return True
            raise ParserError(f"a reply on stream {stream}, which nobody asked for")
        status = "OK"
        if opcode == ERROR or (opcode == RESULT and asked.kind != Kind.PLAIN):
            try:
                body = self._open(flags, data, start, have, length)
                if opcode == ERROR:
                    code = body.read_int()
                    status = frames.ERRORS.get(code, f"Error {code:#06x}")
                else:
                    self._learn(asked, body)
            except Malformed as error:
                raise ParserError(f"a reply on stream {stream}: {error}") from error
        elif asked.kind == Kind.STARTUP and opcode in _STARTED:
            session.start(asked)
        latency = session.answered(stream)
        if asked.reading is not None:
            log = session.connection.log
            for fields in asked.done:
                log(
                    _RESPONSE,
                    fields if status == "OK" else {**fields, "status": status},
                    "",
                    latency,
                )
        return True

    def _open(self, flags: int, data: bytes, start: int, have: int, length: int) -> Body:
        """The body of a reply, at its message."""
        if flags & frames.COMPRESSED:
            compression = self.session.compression
            if not compression or self.session.segmented:
                raise Malformed("compressed, which was not negotiated")
            Body(data, start, have, length).skip(length)
            data = decompress(compression, data[start : start + length])
            start, have, length = 0, len(data), len(data)
        body = Body(data, start, have, length)
        if flags & _PREFIXED:
            if flags & frames.TRACING:
                body.skip(16)
            if flags & frames.WARNING:
                body.skip_warnings()
            if flags & frames.PAYLOAD:
                body.skip_payload()
        return body

    def _learn(self, asked: Asked, body: Body) -> None:
        """What the RESULT of a PREPARE or a USE says."""
        kind = body.read_int()
        if asked.kind == Kind.PREPARE and kind == _PREPARED:
            prepared_id = body.read_string()
            if asked.reading is not None and len(prepared_id) <= MAX_ID:
                self.session.remember(prepared_id, asked.reading)
        elif asked.kind == Kind.USE and kind == _SET_KEYSPACE:
            self.session.keyspace = body.read_string()
