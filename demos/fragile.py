"""A parser with a bug: a line with BOOM in it is more than it can take."""

from __future__ import annotations

from proxylib import FramedParser, Message, lines, parser


@parser("fragile")
class Fragile(FramedParser):
    """Lines; every one is logged, and BOOM makes it panic."""

    framing = lines(b"\n")

    def request(self, frame: bytes) -> Message:
        if b"BOOM" in frame:
            raise RuntimeError("I did not expect that")
        return Message(line=frame)
