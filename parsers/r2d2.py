"""r2d2, the droid's protocol: the example that teaches.

Requests are lines that end in CRLF: READ file, WRITE file, HALT, RESET. Replies
are lines too and pass unread. A denied request is dropped, and ``ERROR`` is
sent in its place.
"""

from __future__ import annotations

from proxylib import Exact, FramedParser, L7Rule, Message, Regex, RuleError, lines, parser


@parser("r2d2")
class R2d2(FramedParser):
    """The droid's protocol: READ file, WRITE file, HALT, RESET."""

    framing = lines(b"\r\n")

    class Rule(L7Rule):
        cmd = Exact("READ", "WRITE", "HALT", "RESET", doc="the command")
        file = Regex(doc="searched for in the file name")

        def check(self) -> None:
            if "file" in self.pairs and self.pairs.get("cmd") in ("HALT", "RESET"):
                raise RuleError("file", self.pairs["file"], f"{self.pairs['cmd']} has no file")

    def request(self, frame: bytes) -> Message:
        cmd, *rest = frame.split(b" ")
        return Message(cmd=cmd, file=rest[0] if len(rest) == 1 else b"")

    def denied(self, request: Message) -> bytes:
        return b"ERROR\r\n"
