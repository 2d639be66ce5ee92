"""What became of packets, counted by the programs on each CPU and summed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bpf.schema import COUNTER_KEY, COUNTER_VALUE
from bpf.syscall import Map


@dataclass(frozen=True, slots=True)
class PacketCounter:
    """An endpoint's packets in one direction (the packets') by what became of them.

    reason: `schema.REASONS`, or `FORWARDED`, `TO_PROXY`; endpoint: 0: of no endpoint.
    """

    endpoint: int
    ingress: bool
    reason: int
    packets: int
    bytes: int


def read_counters(table: Map) -> Iterator[PacketCounter]:
    """The counters, summed over CPUs."""
    for key, value in table.items():
        endpoint, direction, reason, _ = COUNTER_KEY.unpack(key)
        size = COUNTER_VALUE.size
        cpus = [COUNTER_VALUE.unpack(value[at : at + size]) for at in range(0, len(value), size)]
        packets, length = (sum(told) for told in zip(*cpus, strict=True))
        yield PacketCounter(endpoint, bool(direction), reason, packets, length)
