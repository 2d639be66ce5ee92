"""What both directions of a connection know: what was negotiated, what is under way.

Requests write down what they ask for, by stream id; replies take it up.  Nothing
takes effect by having been asked for: compression and segments begin when STARTUP
is answered, the keyspace changes when the server says so, and a prepared id means
the statement whose PREPARE it answered.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from parsers.cassandra import segments
from parsers.cassandra.frames import SEGMENTED
from parsers.cassandra.statements import Reading, read
from proxylib import Connection, ParserError, Properties, limits

MAX_PREPARED = 1 << 15
"""Most accesses of prepared statements that a connection remembers; the oldest
statement is forgotten, and its client prepares it again."""

MAX_WAITING = 1 << 16
"""Most accesses of requests that wait for their replies."""

MAX_USES = 8
"""Most USE statements under way at a time: until they are answered, an unqualified
table may be in any of their keyspaces."""


class Kind(IntEnum):
    """What must be learnt from a reply."""

    PLAIN = 0
    STARTUP = 1
    PREPARE = 2
    USE = 3


class Asked(NamedTuple):
    """A request that waits for its reply."""

    kind: Kind
    reading: Reading | None = None
    """What the request does; None for one that touches no data."""
    version: int = 0
    """Of a STARTUP: what is in force once it succeeds."""
    compression: str = ""
    done: tuple[Properties, ...] = ()
    """The log's fields of a reply that all is well."""


def asking(reading: Reading, kind: Kind | None = None) -> Asked:
    """A request that does what was read. kind: None for what the reading makes it."""
    if kind is None:
        kind = Kind.PLAIN if reading.use is None else Kind.USE
    done = tuple({**loggable(access), "status": "OK"} for access in reading.accesses)
    return Asked(kind, reading, done=done)


def loggable(access: Properties) -> Properties:
    """The fields of an access's log entry."""
    return {"error": access["error"]} if "error" in access else access


class Session:
    """The state of one connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.version = 0
        """Of the protocol; 0 until STARTUP has succeeded."""
        self.compression = ""
        self.segmented = False
        self.keyspace = b""
        self.uses: list[bytes] = []
        """Keyspaces that USE statements under way ask for."""
        self.asked: dict[int, Asked] = {}
        self.now = 0
        """When what is being read has come, nanoseconds."""
        self.sent: dict[int, int] = {}
        """When the requests that are logged went on, by stream."""
        self.starting: Asked | None = None
        self.prepared: dict[bytes, Asked] = {}
        """What an EXECUTE of an id asks for."""
        self.allowed: dict[bytes, Asked] = {}
        """Those of `prepared` that may pass as they are (known.py)."""
        self.replying = 0
        """Bytes still to come of a reply that is cut over several segments."""
        self.waiting = 0
        """Accesses of the requests in `asked`."""
        self.loose: set[int] = set()
        """Streams of requests under way whose tables depend on the keyspace in use."""
        self._prepared_accesses = 0
        self.deferred = bytearray()
        """Our own replies that wait for the end of that one."""

    def read(self, statement: bytes, keyspace: bytes | None = None) -> Reading:
        """What `statement` does in `keyspace`, or in those that may be in use.

        Raises Unreadable.
        """
        if keyspace is not None:
            return read(statement, keyspace)
        reading = read(statement, self.keyspace)
        if not self.uses:
            return reading
        return together([reading, *(read(statement, use) for use in self.uses)])

    def ask(self, stream: int, asked: Asked) -> None:
        """A request goes to the server. Raises ParserError past a limit."""
        reading = asked.reading
        if reading is not None:
            self.waiting += len(reading.accesses)
            if self.waiting > MAX_WAITING:
                raise ParserError(f"requests for more than {MAX_WAITING} tables wait for replies")
            if asked.kind == Kind.USE and reading.use is not None:
                if len(self.uses) >= MAX_USES:
                    raise ParserError(f"more than {MAX_USES} USE statements under way")
                self.uses.append(reading.use)
                self._widen(reading.use)
            elif reading.loose:
                self.loose.add(stream)
        if asked.kind == Kind.STARTUP:
            self.starting = asked
        self.asked[stream] = asked
        if reading is not None:
            self.sent[stream] = self.now

    def affected(self, asked: Asked) -> list[Properties]:
        """What requests under way do if the USE `asked` takes effect before them."""
        use = asked.reading.use if asked.reading is not None else None
        if use is None:
            return []
        under_way = (self.asked[stream].reading for stream in self.loose)
        return [access for reading in under_way if reading for access in reading.within(use)]

    def _widen(self, use: bytes) -> None:
        """Statements that are being prepared may turn out to be about `use`."""
        for stream in self.loose:
            asked = self.asked[stream]
            if asked.kind == Kind.PREPARE and asked.reading is not None:
                wider = together([asked.reading, Reading(asked.reading.within(use))])
                self.waiting += len(wider.accesses) - len(asked.reading.accesses)
                self.asked[stream] = asking(wider, Kind.PREPARE)

    def answered(self, stream: int) -> int:
        """The reply to a request has been read; returns how long it took, nanoseconds."""
        asked = self.asked.pop(stream)
        reading = asked.reading
        if reading is None:
            if asked.kind == Kind.STARTUP:
                self.starting = None
            return 0
        self.waiting -= len(reading.accesses)
        if asked.kind == Kind.USE and reading.use is not None:
            self.uses.remove(reading.use)
        self.loose.discard(stream)
        return self.now - self.sent.pop(stream)

    def start(self, asked: Asked) -> None:
        """STARTUP has succeeded."""
        self.version = asked.version
        self.compression = asked.compression
        self.segmented = asked.version >= SEGMENTED

    def remember(self, prepared_id: bytes, reading: Reading) -> None:
        """A statement was prepared."""
        self._forget(prepared_id)
        self.prepared[prepared_id] = asking(reading)
        self._prepared_accesses += 1 + len(reading.accesses)
        while self._prepared_accesses > MAX_PREPARED:
            self._forget(next(iter(self.prepared)))

    def _forget(self, prepared_id: bytes) -> None:
        self.allowed.pop(prepared_id, None)
        asked = self.prepared.pop(prepared_id, None)
        if asked is not None and asked.reading is not None:
            self._prepared_accesses -= 1 + len(asked.reading.accesses)

    def answer(self, frame: bytes) -> None:
        """Send a reply of our own, at the next place where one can stand."""
        if self.segmented:
            frame = segments.pack(frame, bool(self.compression))
        if not self.replying:
            self.connection.inject(True, frame)
        elif len(self.deferred) + len(frame) > limits.MAX_INJECT:
            raise ParserError(f"more than {limits.MAX_INJECT} bytes wait to be injected")
        else:
            self.deferred += frame

    def answer_deferred(self) -> int:
        """Send what `answer` has held back; returns its length."""
        n = self.connection.inject(True, bytes(self.deferred))
        self.deferred.clear()
        return n


def together(readings: list[Reading]) -> Reading:
    """All that `readings` do, each access once."""
    accesses = {
        (access["query_action"], access["query_table"], access.get("error")): access
        for reading in readings
        for access in reading.accesses
    }
    loose = {item: None for reading in readings for item in reading.loose}
    return Reading(tuple(accesses.values()), readings[0].use if readings else None, tuple(loose))
