"""The base of every parser and factory: the raw layer, and its batched form.

`Parser.on_data` is Cilium's OnData, exactly; `BatchParser.on_batch` answers for
all the messages of a chunk in one call, which is what makes pipelined traffic
cheap.  framed.py builds on the latter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from proxylib import limits
from proxylib.ops import Op
from proxylib.rules import L7Rule

if TYPE_CHECKING:
    from proxylib.connection import Connection


class Parser(ABC):
    """One connection's parser. Sans-IO: what it needs comes from `connection`."""

    Rule: ClassVar[type[L7Rule]] = L7Rule
    """The rule class of this protocol; the base class accepts only empty rules."""

    time_budget: ClassVar[float] = limits.TIME_BUDGET
    """Seconds that one call may take, 0.001 to 60; it is interrupted then, which is a panic.
    A redirect's configuration may say otherwise."""

    memory_budget: ClassVar[int] = limits.MEMORY_BUDGET
    """Bytes that a connection's parser may hold; one that holds more is taken from its
    connection, which is a panic. Looked at now and then (native/memory.c)."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @classmethod
    def check_class(cls) -> None:
        """Raise TypeError if this class cannot work, so that its author hears of it when it
        is registered and not at the first connection."""
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing:
            raise TypeError(f"it does not define {', '.join(missing)}")
        rule: object = cls.Rule
        if not (isinstance(rule, type) and issubclass(rule, L7Rule)):
            raise TypeError("its Rule is not a subclass of L7Rule")

    @classmethod
    def self_check(cls) -> None:
        """Hook: raise what you like if this code is not fit to run.

        Called before a new version takes the place of the running one (docs/reload.md).
        Extend it with a dialogue or two (`proxylib.testing.check_dialogue`).
        """
        cls.check_class()

    def migrate(self, old: Parser) -> bool:
        """Hook: take over a running connection from `old`, its parser of the version before.

        Called between two messages or in the middle of one, before any other method;
        `self` is new, made for the same connection. Copy what state there is, and
        return True. By default, and if it raises, `old` goes on to the connection's end.
        """
        return False

    @abstractmethod
    def on_data(self, reply: bool, end_stream: bool, data: Sequence[bytes]) -> tuple[Op, int]:
        """Judge the front of the current input.

        reply: True for bytes from the server to the client.
        end_stream: no more bytes will come in this direction.
        data: the input not yet passed or dropped, in chunks as they arrived;
            empty at the end of the input.

        Called again on what remains after each PASS, DROP or INJECT, until it
        answers MORE, NOP or ERROR.  PASS and DROP may exceed the data. A length is 1 to
        limits.MAX_OP_BYTES; MORE may not ask for more than limits.MAX_HELD in all.
        Raises ParserError for bytes that are not of the protocol.
        """

    def unparsable(self) -> bytes:
        """The protocol's error reply to a stream that this parser has failed on.

        Sent to the client where the redirect's `on_error` is ``deny``; empty for none.
        """
        return b""

    def on_close(self) -> None:  # noqa: B027 - optional hook
        """The connection is gone. Nothing can be sent or judged any more."""


class BatchParser(Parser):
    """A parser that answers for a whole chunk at once.

    Same semantics as `Parser`, in one call: `on_batch` appends the ops that
    `on_data` would have returned one after the other.
    """

    @classmethod
    def check_class(cls) -> None:
        super().check_class()
        if cls.on_data is not BatchParser.on_data:
            raise TypeError(
                "it defines on_data, which is never called in a batch parser: define on_batch, "
                "or derive it from Parser"
            )

    @abstractmethod
    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        """Append flat ops (``ops += PASS, 24``) for all complete messages of `data`.

        reply: True for bytes from the server to the client.
        end_stream: no more bytes will come in this direction.
        data: all input not yet passed or dropped; empty at the end of the input.

        Raises ParserError for bytes that are not of the protocol; the ops before it count.
        An op must not follow MORE, ERROR, or a PASS or DROP that exceeds what is
        left of `data`.
        """

    def on_data(self, reply: bool, end_stream: bool, data: Sequence[bytes]) -> tuple[Op, int]:
        """Never called: the engine calls `on_batch`, whose ops cannot be had one by one."""
        raise NotImplementedError("a batch parser is driven by its connection")


class ParserFactory:
    """Makes the parser of each new connection."""

    rule_class: type[L7Rule] = L7Rule
    """Validates and compiles the L7 rules of policies for this parser."""

    description: str = ""
    """One line for people: what protocol this is."""

    generation: int = 1
    """Counts up each time the code is reloaded."""

    connections: int = 0
    """How many run on this generation's code now."""

    def create(self, connection: Connection) -> Parser | None:
        """The parser of a new connection; called once for each, None refuses it (POLICY_DROP).

        What it raises is a panic, and closes the connection.
        """
        raise NotImplementedError


class ClassFactory(ParserFactory):
    """The factory of a parser class that takes only its connection."""

    def __init__(self, parser_class: Callable[[Connection], Parser]) -> None:
        self.parser_class = parser_class
        self.rule_class = getattr(parser_class, "Rule", L7Rule)
        doc = (getattr(parser_class, "__doc__", None) or "").strip()
        self.description = doc.splitlines()[0] if doc else ""

    def create(self, connection: Connection) -> Parser | None:
        return self.parser_class(connection)

    def __repr__(self) -> str:
        return f"ClassFactory({self.parser_class!r})"
