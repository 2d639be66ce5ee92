"""An error in its place: behind the replies to the requests that came before."""

from collections import deque

from proxylib import (
    DROP,
    INJECT,
    MORE,
    PASS,
    BatchParser,
    EntryType,
    Exact,
    L7Rule,
    Message,
    ParserError,
    lines,
    parser,
)

FRAMING = lines(b"\r\n", limit=4096)
MAX_OWED = 1000


@parser("recipe.order")
class Order(BatchParser):
    """Clients pipeline, and know a reply by its place alone."""

    class Rule(L7Rule):
        cmd = Exact()

    def __init__(self, connection):
        super().__init__(connection)
        self.owed = deque()  # what the client waits for: None, or an error of ours

    def on_batch(self, reply, end_stream, data, ops):
        take = self.reply if reply else self.request
        start = 0
        while (end := FRAMING.end(data, start)) > 0:
            take(data[start : end - FRAMING.strip], end - start, ops)
            start = end
        ops += MORE, -end

    def request(self, line, size, ops):
        if len(self.owed) >= MAX_OWED:
            raise ParserError(f"more than {MAX_OWED} requests without a reply")
        message = Message(cmd=line.partition(b" ")[0])
        if self.connection.matches(message):
            self.connection.log(EntryType.Request, message)
            self.owed.append(None)
            ops += PASS, size
            return
        self.connection.log(EntryType.Denied, message)
        error = b"-DENIED\r\n"
        if self.owed:
            self.owed.append(error)
        else:
            self.connection.inject(True, error)
        ops += DROP, size

    def reply(self, line, size, ops):
        if not self.owed:
            raise ParserError("a reply to no request")
        self.owed.popleft()
        ops += PASS, size
        while self.owed and self.owed[0] is not None:
            ops += INJECT, self.connection.inject(True, self.owed.popleft())
