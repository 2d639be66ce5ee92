"""Recording what passes: a parser around the parser.

A `Tap` sees all that the connection's own parser sees (and the one that takes over from
it, if its code is reloaded), and what that passes or drops ahead too: it answers PASS and
DROP only for what has arrived, and carries out the rest itself.  What comes of the
connection is the same; it costs a call of Python for every chunk.  A recording is kept in
memory, within its limit, and becomes a file when it ends.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxylib.connection import Connection
from proxylib.errors import ConfigError
from proxylib.logstream import LogStream
from proxylib.message import Properties
from proxylib.ops import DROP, NOP, PASS, EntryType, Op
from proxylib.parser import BatchParser, Parser
from proxylib.recording import (
    Closed,
    Data,
    Facts,
    Happening,
    Logged,
    Recording,
    Verdict,
    plain,
    redact,
    write_lines,
)

log = logging.getLogger(__name__)

MAX_CONNECTION = 1 << 20
"""Bytes of one connection that are recorded, if nothing else is said."""

MAX_CONNECTIONS = 1000
"""Connections that one run records, if nothing else is said."""

MAX_MEMORY = 256 << 20
"""Bytes of all recordings in memory; what would exceed it is not recorded."""

_NAMES = {int(op): op.name for op in Op}

_HAPPENING_COST = 64
"""Bytes that an op or a log entry counts besides its text."""


@dataclass(eq=False)
class Recorder:
    """Records the connections that it is shown into `folder`, a file each.

    limit: bytes recorded of each; connections: how many, then no more.
    patterns: what is made unreadable before it is written.
    """

    folder: Path
    limit: int = MAX_CONNECTION
    connections: int = MAX_CONNECTIONS
    patterns: Sequence[re.Pattern[bytes]] = ()
    used: int = 0
    """Bytes of the recordings that are in memory."""

    def __post_init__(self) -> None:
        taken = [int(path.name[:6]) for path in self.folder.glob("[0-9]" * 6 + "-*")]
        self._numbers = itertools.count(max(taken, default=0) + 1)
        self._last = max(taken, default=0) + self.connections

    def tap(self, connection: Connection) -> None:
        """Record `connection`, whose parser has just been made."""
        number = next(self._numbers)
        parser = connection.parser
        if number > self._last or parser is None:
            return
        tape = Tape(self, connection, number)
        connection.log = tape.recorded(connection.log)
        if connection.open_audit_log is not None:
            open_log = connection.open_audit_log
            connection.open_audit_log = lambda: tape.recorded(open_log())
        connection.tap = Tap(connection, tape)
        connection.attach(parser)

    def write(self, number: int, recording: Recording) -> None:
        """Write one recording, whole or not at all."""
        name = f"{recording.facts.parser}.jsonl"
        part = self.folder / f".{os.getpid()}-{number}-{name}"
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.writelines(
                    f"{line}\n" for line in write_lines(redact(recording, self.patterns))
                )
            # Others may count here too: the process of an isolated parser's old code.
            while True:
                with suppress(FileExistsError):
                    (self.folder / f"{number:06d}-{name}").hardlink_to(part)
                    break
                number += 1
            part.unlink()
        except OSError as error:
            log.error("cannot write the recording %06d-%s: %s", number, name, error)


def recorder(config: Mapping[str, Any]) -> Recorder:
    """The recorder of a filter's ``record`` setting: ``{"folder": PATH, "limit": BYTES,
    "connections": N, "redact": [REGEX, ...]}``, all but the folder optional.

    Raises ConfigError.
    """
    unknown = set(config) - {"folder", "limit", "connections", "redact"}
    if unknown:
        raise ConfigError(f"record: unknown key {min(unknown)!r}")
    folder, patterns = config.get("folder"), config.get("redact", [])
    numbers = config.get("limit", MAX_CONNECTION), config.get("connections", MAX_CONNECTIONS)
    if not isinstance(folder, str) or not Path(folder).is_dir():
        raise ConfigError(f"record: {folder!r} is not a folder")
    if not all(type(number) is int and number > 0 for number in numbers):
        raise ConfigError("record: limit and connections are numbers greater than 0")
    try:
        compiled = [re.compile(pattern.encode()) for pattern in patterns]
    except (re.error, AttributeError, TypeError) as error:
        raise ConfigError(f"record: redact: {error}") from error
    return Recorder(Path(folder), *numbers, compiled)


class Tape:
    """What has happened on one connection so far."""

    __slots__ = ("_facts", "_happenings", "_number", "_recorder", "_size")

    def __init__(self, recorder: Recorder, connection: Connection, number: int) -> None:
        self._recorder = recorder
        self._number = number
        self._facts = _facts(connection)
        self._happenings: list[Happening] | None = []
        self._size = 0

    def recorded(self, inner: LogStream) -> LogStream:
        """A log that goes to `inner`, and is recorded."""

        def log(entry_type: int, fields: Properties, proto: str = "", latency: int = 0, /) -> None:
            kept = {key: plain(value) for key, value in fields.items()}
            self.add(Logged(EntryType(entry_type).name, proto, kept), len(str(kept)))
            inner(entry_type, fields, proto, latency)

        return log

    def add(self, happening: Happening, size: int) -> None:
        """Keep a happening of `size` bytes, if there is room for it."""
        if self._happenings is None:
            return
        size += _HAPPENING_COST
        recorder = self._recorder
        if self._size + size > recorder.limit or recorder.used + size > MAX_MEMORY:
            self.close("limit")
            return
        self._size += size
        recorder.used += size
        self._happenings.append(happening)

    def close(self, why: str) -> None:
        """End the recording; what happens later is not recorded."""
        happenings, self._happenings = self._happenings, None
        if happenings is not None:
            self._recorder.used -= self._size
            happenings.append(Closed(why))
            self._recorder.write(self._number, Recording(self._facts, tuple(happenings)))


def _facts(connection: Connection) -> Facts:
    policy = connection.instance.policy
    mine = policy.endpoints.get(connection.policy_name)
    raw = next((raw for raw, known in policy.compiled.items() if known is mine), b"")
    return Facts(
        parser=connection.parser_name,
        ingress=connection.ingress,
        src_id=connection.src_id,
        dst_id=connection.dst_id,
        src_addr=connection.src_addr,
        dst_addr=connection.dst_addr,
        policy_name=connection.policy_name,
        policy=raw,
        time=time.time(),
    )


class _Direction:
    """Where one direction's stream has been recorded and consumed to."""

    __slots__ = ("ahead", "ahead_op", "consumed", "ended", "recorded")

    def __init__(self) -> None:
        self.recorded = 0
        self.consumed = 0
        self.ahead = 0
        self.ahead_op = PASS
        self.ended = False


class Tap:
    """What stands around a connection's parsers, one after the other: what both kinds share."""

    __slots__ = ("_connection", "_directions", "_tape")

    def __init__(self, connection: Connection, tape: Tape) -> None:
        self._connection = connection
        self._tape = tape
        self._directions = (_Direction(), _Direction())

    def around(self, parser: Parser) -> Parser:
        """The parser that the connection calls in place of `parser`."""
        if isinstance(parser, BatchParser):
            return BatchTap(self._connection, parser, self)
        return RawTap(self._connection, parser, self)

    def gone(self) -> None:
        """The connection has ended."""
        self._tape.close("gone")

    def arrived(self, reply: bool, end_stream: bool, data: bytes) -> _Direction:
        """Record what of `data`, which begins behind what was consumed, is new."""
        direction = self._directions[reply]
        new = data[direction.recorded - direction.consumed :]
        if new:
            self._tape.add(Data(reply, new), len(new))
            direction.recorded += len(new)
        if end_stream and not direction.ended:
            direction.ended = True
            self._tape.add(Data(reply, end=True), 0)
        return direction

    def answered(self, direction: _Direction, reply: bool, op: int, n: int, have: int) -> int:
        """Record an op, of which `have` bytes are there; returns what to say to the host."""
        self._tape.add(Verdict(reply, _NAMES.get(op, str(op)), n), 0)
        if op not in (PASS, DROP) or n <= 0:
            return n
        direction.ahead, direction.ahead_op = max(n - have, 0), Op(op)
        direction.consumed += min(n, have)
        return min(n, have)

    def ahead(self, direction: _Direction, have: int) -> int:
        """How much of `have` bytes was passed or dropped before it came."""
        n = min(direction.ahead, have)
        direction.ahead -= n
        direction.consumed += n
        return n


class _Forwarding(Parser):
    """What is not recorded goes to the parser inside."""

    _inner: Parser

    def unparsable(self) -> bytes:
        return self._inner.unparsable()

    def on_close(self) -> None:
        self._inner.on_close()


class BatchTap(_Forwarding, BatchParser):
    """Around a `BatchParser`."""

    def __init__(self, connection: Connection, inner: BatchParser, tap: Tap) -> None:
        super().__init__(connection)
        self._inner = self._batch = inner
        self._tap = tap

    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        tap = self._tap
        direction = tap.arrived(reply, end_stream, data)
        if direction.ahead:
            if not data:
                return
            op = direction.ahead_op
            n = tap.ahead(direction, len(data))
            ops += (op, n)
            data = data[n:]
            if not data:
                return
        answers: list[int] = []
        try:
            self._batch.on_batch(reply, end_stream, data, answers)
        finally:
            # What was answered before the parser failed is carried out, too.
            self._tell(direction, reply, len(data), answers, ops)

    def _tell(
        self, direction: _Direction, reply: bool, left: int, answers: list[int], ops: list[int]
    ) -> None:
        for op, n in zip(answers[::2], answers[1::2], strict=True):
            told = self._tap.answered(direction, reply, op, n, left)
            if op in (PASS, DROP):
                left -= told
                if not told:
                    continue
            ops += (op, told)


class RawTap(_Forwarding):
    """Around a parser of the raw layer."""

    def __init__(self, connection: Connection, inner: Parser, tap: Tap) -> None:
        super().__init__(connection)
        self._inner = inner
        self._tap = tap

    def on_data(self, reply: bool, end_stream: bool, data: Sequence[bytes]) -> tuple[Op, int]:
        tap = self._tap
        whole = b"".join(data)
        direction = tap.arrived(reply, end_stream, whole)
        if direction.ahead:
            if not whole:
                return NOP, 0
            return direction.ahead_op, tap.ahead(direction, len(whole))
        answer = self._inner.on_data(reply, end_stream, data)
        try:
            op, n = answer
            ahead_of_all = op in (PASS, DROP) and n > 0 and not whole
        except (TypeError, ValueError):
            # No op: the engine says so.
            return answer
        told = tap.answered(direction, reply, op, n, len(whole))
        # Of what is passed before any of it has come, the host hears when it comes.
        return (NOP, 0) if ahead_of_all else (op, told)
