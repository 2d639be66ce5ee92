"""Lines, some of which announce a body: ``GET key`` and ``PUT key 5``, then 5 bytes and CRLF."""

import re

from proxylib import (
    DROP,
    MORE,
    PASS,
    EntryType,
    Exact,
    L7Rule,
    Message,
    Parser,
    ParserError,
    Prefix,
    parser,
)

LIMIT = 512
REQUEST = re.compile(rb"(?:(GET) ([^ ]+)|(PUT) ([^ ]+) ([0-9]{1,9}))")


@parser("recipe.text")
class Text(Parser):
    """Bodies are passed or dropped unseen, whatever their size."""

    class Rule(L7Rule):
        cmd = Exact("GET", "PUT")
        key = Prefix()

    def on_data(self, reply, end_stream, data):
        text = b"".join(data)
        end = text.find(b"\r\n", 0, LIMIT)
        if end < 0:
            if len(text) >= LIMIT:
                raise ParserError(f"a line of more than {LIMIT} bytes")
            return MORE, 1
        if reply:
            # Line by line: between two of them is the place for an error of ours.
            return PASS, end + 2
        found = REQUEST.fullmatch(text, 0, end)
        if found is None:
            raise ParserError(f"not a request: {text[: min(end, 40)]!r}")
        body = found[5]
        message = Message(cmd=found[1] or found[3], key=found[2] or found[4])
        whole = end + 2 + (int(body) + 2 if body else 0)
        if self.connection.matches(message):
            self.connection.log(EntryType.Request, message)
            return PASS, whole
        self.connection.log(EntryType.Denied, message)
        self.connection.inject(True, b"DENIED\r\n")
        return DROP, whole
