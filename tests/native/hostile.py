"""Parsers that misbehave in every way a host must survive.

Installed for the tests under the entry-point group, one name per way; each acts
when a chunk starts with its trigger byte ``!`` and passes everything else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from proxylib import MORE, NOP, PASS, BatchParser, Connection, Op, Parser, ParserFactory
from proxylib.registry import register_parser_factory


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class Bare(BaseException):
    """Derives from nothing that `except Exception` would catch."""


def recurse() -> None:
    recurse()


def raise_(error: BaseException | type[BaseException]) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


ACTIONS: dict[str, Callable[[], object]] = {
    "value": raise_(ValueError("bad value")),
    "system-exit": lambda: sys.exit(3),
    "keyboard-interrupt": raise_(KeyboardInterrupt),
    "recursion": recurse,
    "memory": lambda: bytearray(1 << 62),
    "stop-iteration": raise_(StopIteration("stop")),
    "generator-exit": raise_(GeneratorExit),
    "base": raise_(Bare("bare")),
    "unprintable": raise_(Unprintable()),
    "surrogate": raise_(ValueError("\udcff\x00 odd")),
    "long": raise_(ValueError("x" * 1_000_000)),
    "group": raise_(ExceptionGroup("many", [ValueError("a"), TypeError("b")])),
}

ANSWERS: dict[str, object] = {
    "answer-none": None,
    "answer-text": ("PASS", "1"),
    "answer-three": (PASS, 1, 1),
    "answer-zero": (PASS, 0),
    "answer-negative": (PASS, -1),
    "answer-huge": (PASS, 1 << 80),
    "answer-unknown": (17, 1),
    "answer-float": (PASS, 1.5),
    "answer-inject": (Op.INJECT, 5),
}


class Raises(Parser):
    """Acts on its trigger; otherwise passes."""

    def __init__(self, connection: Connection, act: Callable[[], object]) -> None:
        super().__init__(connection)
        self.act = act

    def on_data(self, reply: bool, end_stream: bool, data: Sequence[bytes]) -> tuple[Op, int]:
        if not data:
            return NOP, 0
        if data[0].startswith(b"!"):
            self.act()
        return PASS, sum(map(len, data))


class Answers(Parser):
    """Answers what no parser may; otherwise passes."""

    def __init__(self, connection: Connection, answer: object) -> None:
        super().__init__(connection)
        self.answer = answer

    def on_data(self, reply: bool, end_stream: bool, data: Sequence[bytes]) -> tuple[Op, int]:
        if not data:
            return NOP, 0
        if data[0].startswith(b"!"):
            return self.answer  # type: ignore[return-value]
        return PASS, sum(map(len, data))


class BatchRaises(BatchParser):
    """Passes a byte and then acts, so that there are ops to throw away."""

    def __init__(self, connection: Connection, act: Callable[[], object]) -> None:
        super().__init__(connection)
        self.act = act

    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        if data.startswith(b"!"):
            ops += (PASS, 1)
            self.act()
        ops += (PASS, len(data)) if data else (MORE, 1)


class Factory(ParserFactory):
    def __init__(self, make: Callable[[Connection], Parser | None]) -> None:
        self.make = make

    def create(self, connection: Connection) -> Parser | None:
        return self.make(connection)


class ClosesBadly(Raises):
    def on_close(self) -> None:
        raise SystemExit("on_close")


def _names() -> dict[str, Callable[[Connection], Parser | None]]:
    made: dict[str, Callable[[Connection], Parser | None]] = {}
    for name, act in ACTIONS.items():
        made[f"raise-{name}"] = lambda connection, act=act: Raises(connection, act)
        made[f"batch-{name}"] = lambda connection, act=act: BatchRaises(connection, act)
        made[f"create-{name}"] = lambda connection, act=act: act()  # type: ignore[misc]
    for name, answer in ANSWERS.items():
        made[name] = lambda connection, answer=answer: Answers(connection, answer)
    made["veto"] = lambda connection: None
    made["close-raises"] = lambda connection: ClosesBadly(connection, lambda: None)
    return made


NAMES = _names()

if __name__ == "hostile":
    for name, make in NAMES.items():
        register_parser_factory(name, Factory(make))
