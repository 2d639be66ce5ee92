"""How long replies take: a mark per chunk of requests, not per request.

Requests that come in one chunk went on at one time, and replies come in their order, so
that the place of a reply among all that were ever owed tells its request's chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sized


class Clock:
    """Latencies of the replies owed in `pending`. read: the time, nanoseconds."""

    __slots__ = ("_marks", "_now", "_pending", "_read", "_total")

    def __init__(self, read: Callable[[], int], pending: Sized) -> None:
        self._read = read
        self._pending = pending
        self._now = 0
        self._total = 0
        """Replies that were ever owed."""
        self._marks: deque[tuple[int, int]] = deque()
        """Per chunk of requests: how many were owed before it, and its time."""

    def requested(self, before: int) -> None:
        """A chunk of requests has been judged; before: how many replies were owed then."""
        added = len(self._pending) - before
        if added > 0:
            if not before:
                self._marks.clear()
            self._marks.append((self._total, self._read()))
            self._total += added

    def start(self) -> None:
        """A chunk of replies has come."""
        self._now = self._read()
        self._forget(self._total - len(self._pending))

    def latency(self) -> int:
        """Of the first reply in `pending`, nanoseconds; 0 if nothing is owed."""
        turn = self._total - len(self._pending)
        marks = self._forget(turn)
        return self._now - marks[0][1] if marks and turn < self._total else 0

    def _forget(self, turn: int) -> deque[tuple[int, int]]:
        """Forget the chunks whose replies were all due before `turn`; returns the others."""
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= turn:
            marks.popleft()
        return marks
