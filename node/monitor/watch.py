"""Takes events out of the programs' ring buffer, as long as somebody watches.

Nobody watches most of the time. Then the programs are told to report drops only, and
nobody reads the ring buffer: it fills, and what finds it full costs the node a counter.
So a flood of packets that are dropped is not also a flood of work for the agent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bpf.schema import Flags
from node.monitor.ends import Ends
from node.monitor.hub import Hub
from node.monitor.packets import publish

if TYPE_CHECKING:
    from bpf.datapath import Datapath
    from bpf.events import Event

PACKETS = frozenset(("drop", "trace", "policy-verdict"))
"""The types of entries that come from the programs."""

BATCH = 256
"""So many events at once are a burst: the agent rests after one as long as it took."""

MAX_REST = 0.05
"""Longest rest, seconds."""


class Watch:
    """Between the programs' events and the hub. Safe for threads.

    traces: what is reported when somebody watches connections; always: what is in any case.
    """

    def __init__(self, ends: Ends, *, traces: Flags, always: Flags = Flags.NONE) -> None:
        self.hub = Hub(self._want)
        self._ends = ends
        self._traces, self._always = traces, always
        self._lock = threading.Lock()
        self._datapath: Datapath | None = None
        self._types: frozenset[str] = frozenset()
        self._since = 0.0
        self._lost = 0

    def watching(self, opener: Callable[[], Datapath]) -> Callable[[], Datapath]:
        """`opener`, whose data path is watched from the start."""

        def open_() -> Datapath:
            datapath = opener()
            self.opened(datapath)
            return datapath

        return open_

    def opened(self, datapath: Datapath) -> None:
        """There is a data path from now on."""
        with self._lock:
            self._datapath = datapath
            if self._types:
                self._begin(datapath)
            else:
                # An agent that was killed may have left them otherwise.
                self._tell(datapath)

    def closed(self) -> None:
        """There is none any more."""
        with self._lock:
            self._datapath = None

    def tick(self) -> None:
        """Tell what the ring buffer had no room for."""
        with self._lock:
            datapath = self._datapath if self._types else None
            if datapath is None:
                return
            lost, before = datapath.lost, self._lost
            self._lost = lost
        if lost > before:
            self.hub.tell({"type": "lost", "from": "events", "count": lost - before})

    def _want(self, types: frozenset[str]) -> None:
        """What subscribers want has changed."""
        with self._lock:
            before, self._types = self._types, types & PACKETS
            datapath = self._datapath
            if datapath is None or self._types == before:
                return
            if not before:
                self._begin(datapath)
            elif not self._types:
                datapath.events(None)
                self._tell(datapath)
            else:
                self._tell(datapath)

    def _begin(self, datapath: Datapath) -> None:
        # What lies in the ring buffer is of a time when nobody watched.
        self._since = time.monotonic()
        self._lost = datapath.lost
        self._tell(datapath)
        datapath.events(self._take)

    def _tell(self, datapath: Datapath) -> None:
        """Have the programs report what is wanted."""
        flags = self._always
        if "trace" in self._types:
            flags |= self._traces
        if "policy-verdict" in self._types:
            flags |= Flags.POLICY_VERDICT
        datapath.set_flags(flags)

    def _take(self, events: Sequence[Event]) -> None:
        begun = time.monotonic()
        publish(self.hub, self._ends, (e for e in events if e.time >= self._since))
        if len(events) >= BATCH:
            time.sleep(min(time.monotonic() - begun, MAX_REST))
