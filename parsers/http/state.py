"""What one connection remembers: replies that are owed, in the order of the requests."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from proxylib import DENIED_BODY, Connection, EntryType, ParserError, Value

MAX_OWED = 4 << 20
"""Most bytes remembered of requests that wait for their replies: those of 8,000 requests
with short paths, which is more than clients pipeline and servers read ahead."""


class Answer(NamedTuple):
    """An answer of ours."""

    text: bytes
    closes: bool = False
    """The connection closes behind it."""


def _answer(status: bytes, body: bytes, *, head_only: bool = False, closes: bool = False) -> Answer:
    head = b"HTTP/1.1 %b\r\ncontent-length: %d\r\ncontent-type: text/plain\r\n%b\r\n"
    text = head % (status, len(body), b"connection: close\r\n" if closes else b"")
    return Answer(text if head_only else text + body, closes)


_DENIED = (b"403 Forbidden", DENIED_BODY)

DENIED = {
    (head_only, closes): _answer(*_DENIED, head_only=head_only, closes=closes)
    for head_only in (False, True)
    for closes in (False, True)
}
"""By whether the request was HEAD, and whether it was the client's last."""

BAD_REQUEST = _answer(b"400 Bad Request", b"Bad request\r\n", closes=True)

CONTINUE = Answer(b"HTTP/1.1 100 Continue\r\n\r\n")

ANSWER_COST = 64


class Asked(NamedTuple):
    """What is remembered of a request for its reply. Requests with the same head share it."""

    fields: dict[str, Value]
    """For the log, but for the path."""
    head_only: bool
    """HEAD: the reply has no body."""
    tunnel: bool
    """The reply may be 101, and the connection then is a WebSocket."""
    cost: int
    """Bytes that a request takes here, about, but for its path."""


Owed = tuple[Asked, bytes, int, int]
"""A reply that the server owes: what was asked, and its path; when, as monotonic_ns has
it; and the bytes that all this takes, about."""


class State:
    """Both directions' memory of one connection."""

    __slots__ = ("connection", "cost", "pending", "replying", "switching", "tunnel")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pending: deque[Owed | Answer] = deque()
        self.cost = 0
        """Bytes in `pending`, about."""
        self.replying = False
        """A reply has begun, and not ended."""
        self.switching = False
        """A request for a WebSocket has gone to the server, and no answer has come."""
        self.tunnel = False
        """The server has switched to WebSocket."""

    def owe(self, owed: Owed | Answer) -> None:
        """A request has gone to the server, or its answer must wait for its turn."""
        self.cost += ANSWER_COST if isinstance(owed, Answer) else owed[3]
        self.pending.append(owed)

    def pop(self) -> None:
        """The next reply that is owed is given."""
        self.replying = False
        owed = self.pending.popleft()
        self.cost -= ANSWER_COST if isinstance(owed, Answer) else owed[3]

    def take_back(self) -> None:
        """What was owed last is not owed any more."""
        owed = self.pending.pop()
        self.cost -= ANSWER_COST if isinstance(owed, Answer) else owed[3]

    def check(self) -> None:
        """Raise ParserError if too much is owed."""
        if self.cost > MAX_OWED:
            raise ParserError(
                f"more than {MAX_OWED} bytes to remember of requests that wait for their replies"
            )

    def log_error(self, reason: str) -> None:
        """Say in the log why the connection is to be closed."""
        self.connection.log(EntryType.Denied, {"status": f"Parser error: {reason}"})
