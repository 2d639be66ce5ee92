"""Redis, RESP2 and RESP3, judged by command and keys.

What a policy can say is in rule.py; where the keys of a request are, in keys.py and
commands.txt.  How requests are judged is told in requests.py, how replies are followed
and denials placed among them in replies.py.

Good to know:

- A command that the table does not know needs a rule for everything, or by its name.
- A denied request in a transaction reaches the server as one that it refuses, so that it
  fails the transaction itself (EXECABORT).
- Replication (SYNC, PSYNC) and CLIENT REPLY are refused whatever the policy says, and so
  are subscriptions, HELLO and MONITOR in a transaction: replies could not be paired.
- MONITOR needs a rule that names it; from then on the connection may only QUIT.
- Of a request only its command and keys are kept and logged, never a password.
"""

from __future__ import annotations

from parsers.redis.replies import Replies
from parsers.redis.requests import Requests
from parsers.redis.rule import Rule
from parsers.redis.state import State
from proxylib import BatchParser, Connection, parser


@parser("redis")
class Redis(BatchParser):
    """Redis, RESP2 and RESP3."""

    Rule = Rule

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        state = State(connection)
        self._requests = Requests(state)
        self._replies = Replies(state)

    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        (self._replies if reply else self._requests).read(end_stream, data, ops)

    def unparsable(self) -> bytes:
        return b"-ERR the proxy cannot read this request\r\n"
