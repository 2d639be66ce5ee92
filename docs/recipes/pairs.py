"""Requests and replies in pairs: each reply's status and latency are in the log."""

from collections import deque

from proxylib import EntryType, Exact, FramedParser, L7Rule, Message, ParserError, lines, parser

MAX_WAITING = 1000


@parser("recipe.pairs")
class Pairs(FramedParser):
    """The server answers in the order of the requests, a line to each."""

    framing = lines(b"\r\n", limit=4096)

    class Rule(L7Rule):
        cmd = Exact()

    def __init__(self, connection):
        super().__init__(connection)
        self.waiting = deque()

    def request(self, frame):
        if len(self.waiting) >= MAX_WAITING:
            raise ParserError(f"more than {MAX_WAITING} requests without a reply")
        message = Message(cmd=frame.partition(b" ")[0])
        self.waiting.append((message, self.connection.monotonic_ns()))
        return message

    def denied(self, request):
        # The server never sees it: no reply is to come.
        self.waiting.pop()
        return b"-DENIED\r\n"

    def response(self, frame):
        if not self.waiting:
            raise ParserError("a reply to no request")
        request, since = self.waiting.popleft()
        latency = self.connection.monotonic_ns() - since
        status = frame.partition(b" ")[0]
        self.connection.log(EntryType.Response, {**request, "status": status}, "", latency)
