"""What became of packets, counted by the programs on each CPU and summed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bpf.schema import COUNTER_KEY, COUNTER_VALUE, FORWARDED, TRAFFIC, U32, Layout
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


def read_counters(opened: Mapping[str, Map]) -> Iterator[PacketCounter]:
    """The counters, summed over CPUs."""
    for key, value in opened["counters"].items():
        endpoint, direction, reason, _ = COUNTER_KEY.unpack(key)
        packets, length = _sums(COUNTER_VALUE, value)
        yield PacketCounter(endpoint, bool(direction), reason, packets, length)
    for key, _ in opened["endpoints"].items():
        (endpoint,) = U32.unpack(key)
        value = opened["traffic"].get(key) or bytes(TRAFFIC.size)
        sent, sent_bytes, received, received_bytes = _sums(TRAFFIC, value)
        if sent:
            yield PacketCounter(endpoint, False, FORWARDED, sent, sent_bytes)
        if received:
            yield PacketCounter(endpoint, True, FORWARDED, received, received_bytes)


def _sums(layout: Layout, value: bytes) -> list[int]:
    """Of each field of a per-CPU value."""
    size = layout.size
    cpus = [layout.unpack(value[at : at + size]) for at in range(0, len(value), size)]
    return [sum(told) for told in zip(*cpus, strict=True)]
