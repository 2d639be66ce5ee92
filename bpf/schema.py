"""The maps as data: layouts, sizes, numbers; `programs/common.h` says the same in C.

Addresses are 16 bytes, IPv4 as ``::ffff:a.b.c.d``. Fields named ``be16`` and ``be32`` are in
network order in the map, and plain numbers in Python.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from socket import htonl, htons
from typing import Any, NamedTuple

VERSION = 1
"""Raised when maps change their meaning; a change of their layout is seen by itself."""

_CODES = {
    "u8": "B",
    "u16": "H",
    "u32": "I",
    "u64": "Q",
    "be16": "H",
    "be32": "I",
    "addr": "16s",
}
_SWAPS = {"be16": htons, "be32": htonl}


class Layout:
    """A C structure without hidden padding: fields as ``type name``, in order."""

    def __init__(self, name: str, *fields: str) -> None:
        split = [field.split() for field in fields]
        self.name = name
        self.fields = {field: kind for kind, field in split}
        self._struct = struct.Struct("=" + "".join(_CODES[kind] for kind, _ in split))
        self._swaps = [(n, _SWAPS[kind]) for n, (kind, _) in enumerate(split) if kind in _SWAPS]
        self.size = self._struct.size

    def pack(self, *values: int | bytes) -> bytes:
        """The bytes of the structure; values in the order of `fields`."""
        swapped: list[Any] = list(values)
        for n, swap in self._swaps:
            swapped[n] = swap(swapped[n])
        return self._struct.pack(*swapped)

    def unpack(self, data: bytes | memoryview) -> list[Any]:
        """The fields' values, in the order of `fields`."""
        values: list[Any] = list(self._struct.unpack(data))
        for n, swap in self._swaps:
            values[n] = swap(values[n])
        return values

    def offsets(self) -> dict[str, int]:
        """Where each field begins, in bytes."""
        offset, found = 0, {}
        for field, kind in self.fields.items():
            found[field] = offset
            offset += struct.calcsize("=" + _CODES[kind])
        return found


class MapType(IntEnum):
    """The kernel's numbers (linux/bpf.h, enum bpf_map_type)."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    SOCKHASH = 18
    RINGBUF = 27


NO_PREALLOC = 1
"""BPF_F_NO_PREALLOC; an LPM trie insists on it."""

U32 = Layout("u32", "u32 value")
U64 = Layout("u64", "u64 value")
NOTHING = Layout("nothing")

ADDRESS_KEY = Layout("address_key", "addr address")
LINK = Layout("link_value", "u32 endpoint", "u32 flags", "addr ipv4", "addr ipv6")
ENDPOINT = Layout("endpoint_value", "u32 identity", "u32 slot", "u32 flags", "u32 ifindex")
IPCACHE_KEY = Layout("ipcache_key", "u32 prefixlen", "addr address")
POLICY_KEY = Layout(
    "policy_key",
    "u32 prefixlen",
    "be32 slot",
    "be32 identity",
    "u8 direction",
    "u8 protocol",
    "be16 port",
)
POLICY_VALUE = Layout(
    "policy_value",
    "u8 verdict",
    "u8 would",
    "u16 flags",
    "be16 proxy_port",
    "be16 proxy_port_both",
)
CONNTRACK_KEY = Layout(
    "conntrack_key",
    "u16 endpoint",
    "u8 protocol",
    "u8 pad",
    "be16 own_port",
    "be16 peer_port",
    "addr peer",
)
CONNTRACK_VALUE = Layout(
    "conntrack_value",
    "u64 rx_packets",
    "u64 rx_bytes",
    "u64 tx_packets",
    "u64 tx_bytes",
    "u64 expires",
    "u32 epoch",
    "u32 own_identity",
    "u32 peer_identity",
    "u16 flags",
    "be16 proxy_port",
)
FRAGMENT_KEY = Layout(
    "fragment_key",
    "u16 endpoint",
    "u8 protocol",
    "u8 pad",
    "be32 id",
    "addr source",
    "addr destination",
)
FRAGMENT_VALUE = Layout(
    "fragment_value",
    "be16 source_port",
    "be16 destination_port",
    "u8 icmp_type",
    "u8 pad",
    "u16 pad2",
)
COUNTER_KEY = Layout("counter_key", "u32 endpoint", "u8 direction", "u8 reason", "u16 pad")
COUNTER_VALUE = Layout("counter_value", "u64 packets", "u64 bytes")
TRAFFIC = Layout(
    "traffic_value", "u64 tx_packets", "u64 tx_bytes", "u64 rx_packets", "u64 rx_bytes"
)
EVENT = Layout(
    "event",
    "u64 time",
    "u8 type",
    "u8 direction",
    "u8 reason",
    "u8 verdict",
    "u8 would",
    "u8 flags",
    "u8 protocol",
    "u8 tcp_flags",
    "u32 endpoint",
    "u32 ifindex",
    "u32 source_identity",
    "u32 destination_identity",
    "u32 length",
    "addr source",
    "addr destination",
    "be16 source_port",
    "be16 destination_port",
    "be16 proxy_port",
    "u16 pad",
    "u32 pad2",
)

LAYOUTS = (
    LINK,
    ENDPOINT,
    IPCACHE_KEY,
    POLICY_KEY,
    POLICY_VALUE,
    CONNTRACK_KEY,
    CONNTRACK_VALUE,
    FRAGMENT_KEY,
    FRAGMENT_VALUE,
    COUNTER_KEY,
    COUNTER_VALUE,
    TRAFFIC,
    EVENT,
)
"""The structures that `programs/common.h` has too."""


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map. size: entries (bytes, for a ring buffer); its default, and an option."""

    type: MapType
    key: Layout
    value: Layout
    size: int
    flags: int = 0


MAPS: Mapping[str, MapSpec] = {
    "config": MapSpec(MapType.ARRAY, U32, U64, 8),
    "links": MapSpec(MapType.HASH, U32, LINK, 65_536, NO_PREALLOC),
    "endpoints": MapSpec(MapType.HASH, U32, ENDPOINT, 65_536, NO_PREALLOC),
    "addresses": MapSpec(MapType.HASH, ADDRESS_KEY, U32, 131_072, NO_PREALLOC),
    "ipcache": MapSpec(MapType.LPM_TRIE, IPCACHE_KEY, U32, 512_000, NO_PREALLOC),
    "policy": MapSpec(MapType.LPM_TRIE, POLICY_KEY, POLICY_VALUE, 4_194_304, NO_PREALLOC),
    "conntrack": MapSpec(MapType.LRU_HASH, CONNTRACK_KEY, CONNTRACK_VALUE, 524_288),
    "fragments": MapSpec(MapType.LRU_HASH, FRAGMENT_KEY, FRAGMENT_VALUE, 8_192),
    "counters": MapSpec(MapType.PERCPU_HASH, COUNTER_KEY, COUNTER_VALUE, 65_536, NO_PREALLOC),
    "events": MapSpec(MapType.RINGBUF, NOTHING, NOTHING, 1 << 20),
    "traffic": MapSpec(MapType.PERCPU_ARRAY, U32, TRAFFIC, 16_384),
}

MAP_NUMBERS: Mapping[int, str] = {0x1000 + n: name for n, name in enumerate(MAPS)}
"""What stands for a map in a program until it is loaded (`enum map` in C)."""

LINK_SIDECAR = 0x8000_0000
"""A sidecar's key in `links`: this and the endpoint's number; else it is the ifindex."""

POLICY_BITS = 72
"""The bits of a policy key before the entry's own: slot, identity, direction."""


class Mark(IntEnum):
    """The marks of packets, under `MARK_MASK`."""

    TO_PROXY = 0x200
    FROM_UPSTREAM = 0xA00
    FROM_LISTENER = 0xB00


MARK_MASK = 0xF00


def fingerprint(sizes: Mapping[str, int]) -> str:
    """What tells maps of other layouts, and then of other sizes, apart: a part of their path."""
    layouts = [
        (name, spec.type, spec.flags, layout.fields)
        for name, spec in MAPS.items()
        for layout in (spec.key, spec.value)
    ]
    rooms = [sizes.get(name, spec.size) for name, spec in MAPS.items()]
    hashes = [hashlib.sha256(repr(told).encode()).hexdigest()[:8] for told in (layouts, rooms)]
    return "-".join(hashes)


class Config(IntEnum):
    """The slots of the map `config`."""

    EPOCH = 0
    FLAGS = 1
    NETNS = 2


class Flags(IntFlag):
    """What is told beside drops (`Config.FLAGS`).

    ACCOUNTING: packets and bytes of connections; TRACE_TO, TRACE_FROM: with TRACE, every
    packet to or from an endpoint, not only those that change something.
    """

    NONE = 0
    TRACE = 1
    POLICY_VERDICT = 2
    ACCOUNTING = 4
    TRACE_TO = 8
    TRACE_FROM = 16


class Direction(IntEnum):
    """Seen from the endpoint."""

    EGRESS = 0
    INGRESS = 1


class ConntrackFlags(IntFlag):
    """Of an entry of the map `conntrack`."""

    FROM_PEER = 1
    PROXIED = 2
    SEEN_REPLY = 4
    TX_CLOSING = 8
    RX_CLOSING = 16
    AUDIT = 32
    UPSTREAM = 64


class EventType(IntEnum):
    """What an event of the ring buffer tells."""

    DROP = 1
    TRACE = 2
    POLICY_VERDICT = 3


class EventFlags(IntFlag):
    """Of an event of the ring buffer."""

    IPV6 = 1
    REPLY = 2
    AUDIT = 4
    PROXIED = 8


class TracePoint(IntEnum):
    """The `reason` of a trace event."""

    NEW = 1
    REPLY = 2
    CLOSED = 3
    ESTABLISHED = 4


class Reason(NamedTuple):
    """Why a packet was dropped. name: in C, as ``REASON_…``."""

    name: str
    number: int
    text: str


REASONS = (
    Reason("INVALID_SOURCE", 132, "Invalid source ip"),
    Reason("POLICY", 133, "Policy denied"),
    Reason("INVALID", 134, "Invalid packet"),
    Reason("CT_INVALID_HEADER", 135, "CT: Truncated or invalid header"),
    Reason("UNSUPPORTED_L3", 139, "Unsupported L3 protocol"),
    Reason("UNKNOWN_TARGET", 150, "Unknown L3 target address"),
    Reason("NO_ENDPOINT", 152, "No matching local container found"),
    Reason("CT_CREATE_FAILED", 155, "CT: Map insertion failed"),
    Reason("INVALID_EXTENSION_HEADER", 156, "Invalid IPv6 extension header"),
    Reason("FRAGMENTS_UNSUPPORTED", 157, "IP fragmentation not supported"),
    Reason("NO_POLICY", 165, "No configuration available to perform policy decision"),
    Reason("UNSUPPORTED_L2", 166, "Unsupported L2 protocol"),
    Reason("INVALID_IDENTITY", 171, "Invalid identity"),
    Reason("FRAGMENT_NOT_FOUND", 175, "First logical datagram fragment not found"),
    Reason("ICMPV6_FORBIDDEN", 176, "Forbidden ICMPv6 message"),
    Reason("NO_SOCKET", 178, "Socket lookup failed"),
    Reason("SOCKET_ASSIGN", 179, "Socket assign failed"),
    Reason("PROXY_UNSUPPORTED_PROTOCOL", 180, "Proxy redirection not supported for protocol"),
    Reason("POLICY_DENY", 181, "Policy denied by denylist"),
    Reason("VLAN", 182, "VLAN traffic disallowed by VLAN filter"),
    Reason("NO_PROXY_PORT", 220, "No proxy port for the policy's parser"),
    Reason("TWO_PARSERS", 221, "Egress and ingress policy need different parsers"),
    Reason("PROXY_NEEDED", 222, "The policy now needs a proxy for a direct connection"),
    Reason("SOURCE_ROUTE", 223, "IP source route"),
)
"""The drop reasons: Cilium's names and numbers where it has one, ours from 220 on."""

FORWARDED, TO_PROXY = 0, 1
"""The reasons under which `counters` counts what passed."""

EVENTS_LOST = 255
"""The reason under which `counters` counts events that found the ring buffer full."""

REASON_TEXTS: Mapping[int, str] = {reason.number: reason.text for reason in REASONS}
