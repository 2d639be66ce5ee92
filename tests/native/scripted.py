"""Parsers that do what the stream says, and a model of what must come of it.

A frame is a kind, a length of three bytes, and that many bytes of payload (all
below 0x80). Whatever the chunks, the same bytes go out: `SENT` marks bytes that a
parser has put into its own direction, `ACROSS` those it has put into the other.
"""

from __future__ import annotations

import ast
import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from proxylib import (
    DROP,
    INJECT,
    MORE,
    PASS,
    BatchParser,
    Connection,
    FramedParser,
    Message,
    Op,
    Parser,
    lines,
)
from proxylib.parser import ClassFactory
from proxylib.registry import register_parser_factory

HEADER = 4
SENT, ACROSS = b"\xfe", b"\xff"
AHEAD, SKIP, WHOLE, BIT_BY_BIT, ANSWER, CROSS = b"PDWBIX"


def frame(kind: int, payload: bytes) -> bytes:
    return bytes([kind]) + len(payload).to_bytes(3, "big") + payload


def injected(size: int) -> int:
    """Bytes that a frame of `size` bytes of payload has its parser inject."""
    return size % 3000 + 1


@dataclass(frozen=True)
class Script:
    """A stream, what goes on of it, and how much of it goes back."""

    stream: bytes
    out: bytes
    across: int


def random_script(rng: random.Random, frames: int, largest: int) -> Script:
    stream, out, across = bytearray(), bytearray(), 0
    for _ in range(frames):
        kind = rng.choice((AHEAD, SKIP, WHOLE, BIT_BY_BIT, ANSWER, CROSS))
        size = rng.randrange(rng.choice((2, 50, 5000, largest)))
        made = frame(kind, rng.randbytes(size).translate(_LOW))
        stream += made
        if kind == ANSWER:
            out += SENT * injected(size)
        if kind == CROSS:
            across += injected(size)
        elif kind != SKIP:
            out += made
    return Script(bytes(stream), bytes(out), across)


_LOW = bytes(i & 0x7F for i in range(256))


def without_across(out: bytes) -> bytes:
    """`out` without what came from the other direction.

    AssertionError if that stands inside a frame.
    """
    own, at = bytearray(), 0
    while at < len(out):
        if out[at] >= 0x80:
            if out[at : at + 1] == SENT:
                own += SENT
            at += 1
            continue
        end = at + HEADER + int.from_bytes(out[at + 1 : at + HEADER], "big")
        assert out[at + HEADER : end].isascii(), "injected into the middle of a frame"
        own += out[at:end]
        at = end
    return bytes(own)


class Scripted(Parser):
    """One op at a time."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.answered = [False, False]

    def on_data(self, reply: bool, end_stream: bool, data: Sequence[bytes]) -> tuple[Op, int]:
        have = sum(map(len, data))
        if have < HEADER:
            return MORE, HEADER - have
        head = b"".join(data)[:HEADER] if len(data[0]) < HEADER else data[0]
        kind, size = head[0], HEADER + int.from_bytes(head[1:HEADER], "big")
        if kind == SKIP:
            return DROP, size
        if kind == CROSS:
            self.connection.inject(not reply, ACROSS * injected(size - HEADER))
            return DROP, size
        if kind == ANSWER and not self.answered[reply]:
            self.answered[reply] = True
            return INJECT, self.connection.inject(reply, SENT * injected(size - HEADER))
        if kind in (WHOLE, BIT_BY_BIT) and have < size:
            return MORE, size - have if kind == WHOLE else 1
        if kind == ANSWER:
            self.answered[reply] = False
        return PASS, size


class BatchScripted(BatchParser):
    """A chunk at a time."""

    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        at = 0
        while len(data) - at >= HEADER:
            kind = data[at]
            size = HEADER + int.from_bytes(data[at + 1 : at + HEADER], "big")
            have = len(data) - at
            if kind in (WHOLE, BIT_BY_BIT) and have < size:
                ops += (MORE, size - have if kind == WHOLE else 1)
                return
            if kind == CROSS:
                self.connection.inject(not reply, ACROSS * injected(size - HEADER))
            if kind == ANSWER:
                ops += (INJECT, self.connection.inject(reply, SENT * injected(size - HEADER)))
            ops += (DROP if kind in (SKIP, CROSS) else PASS, size)
            at += size
            if at > len(data):
                return
        ops += (MORE, HEADER - (len(data) - at))


class Logger(FramedParser):
    """Every line is the arguments of a log entry, as a Python literal."""

    framing = lines(b"\n", limit=60_000)

    def request(self, line: bytes) -> Message | None:
        self.connection.log(*ast.literal_eval(line.decode()))
        return None


class Asker(FramedParser):
    """Asks itself about every line, and thinks a little: "no" is denied."""

    framing = lines(b"\n")

    def request(self, line: bytes) -> Message:
        return Message(line=line)

    async def ask(self, request: Message) -> bool:
        await asyncio.sleep(0.05)
        return request["line"] != b"no"

    def denied(self, request: Message) -> bytes:
        return b"denied\n"


SCRIPTED = {"scripted": Scripted, "scripted-batch": BatchScripted}
NAMES: dict[str, type[Parser]] = {**SCRIPTED, "logger": Logger, "asker": Asker}

# As a parser file, or as a module of an installation.
if not __name__.startswith("tests."):
    for name, parser in NAMES.items():
        register_parser_factory(name, ClassFactory(parser))
