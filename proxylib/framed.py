"""The framed layer: whole messages in, a verdict out.

An author says how frames are delimited, turns a request frame into a `Message`,
and gives the protocol's own error; framing, policy, log and verdicts follow.
"""

from __future__ import annotations

from typing import ClassVar

from proxylib.framing import Framing
from proxylib.message import Message
from proxylib.ops import DROP, MORE, PASS, EntryType
from proxylib.parser import BatchParser

_REQUEST = EntryType.Request
_DENIED = EntryType.Denied


class FramedParser(BatchParser):
    """Base of parsers that judge one whole frame at a time."""

    framing: ClassVar[Framing]
    """How requests are delimited."""

    reply_framing: ClassVar[Framing | None] = None
    """How replies are delimited; None: like requests."""

    def request(self, frame: bytes) -> Message | None:
        """The properties of one request; None passes it unjudged and unlogged.

        Raise ParserError for a frame that is not of the protocol.
        """
        raise NotImplementedError

    def denied(self, request: Message) -> bytes:
        """The protocol's own error reply to a denied request; empty for none."""
        return b""

    def response(self, frame: bytes) -> None:
        """Hook: see one reply frame, which then passes."""

    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        framing = (self.reply_framing or self.framing) if reply else self.framing
        frame_end, strip = framing.end, framing.strip
        judge = self._reply if reply else self._request
        start = 0
        while (end := frame_end(data, start)) > 0:
            verdict = judge(data[start : end - strip])
            ops += (verdict, end - start)
            start = end
        ops += (MORE, -end)

    def _request(self, frame: bytes) -> int:
        message = self.request(frame)
        if message is None:
            return PASS
        connection = self.connection
        if connection.matches(message):
            connection.log(_REQUEST, message)
            return PASS
        connection.log(_DENIED, message)
        error = self.denied(message)
        if error:
            connection.inject(True, error)
        return DROP

    def _reply(self, frame: bytes) -> int:
        self.response(frame)
        return PASS
