"""Gives what happens to whoever subscribes, and never waits for any of them.

A subscriber has a queue of bounded length.  Entries that find it full are lost for it, and
it is told how many: a slow reader costs others nothing, and the agent no more memory than
`MAX_QUEUED` of them.  Publishing is quick, because whoever publishes reads the access log or
the ring buffer, where others lose what it is too slow for; entries are put into words
when a subscriber takes them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from proxylib.errors import ConfigError

TYPES = ("l7", "drop", "trace", "policy-verdict")
"""What there is to subscribe to. Entries about the stream itself (lost, end) always come."""

MAX_SUBSCRIBERS = 16
"""Most subscribers at a time: people at terminals and some collectors."""

MAX_QUEUED = 4096
MAX_QUEUED_BYTES = 2 << 20
"""Longest queue of a subscriber. An entry has about 500 bytes, one with long headers 32 KiB."""

Build = Callable[[], dict[str, Any]]


class Entry:
    """Something that happened, to be put into words once, if ever. size: about its bytes."""

    __slots__ = ("_build", "_line", "size")

    def __init__(self, build: Build, size: int) -> None:
        self._build = build
        self._line = b""
        self.size = size

    def line(self) -> bytes:
        """One line of the stream. Threads that ask at once build it twice, to the same."""
        if not self._line:
            self._line = encode(self._build())
        return self._line


class TooManySubscribers(ConfigError):
    """There is no room for another subscriber."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What a subscriber wants. Empty: everything. Endpoints: by number, any of them."""

    types: frozenset[str] = frozenset()
    related: frozenset[int] = frozenset()
    source: frozenset[int] = frozenset()
    destination: frozenset[int] = frozenset()

    def wants(self, kind: str) -> bool:
        return not self.types or kind in self.types

    def takes(self, source: int, destination: int) -> bool:
        """Whether it is about the right endpoints."""
        return (
            (not self.related or source in self.related or destination in self.related)
            and (not self.source or source in self.source)
            and (not self.destination or destination in self.destination)
        )


@dataclass(eq=False, slots=True)
class Subscription:
    """One subscriber's queue. wake: called when there is something in it again."""

    filter: Filter
    wake: Callable[[], None]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _queue: list[Entry] = field(default_factory=list)
    _bytes: int = 0
    _lost: int = 0
    _ended: bool = False

    def take(self) -> tuple[list[bytes], bool]:
        """The lines that are there, in order, and whether these are the last.

        May take some tenths of a second: not to be called where others wait.
        """
        with self._lock:
            entries, self._queue = self._queue, []
            lost, self._lost = self._lost, 0
            ended, self._bytes = self._ended, 0
        lines = [entry.line() for entry in entries]
        if lost:
            # Nothing was queued any more after the first that was lost.
            lines.append(encode({"type": "lost", "from": "monitor", "count": lost}))
        return lines, ended

    def put(self, entry: Entry) -> None:
        """Queue an entry, or count it as lost if there is no room for it."""
        with self._lock:
            first = not self._queue
            room = len(self._queue) < MAX_QUEUED and self._bytes < MAX_QUEUED_BYTES
            if self._lost or not room:
                self._lost += 1
                return
            self._queue.append(entry)
            self._bytes += entry.size
        if first:
            self.wake()

    def end(self) -> None:
        with self._lock:
            self._ended = True
        self.wake()


class Hub:
    """All subscribers. Safe for threads.

    wanted: told which types somebody wants, whenever that changes, one call at a time.
    """

    def __init__(self, wanted: Callable[[frozenset[str]], None] = lambda types: None) -> None:
        self._wanted = wanted
        self._lock = threading.Lock()
        self._told: frozenset[str] = frozenset()
        self._closed = False
        self._subscriptions: tuple[Subscription, ...] = ()
        """Replaced as a whole, so that publishing takes no lock."""

    @property
    def subscribers(self) -> int:
        return len(self._subscriptions)

    def subscribe(self, wanted: Filter, wake: Callable[[], None]) -> Subscription:
        """A queue of what `wanted` says, until `unsubscribe`. Raises TooManySubscribers."""
        subscription = Subscription(wanted, wake)
        with self._lock:
            if len(self._subscriptions) >= MAX_SUBSCRIBERS:
                raise TooManySubscribers(
                    f"{MAX_SUBSCRIBERS} subscribers watch this agent already; end one of them"
                )
            self._set((*self._subscriptions, subscription))
            closed = self._closed
        if closed:
            subscription.end()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        with self._lock:
            self._set(tuple(s for s in self._subscriptions if s is not subscription))

    def wants(self, kind: str) -> bool:
        """Whether anybody wants entries of this type."""
        return any(s.filter.wants(kind) for s in self._subscriptions)

    def publish(
        self, kind: str, source: int, destination: int, build: Build, size: int = 500
    ) -> None:
        """Give an entry about these two endpoints (0: none of this node) to all who want it.

        build: makes the entry, later and on another thread; size: about how many bytes it keeps.
        """
        entry = None
        for subscription in self._subscriptions:
            chosen = subscription.filter
            if chosen.wants(kind) and chosen.takes(source, destination):
                entry = entry or Entry(build, size)
                subscription.put(entry)

    def tell(self, entry: dict[str, Any]) -> None:
        """Give an entry about the stream itself to everybody."""
        told = Entry(lambda: entry, 100)
        for subscription in self._subscriptions:
            subscription.put(told)

    def close(self) -> None:
        """End every subscription, and those to come, in order."""
        with self._lock:
            self._closed = True
            for subscription in self._subscriptions:
                subscription.end()

    def _set(self, subscriptions: tuple[Subscription, ...]) -> None:
        self._subscriptions = subscriptions
        types = frozenset(t for t in TYPES if self.wants(t))
        if types != self._told:
            self._told = types
            self._wanted(types)


def encode(entry: dict[str, Any]) -> bytes:
    """One line of the stream."""
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"
