"""Where a parser's time goes: a recording played again and again, under a profiler.

Only the engine's calls of the parser are timed, as it makes them: what stands around
them here is Python, and in the library C.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from pyinstrument import Profiler
from pyinstrument.session import Session

from node.errors import UsageError
from node.kit.replay import Judges, connect, judged_by, open_host, play
from proxylib.recording import Recording
from proxylib.testing import Host

Call = tuple[bool, bool, list[bytes]]
"""Arguments of Connection.on_data: reply, end_stream, data."""

_BATCH = 200
"""Connections whose calls are timed in one go."""

_INTERVAL = 0.0001
"""Seconds between two looks of the profiler."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a recording costs. Times are seconds of one play of it, without the profiler."""

    messages: int
    calls: int
    size: int
    seconds: float
    session: Session


def profile(
    recording: Recording, seconds: float, *, parser: str = "", judge: Judges | None = None
) -> Profile:
    """Play `recording` for about `seconds`, half of them under the profiler.

    Raises UsageError for a recording that makes no call of the parser.
    """
    calls, messages = _calls(recording, parser, judge)
    if not calls:
        raise UsageError("the recording has nothing for the parser to judge")
    policy, facts = judged_by(recording, judge)
    opened = partial(connect, parser or facts.parser, policy, facts)
    _play_for(0.1, opened, calls)
    taken = _play_for(seconds / 2, opened, calls)
    profiler = Profiler(interval=_INTERVAL, async_mode="disabled")
    _play_for(seconds / 2, opened, calls, profiler)
    session = profiler.last_session
    assert session is not None
    return Profile(
        messages, len(calls), sum(len(burst.data) for burst in recording.bursts), taken, session
    )


def _calls(recording: Recording, parser: str, judge: Judges | None) -> tuple[list[Call], int]:
    """The engine's calls for a recording, and how many messages they judge."""
    host = open_host(recording, parser=parser, judge=judge)
    calls: list[Call] = []
    on_data = host.on_data

    def keep(reply: bool, end_stream: bool, data: list[bytes], ops: list[int]) -> int:
        calls.append((reply, end_stream, data))
        return on_data(reply, end_stream, data, ops)

    host.on_data = keep
    play(host, recording)
    return calls, max(len(host.log), 1)


def _play_for(
    seconds: float, opened: partial[Host], calls: list[Call], profiler: Profiler | None = None
) -> float:
    """The shortest time of one play, of many; at least one batch is played."""
    best = float("inf")
    until = time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        hosts = [opened() for _ in range(_BATCH)]
        with _under(profiler):
            start = time.perf_counter()
            for host in hosts:
                on_data = host.on_data
                for reply, end, data in calls:
                    on_data(reply, end, data, [])
            best = min(best, (time.perf_counter() - start) / _BATCH)
    return best


@contextmanager
def _under(profiler: Profiler | None) -> Iterator[None]:
    if profiler is None:
        yield
        return
    profiler.start()
    try:
        yield
    finally:
        profiler.stop()
