"""memcached: the text protocol with its meta commands, and the binary protocol.

Which one a connection speaks shows in the first byte of each direction (128 and
above: binary); the directions are looked at apart because a server that has too
many connections says so in text whatever the client speaks.

What a policy can say is in rule.py and commands.py.  How requests are judged,
replies followed and denials placed among pipelined replies is told in text.py and
binary.py; which malformed lines are refused, and why none is ever sent on, in
lines.py.

Good to know:

- A request that is not understood needs a rule for everything (``- command:``).
- A denied request with ``noreply`` vanishes, as does a denied ``quit``; a denied
  quiet request (flag q, quiet opcodes) is answered, as memcached answers errors.
- The first denied request behind a quiet meta request reaches the server as ``mn``,
  unless an ``mn`` of the client's own stands between: its error needs a certain place.
- The server must know the meta commands (1.6): an older one takes the value of
  ``ms`` for requests.
- ``watch`` turns the connection into a stream of log lines, which pass unread.
- A storage command whose length is not a plain number closes the connection.
- memcached's ASCII authentication (``-Y``) is a ``set`` of any key, so a policy must
  allow one. Until then such a server takes values for lines; do not rely on
  restricting the commands of clients that have its password.
"""

from __future__ import annotations

from collections.abc import Callable

from parsers.memcache.binary import BinaryProtocol
from parsers.memcache.rule import Rule
from parsers.memcache.text import TextProtocol
from proxylib import BatchParser, Connection, parser

Handler = Callable[[bool, bytes, list[int]], None]


@parser("memcache")
class Memcache(BatchParser):
    """memcached, text (with meta commands) and binary."""

    Rule = Rule

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._text = TextProtocol(connection)
        self._binary = BinaryProtocol(connection)
        self._requests: Handler = self._first_requests
        self._replies: Handler = self._first_replies

    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        if data:
            (self._replies if reply else self._requests)(end_stream, data, ops)

    def _first_requests(self, end_stream: bool, data: bytes, ops: list[int]) -> None:
        self._requests = self._binary.requests if data[0] > 127 else self._text.requests
        self._requests(end_stream, data, ops)

    def _first_replies(self, end_stream: bool, data: bytes, ops: list[int]) -> None:
        self._replies = self._binary.replies if data[0] > 127 else self._text.replies
        self._replies(end_stream, data, ops)
