"""Ctrl-C, SIGTERM and a closed terminal end a command in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

MAX_WAIT = 0.5
"""Longest wait of the main thread at a time, seconds. A signal that comes just before
a wait, or to another thread, does not wake it; Python sees that signal after it."""


class Stopped(BaseException):
    """The user, or the system, wants the command to end."""


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Inside the block the first such signal raises Stopped in the main thread.

    Later ones are ignored, so that they cannot interrupt the tidying up.
    Use it in the main thread.
    """
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if not stopping.is_set():
            stopping.set()
            raise Stopped

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
