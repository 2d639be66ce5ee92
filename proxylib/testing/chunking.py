"""Chunking invariance: however a stream is cut, the same must come of it.

A dialogue is what client and server say in turn, as the client and the server
send it.  `check_chunking` runs it whole, byte by byte, and in any cuts given, and
compares the bytes that came out on both sides, the verdicts, and the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from proxylib.ops import DROP, MORE, PASS, WAIT, Op
from proxylib.testing.host import Host, HostClosed, LogRecord

Dialogue = Sequence[tuple[bool, bytes]]
"""Bursts of bytes as (reply, data): reply is True for the server's."""

Cut = Callable[[bytes], Sequence[bytes]]
"""Cuts a burst into chunks."""

Rules = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a dialogue."""

    to_server: bytes
    """All that reached the server."""
    to_client: bytes
    """All that reached the client, errors of the parser's included."""
    verdicts: tuple[tuple[bool, str, int], ...]
    """(reply, op, bytes) in order, neighbours of one kind added up, MORE left out."""
    log: tuple[LogRecord, ...]
    """The access log, in order."""
    closed: bool
    """Whether the engine closed the connection."""


def whole(data: bytes) -> list[bytes]:
    """A burst in one chunk."""
    return [data] if data else []


def byte_by_byte(data: bytes) -> list[bytes]:
    """A burst in chunks of one byte."""
    return [data[i : i + 1] for i in range(len(data))]


def play(
    parser: str,
    dialogue: Dialogue,
    rules: Rules | None = None,
    *,
    deny: Rules = (),
    cut: Cut = whole,
) -> Outcome:
    """Run `dialogue` under `parser`, each burst cut by `cut`.

    Ends early if the connection is closed.

    rules, deny: as in `Host`.
    """
    host = Host(parser, rules, deny=deny)
    out = {False: b"", True: b""}
    verdicts: list[tuple[bool, str, int]] = []
    try:
        for reply, data in dialogue:
            for chunk in cut(data):
                seen = len(host.ops)
                out[reply] += host.server(chunk) if reply else host.client(chunk)
                out[not reply] += host.take(not reply)
                for op, n in host.ops[seen:]:
                    _add(verdicts, reply, op, n)
    except HostClosed:
        pass
    return Outcome(out[False], out[True], tuple(verdicts), tuple(host.log), host.closed)


def _add(verdicts: list[tuple[bool, str, int]], reply: bool, op: int, n: int) -> None:
    if op in (MORE, WAIT):
        return
    name = Op(op).name
    if op in (PASS, DROP) and verdicts and verdicts[-1][:2] == (reply, name):
        n += verdicts.pop()[2]
    verdicts.append((reply, name, n))


def check_chunking(
    parser: str,
    dialogue: Dialogue,
    rules: Rules | None = None,
    *,
    deny: Rules = (),
    also: Iterable[Cut] = (),
) -> Outcome:
    """Assert that the cuts of `dialogue` do not matter; returns what came of it.

    also: ways to cut it, besides whole and byte by byte; draw them with
    `proxylib.testing.strategies`.
    Raises AssertionError with both outcomes.
    """
    expected = play(parser, dialogue, rules, deny=deny)
    for cut in (byte_by_byte, *also):
        outcome = play(parser, dialogue, rules, deny=deny, cut=cut)
        assert outcome == expected, f"cut by {cut!r}:\n{outcome}\nwhole:\n{expected}"
    return expected
