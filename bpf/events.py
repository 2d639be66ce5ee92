"""What the programs tell as it happens: drops, policy verdicts, the course of connections.

The kernel's ring buffer is two mappings: one page with the consumer's position, which is ours to
write, and one with the producer's and the data, twice in a row so that a record never wraps.
"""

from __future__ import annotations

import logging
import mmap
import os
import select
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bpf.ipcache import address_text
from bpf.schema import EVENT, REASON_TEXTS, EventFlags, EventType, TracePoint
from bpf.syscall import Map

log = logging.getLogger(__name__)

_BUSY, _DISCARDED = 1 << 31, 1 << 30
_POSITION = struct.Struct("=Q")
_HEADER = struct.Struct("=II")


@dataclass(frozen=True, slots=True)
class Event:
    """One event; what a field means is said at `struct event` in common.h.

    time: seconds of the monotonic clock. Addresses and ports are the packet's own.
    """

    time: float
    type: EventType
    ingress: bool
    reason: int
    verdict: int
    would: int
    flags: EventFlags
    protocol: int
    tcp_flags: int
    endpoint: int
    ifindex: int
    source_identity: int
    destination_identity: int
    length: int
    source: str
    source_port: int
    destination: str
    destination_port: int
    proxy_port: int

    @property
    def text(self) -> str:
        """A drop's reason, or a trace's point, in words."""
        if self.type is EventType.DROP:
            return REASON_TEXTS.get(self.reason, f"unknown reason {self.reason}")
        if self.type is EventType.TRACE:
            known = {point.value for point in TracePoint}
            point = self.reason
            return TracePoint(point).name.lower() if point in known else f"unknown point {point}"
        return ""


def decode(raw: bytes) -> Event:
    """An event from its bytes. Raises `ValueError` for what is none."""
    if len(raw) != EVENT.size:
        raise ValueError(f"an event of {len(raw)} bytes, not {EVENT.size}")
    told = dict(zip(EVENT.fields, EVENT.unpack(raw), strict=True))
    return Event(
        time=told["time"] / 1e9,
        type=EventType(told["type"]),
        ingress=bool(told["direction"]),
        reason=told["reason"],
        verdict=told["verdict"],
        would=told["would"],
        flags=EventFlags(told["flags"]),
        protocol=told["protocol"],
        tcp_flags=told["tcp_flags"],
        endpoint=told["endpoint"],
        ifindex=told["ifindex"],
        source_identity=told["source_identity"],
        destination_identity=told["destination_identity"],
        length=told["length"],
        source=address_text(told["source"]),
        source_port=told["source_port"],
        destination=address_text(told["destination"]),
        destination_port=told["destination_port"],
        proxy_port=told["proxy_port"],
    )


class RingBuffer:
    """The consumer's end of a ring buffer; there can be one only. Does not own the map."""

    def __init__(self, table: Map) -> None:
        page = mmap.PAGESIZE
        size = table.info.max_entries
        self._mask = size - 1
        self._page = page
        self._consumer = mmap.mmap(table.fd, page, mmap.MAP_SHARED)
        self._data = mmap.mmap(
            table.fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        )

    def take(self, most: int = 4096) -> list[bytes]:
        """Records that are complete, at most so many; their room is the programs' again."""
        found: list[bytes] = []
        position: int = _POSITION.unpack_from(self._consumer)[0]
        end: int = _POSITION.unpack_from(self._data)[0]
        while position < end and len(found) < most:
            start = self._page + (position & self._mask)
            length = _HEADER.unpack_from(self._data, start)[0]
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                found.append(self._data[start + 8 : start + 8 + size])
            position += -(-(size + 8) // 8) * 8
        _POSITION.pack_into(self._consumer, 0, position)
        return found

    def close(self) -> None:
        """Unmap it."""
        self._consumer.close()
        self._data.close()


Callback = Callable[[Sequence[Event]], None]


class EventReader:
    """A thread that gives events to a callback, some at once, until it is closed.

    While the callback takes its time events wait in the ring buffer; what finds it full
    is counted by the programs.
    """

    def __init__(self, table: Map, callback: Callback) -> None:
        self._ring = RingBuffer(table)
        self._callback = callback
        self._fd = os.dup(table.fd)
        self._stop, self._stopped = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="bpf events", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        try:
            while not any(fd == self._stop for fd, _ in poll.poll()):
                self._deliver(self._ring.take())
        finally:
            self._ring.close()
            os.close(self._fd)
            os.close(self._stop)

    def _deliver(self, raw: list[bytes]) -> None:
        events = []
        for one in raw:
            try:
                events.append(decode(one))
            except ValueError:
                log.exception("an event that cannot be read")
        try:
            if events:
                self._callback(events)
        except Exception:
            log.exception("events were not taken")

    def close(self) -> None:
        """End the thread; another may read then. From the callback: after it has returned."""
        os.close(self._stopped)
        if threading.current_thread() is not self._thread:
            self._thread.join()
