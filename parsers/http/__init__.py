"""HTTP/1.1 and HTTP/1.0, between any client and server.

Heads are read strictly, so that no server can see other requests than the policy did
(heads.py, request.py, reply.py); chunked bodies are followed by chunks.py.  How requests
are judged and answered is told in requests.py, how replies are paired with them in
replies.py.  The rules, and the path's normal form, are those of Envoy's HTTP filter form
(`proxylib.HttpRule`): one policy for both.

Good to know:

- A connection that has become a WebSocket passes unread. No other protocol can be
  switched to, and CONNECT is always denied: nobody could judge what comes then.
- ``Expect: 100-continue`` is answered here, and taken out of the request.
- Trailers of requests are dropped.
"""

from __future__ import annotations

from parsers.http.replies import Replies
from parsers.http.requests import Requests
from parsers.http.state import BAD_REQUEST, State
from proxylib import BatchParser, Connection, HttpRule, parser


@parser("http")
class Http(BatchParser):
    """HTTP/1.1 and 1.0, with keep-alive, pipelining and WebSockets."""

    Rule = HttpRule

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        state = State(connection)
        self._requests = Requests(state)
        self._replies = Replies(state)

    def unparsable(self) -> bytes:
        return BAD_REQUEST.text

    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        if reply:
            self._replies.on_data(end_stream, data, ops)
        else:
            self._requests.on_data(end_stream, data, ops)
