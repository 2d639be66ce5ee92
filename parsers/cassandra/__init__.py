"""Cassandra: the native protocol, versions 3, 4 and 5, judged by action and table.

Where to look: actions.py and rule.py for what a policy can say, statements.py for how
CQL is read, requests.py for what is judged, replies.py for what is learnt, known.py for
what passes as the same has before, stream.py and segments.py for how the frames are
found, session.py for what both directions share.
docs/cassandra.md tells what is judged and how, and why compression is decoded.
"""

from __future__ import annotations

from parsers.cassandra.known import KnownReplies, KnownRequests
from parsers.cassandra.replies import Replies
from parsers.cassandra.requests import Requests
from parsers.cassandra.rule import Rule
from parsers.cassandra.session import Session
from parsers.cassandra.stream import Stream
from proxylib import PASS, BatchParser, Connection, EntryType, parser


@parser("cassandra")
class Cassandra(BatchParser):
    """Cassandra's native protocol (CQL), versions 3 to 5."""

    Rule = Rule

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._session = session = Session(connection)
        self._streams = (
            Stream(session, False, KnownRequests(session).judge, Requests(session).judge),
            Stream(session, True, KnownReplies(session).judge, Replies(session).judge),
        )

    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        if not data:
            return
        self._session.now = self.connection.monotonic_ns()
        waiting = self._streams[reply].feed(data, ops)
        if not end_stream or not waiting:
            return
        if reply:
            # The server is gone: the client may have what there is.
            del ops[-2:]
            ops += (PASS, waiting)
        else:
            text = "the connection ends inside a request"
            self.connection.log(EntryType.Denied, {"error": text})
