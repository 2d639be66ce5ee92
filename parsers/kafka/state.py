"""What one connection remembers: replies that are owed, topic ids, fetch sessions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from parsers.kafka.rule import Grants, grants_of
from proxylib import Connection, Matcher, ParserError, limits

MAX_PENDING = 10_000
"""Most requests that wait for their replies. Java's clients send 5, librdkafka's as many
as its socket buffer takes."""

MAX_TOPIC_IDS = 10_000
"""Most topic ids known at a time; the oldest are forgotten, and asked for again."""

MAX_SESSIONS = 64
"""Most fetch sessions known at a time; a client has one per broker."""

MAX_SESSION_TOPICS = 10_000
"""Most topics of one fetch session; past that the client is made to begin anew."""

PROTO = "kafka"
"""Named in log entries, it makes them typed ones."""

OWN_QUERY = -1
"""In place of the API key: a request of ours for the names of topic ids."""


class Listing(NamedTuple):
    """What is to become of the topics in a Metadata reply.

    client: keep those that this client may see; None: keep none. insert: topics, as
    bytes, to add; how_many of them.
    """

    client: bytes | None
    insert: bytes = b""
    how_many: int = 0


class Owed(NamedTuple):
    """A reply owed to the client (or, for OWN_QUERY, to us).

    answer: ours, whole, if the request was denied. listing: for Metadata. session:
    for Fetch, the topics of the session that the reply may begin. sent: when the request
    went on, nanoseconds.
    """

    correlation: int
    key: int
    version: int
    answer: bytes = b""
    listing: Listing | None = None
    session: frozenset[bytes] | None = None
    sent: int = 0


class State:
    """Both directions' memory of one connection."""

    __slots__ = (
        "_answers",
        "_grants",
        "_matcher",
        "connection",
        "forgotten",
        "now",
        "pending",
        "sessions",
        "topic_ids",
    )

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.now = 0
        """When what is being read has come, nanoseconds."""
        self.pending: deque[Owed] = deque()
        self.topic_ids: dict[bytes, bytes] = {}
        """Names by id, as the server has told them on this connection."""
        self.forgotten = 0
        """How often a topic id has lost the name that it had."""
        self.sessions: dict[object, set[bytes]] = {}
        """Topics by fetch session: its id, or group and member of a share session."""
        self._answers = 0
        """Bytes in `pending` that are to be sent: our answers, and topics for Metadata."""
        self._matcher: Matcher | None = None
        self._grants: Grants = Grants()

    @property
    def grants(self) -> Grants:
        """What the policy of this moment grants."""
        matcher = self.connection.matcher
        if matcher is not self._matcher:
            self._matcher = matcher
            self._grants = grants_of(matcher)
        return self._grants

    def owe(self, owed: Owed) -> None:
        """A request has gone to the server, or its answer must wait for its turn."""
        if len(self.pending) >= MAX_PENDING:
            raise ParserError(f"more than {MAX_PENDING} requests wait for their replies")
        self._answers += _kept(owed)
        if self._answers > limits.MAX_INJECT:
            raise ParserError(f"more than {limits.MAX_INJECT} bytes of answers wait for their turn")
        self.pending.append(owed)

    def answer_next(self) -> bytes:
        """Our answer, if the next reply that is owed is one; it then counts as given."""
        if not self.pending or not self.pending[0].answer:
            return b""
        return self.pop().answer

    def pop(self) -> Owed:
        """The next reply that is owed is given."""
        owed = self.pending.popleft()
        self._answers -= _kept(owed)
        return owed

    def learn(self, topic_id: bytes, name: bytes) -> None:
        """The server says what a topic id stands for."""
        known = self.topic_ids.get(topic_id)
        if known is None and len(self.topic_ids) >= MAX_TOPIC_IDS:
            del self.topic_ids[next(iter(self.topic_ids))]
            self.forgotten += 1
        elif known is not None and known != name:
            self.forgotten += 1
        self.topic_ids[topic_id] = name

    def begin_session(self, key: object, topics: Iterable[bytes]) -> None:
        """A fetch session is about `topics`."""
        self.sessions.pop(key, None)
        if len(self.sessions) >= MAX_SESSIONS:
            del self.sessions[next(iter(self.sessions))]
        self.sessions[key] = set(topics)

    def extend_session(self, key: object, topics: Iterable[bytes]) -> set[bytes] | None:
        """All topics of a fetch session, `topics` among them; None if we do not know it."""
        known = self.sessions.get(key)
        if known is not None:
            known.update(topics)
            if len(known) > MAX_SESSION_TOPICS:
                known = None
                del self.sessions[key]
        return known


def _kept(owed: Owed) -> int:
    return len(owed.answer) + (len(owed.listing.insert) if owed.listing is not None else 0)
