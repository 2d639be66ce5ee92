"""The framed layer: whole messages in, a verdict out.

An author says how frames are delimited, turns a request frame into a `Message`,
and gives the protocol's own error; framing, policy, log and verdicts follow.
"""

from __future__ import annotations

from typing import ClassVar

from proxylib.asking import Answer
from proxylib.framing import Framing, lines
from proxylib.message import Message
from proxylib.ops import DROP, MORE, PASS, WAIT, EntryType
from proxylib.parser import BatchParser

_REQUEST = EntryType.Request
_DENIED = EntryType.Denied


class FramedParser(BatchParser):
    """Base of parsers that judge one whole frame at a time."""

    framing: ClassVar[Framing]
    """How requests are delimited."""

    reply_framing: ClassVar[Framing | None] = None
    """How replies are delimited; None: like requests."""

    @classmethod
    def check_class(cls) -> None:
        super().check_class()
        framings = (getattr(cls, "framing", None), cls.reply_framing or lines())
        if not all(isinstance(framing, Framing) for framing in framings):
            raise TypeError("its framing is not a Framing: use lines() or length_prefix()")
        if cls.request is FramedParser.request:
            raise TypeError("it does not define request")

    def request(self, frame: bytes) -> Message | None:
        """The properties of one request; None passes it unjudged and unlogged.

        frame: as `framing` shows it: `lines` without the delimiter, `length_prefix`
        with its header.

        Raise ParserError for a frame that is not of the protocol.
        """
        raise NotImplementedError

    def denied(self, request: Message) -> bytes:
        """The protocol's own error reply to a denied request; empty for none.

        It is sent at once, between two replies: a client that pipelines may see it
        before the replies to earlier requests. Where that matters, pair requests and
        replies yourself, as parsers/memcache does.
        """
        return b""

    async def ask(self, request: Message) -> bool:
        """Hook: ask somebody else whether a request that the policy allows may go on.

        Runs in a thread of the library, with asyncio, while the connection waits and
        others go on.  No answer within `ask_timeout`, or an exception, is
        `ask_otherwise`; the log then has the reason as ``asked``.
        """
        return True

    ask_timeout: ClassVar[float] = 1.0
    """Seconds that `ask` may take."""

    ask_otherwise: ClassVar[bool] = False
    """What counts where `ask` gives no answer."""

    _asks: ClassVar[bool] = False
    _answer: Answer | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._asks = cls.ask is not FramedParser.ask

    def response(self, frame: bytes) -> None:
        """Hook: see one reply frame, which then passes."""

    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        if reply:
            self._replies(data, ops)
            return
        frame_end, strip = self.framing.end, self.framing.strip
        connection = self.connection
        request, matches, log = self.request, connection.matcher, connection.log
        start = 0
        while (end := frame_end(data, start)) > 0:
            message = request(data[start : end - strip])
            if message is None:
                ops += (PASS, end - start)
            elif matches(message):
                if self._asks and not self._may(message):
                    if self._answer is not None:
                        ops += (WAIT, 1)
                        return
                    self._deny(message, end - start, ops)
                    start = end
                    continue
                log(_REQUEST, message)
                ops += (PASS, end - start)
            else:
                # The policy may have changed while it was asked about.
                self._answer = None
                self._deny(message, end - start, ops)
            start = end
        ops += (MORE, -end)

    def _deny(self, message: Message, length: int, ops: list[int]) -> None:
        self.connection.log(_DENIED, message)
        error = self.denied(message)
        if error:
            self.connection.inject(True, error)
        ops += (DROP, length)

    def _may(self, message: Message) -> bool:
        """What was asked about `message`; asks, if need be. `_answer` is left if it is open."""
        answer = self._answer
        if answer is None:
            answer = self._answer = self.connection.ask(
                self.ask(Message(message)), timeout=self.ask_timeout, otherwise=self.ask_otherwise
            )
        if not answer.ready:
            return False
        self._answer = None
        if answer.failed:
            message["asked"] = answer.failed
        return answer.value

    def _replies(self, data: bytes, ops: list[int]) -> None:
        framing = self.reply_framing or self.framing
        start = 0
        while (end := framing.end(data, start)) > 0:
            self.response(data[start : end - framing.strip])
            ops += (PASS, end - start)
            start = end
        ops += (MORE, -end)
