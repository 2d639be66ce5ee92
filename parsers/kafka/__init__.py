"""Kafka: every API of releases 0.8 to 4.3, in every version, judged by topic.

What a policy can say is in rule.py, and which APIs the roles stand for in roles.py.
How requests are judged is told in judge.py, and what is done about it in requests.py;
replies.py follows the replies.  The layout of messages is data (schemas.txt), read by
schema.py; topics.py makes of it the readers that find topics, wire.py whole messages.

Good to know:

- What is not understood is not negotiated: ApiVersions replies are narrowed to it. A
  request of another API or version closes the connection.
- SaslHandshake version 0 is refused: what follows it could not be told from requests.
- Kafka's own replication and clients' traffic look alike: do not put brokers' traffic
  with each other under a policy that restricts topics.
"""

from __future__ import annotations

from parsers.kafka.replies import Replies
from parsers.kafka.requests import Requests
from parsers.kafka.rule import Rule
from parsers.kafka.state import State
from proxylib import BatchParser, Connection, parser


@parser("kafka")
class Kafka(BatchParser):
    """Kafka, all APIs of 0.8 to 4.3."""

    Rule = Rule

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._state = state = State(connection)
        self._requests = Requests(state)
        self._replies = Replies(state, self._requests)

    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        self._state.now = self.connection.monotonic_ns()
        if reply:
            self._replies.on_data(data, ops)
        else:
            self._requests.on_data(end_stream, data, ops)
