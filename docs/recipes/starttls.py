"""STARTTLS: refused, or let through; what follows is the two sides' secret."""

from proxylib import (
    DROP,
    MORE,
    NOP,
    PASS,
    EntryType,
    Exact,
    L7Rule,
    Message,
    Parser,
    ParserError,
    limits,
    lines,
    parser,
)

FRAMING = lines(b"\r\n", limit=1024)


@parser("recipe.starttls")
class StartTls(Parser):
    """Lines, and a reply of ``220 text`` to STARTTLS begins TLS."""

    class Rule(L7Rule):
        cmd = Exact("STARTTLS", doc="without a rule for it, connections stay readable")

    def __init__(self, connection):
        super().__init__(connection)
        self.owed = 1  # replies to come; the greeting is one
        self.asked = self.secret = False

    def on_data(self, reply, end_stream, data):
        if self.secret:
            # Once per direction: nothing of it comes here any more.
            return PASS, limits.MAX_OP_BYTES
        text = b"".join(data)
        if self.asked and not reply:
            if text:
                # Plain text that the server might take for the first of TLS.
                raise ParserError("the client talks on before TLS has begun")
            return NOP, 0
        end = FRAMING.end(text, 0)
        if end < 0:
            return MORE, -end
        line = text[: end - FRAMING.strip]
        return self.reply(line, end) if reply else self.request(line, end)

    def request(self, line, size):
        if line.upper() != b"STARTTLS":
            self.owed += 1
            return PASS, size
        if self.owed:
            raise ParserError("STARTTLS behind commands without a reply")
        message = Message(cmd=b"STARTTLS")
        if self.connection.matches(message):
            self.connection.log(EntryType.Request, message)
            self.asked = True
            self.owed = 1
            return PASS, size
        self.connection.log(EntryType.Denied, message)
        self.connection.inject(True, b"454 TLS is not available\r\n")
        return DROP, size

    def reply(self, line, size):
        if line[3:4] != b"-":
            self.owed = max(self.owed - 1, 0)
            self.secret = self.asked and line[:3] == b"220"
            self.asked = False
        return PASS, size
