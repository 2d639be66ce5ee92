"""Takes a parser out that panics again and again, and tries it again by itself.

A breaker is closed (connections come in), open (none do), or half open: after a
pause one connection is let in on trial. If it ends, or a period passes, without a
panic, the breaker closes; a panic opens it again, for twice the pause.

Only panics count, which are bugs: bytes that are not of the protocol (ParserError)
are everyday, and anybody can send them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from proxylib import limits


class Breaker:
    """The breaker of one parser. Thread-safe.

    panics, period: more than so many panics in so many seconds open it.
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        panics: int = limits.BREAKER_PANICS,
        period: float = limits.BREAKER_PERIOD,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.panics = panics
        self.period = period
        self.opened = 0
        """How often it has opened, half-open trials that failed included."""
        self.total = 0
        """Panics ever."""
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=panics + 1)
        self._pause = limits.BREAKER_PAUSE
        self._until: float | None = None
        self._trial: float | None = None
        self._lock = threading.Lock()

    def configure(self, panics: int, period: float) -> None:
        """What opens it, from now on."""
        with self._lock:
            self.panics, self.period = panics, period
            self._recent = deque(self._recent, maxlen=panics + 1)

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        if self._trial is not None:
            return "half-open"
        return "closed" if self._until is None else "open"

    def admits(self) -> bool:
        """Whether a new connection may come in; called once for each."""
        return self._until is None or self._admits()

    def _admits(self) -> bool:
        with self._lock:
            now = self._clock()
            if self._trial is not None:
                if now >= self._trial:
                    self._close()
            elif self._until is not None and now >= self._until:
                self._trial = now + self.period
                return True
            return self._until is None

    def panicked(self) -> float | None:
        """A connection's parser has panicked. If this opens the breaker: seconds of pause."""
        with self._lock:
            self.total += 1
            now = self._clock()
            self._recent.append(now)
            if self._until is None:
                full = len(self._recent) > self.panics
                if not full or now - self._recent[0] > self.period:
                    return None
                self._pause = limits.BREAKER_PAUSE
            elif self._trial is None:
                return None  # a connection from before
            else:
                self._pause = min(2 * self._pause, limits.MAX_BREAKER_PAUSE)
            self.opened += 1
            self._trial = None
            self._until = now + self._pause
            return self._pause

    def reset(self) -> None:
        """The parser has new code: what the old one did does not count."""
        with self._lock:
            self._close()

    def ended(self) -> None:
        """A connection has ended without a panic."""
        if self._trial is not None:
            with self._lock:
                self._close()

    def _close(self) -> None:
        self._until = self._trial = None
        self._recent.clear()


_breakers: dict[str, Breaker] = {}
_lock = threading.Lock()


def breaker_of(parser: str) -> Breaker:
    """The breaker of the parser of this name, in this process."""
    found = _breakers.get(parser)
    if found is None:
        with _lock:
            found = _breakers.setdefault(parser, Breaker())
    return found
