"""Envoys start a few at a time: a hundred sidecars at once would all be late."""

from __future__ import annotations

import os
import threading

AT_ONCE = (os.cpu_count() or 1) + 2
"""Envoys of this process that may start at a time. More than there are processors, so that
some that hang do not keep all others back."""

_turns = threading.BoundedSemaphore(AT_ONCE)


class Turn:
    """Constructing waits for a turn; `end` gives it to the next, once."""

    def __init__(self) -> None:
        _turns.acquire()
        self._lock = threading.Lock()
        self._ended = False

    def end(self) -> None:
        with self._lock:
            if not self._ended:
                self._ended = True
                _turns.release()
