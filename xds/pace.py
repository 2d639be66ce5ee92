"""How often something may happen: a token bucket, without a clock of its own."""

from __future__ import annotations


class Pace:
    """Up to `burst` events at once, and `rate` per second in the long run."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at: float | None = None

    def delay(self, now: float) -> float:
        """Count one event at `now`: the seconds that it should have waited (0: none)."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

    def allows(self, now: float) -> bool:
        """Count one event at `now`, unless it is one too many: then False."""
        if self.delay(now) > 0:
            self._tokens += 1
            return False
        return True
