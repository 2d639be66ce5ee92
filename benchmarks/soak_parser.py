"""The parser of the soak: r2d2-like lines, and a panic on demand."""

from __future__ import annotations

from proxylib import FramedParser, L7Rule, Message, Regex, lines, parser


@parser("soak")
class Soak(FramedParser):
    """Lines; the line PANIC raises."""

    framing = lines(b"\r\n")

    class Rule(L7Rule):
        line = Regex()

    def request(self, frame: bytes) -> Message:
        if frame == b"PANIC":
            raise RuntimeError("asked to panic")
        return Message(line=frame)

    def denied(self, request: Message) -> bytes:
        return b"ERROR\r\n"
