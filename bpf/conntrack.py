"""Connections as the programs track them, read from the map and deleted in time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bpf.ipcache import address_text
from bpf.schema import CONNTRACK_KEY, CONNTRACK_VALUE, U32, ConntrackFlags
from bpf.syscall import Map

_WORDS = CONNTRACK_VALUE.size // 8
_EXPIRES = CONNTRACK_VALUE.offsets()["expires"] // 8


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as one endpoint sees it. rx: to the endpoint, tx: from it.

    expires: seconds from now; audit: passes only because of audit mode.
    """

    endpoint: int
    protocol: int
    own_port: int
    peer: str
    peer_port: int
    own_identity: int
    peer_identity: int
    flags: ConntrackFlags
    proxy_port: int
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    expires: float
    epoch: int


def connections(table: Map, now: int = 0) -> Iterator[Connection]:
    """Those that have not expired. now: ns of the monotonic clock; 0: it is asked."""
    now = now or time.monotonic_ns()
    for key, value in table.items():
        found = _connection(key, value, now)
        if found.expires > 0:
            yield found


def _connection(key: bytes, value: bytes, now: int) -> Connection:
    endpoint, protocol, _, own_port, peer_port, peer = CONNTRACK_KEY.unpack(key)
    told = dict(zip(CONNTRACK_VALUE.fields, CONNTRACK_VALUE.unpack(value), strict=True))
    return Connection(
        endpoint=endpoint,
        protocol=protocol,
        own_port=own_port,
        peer=address_text(peer),
        peer_port=peer_port,
        own_identity=told["own_identity"],
        peer_identity=told["peer_identity"],
        flags=ConntrackFlags(told["flags"]),
        proxy_port=told["proxy_port"],
        rx_packets=told["rx_packets"],
        rx_bytes=told["rx_bytes"],
        tx_packets=told["tx_packets"],
        tx_bytes=told["tx_bytes"],
        expires=(told["expires"] - now) / 1e9,
        epoch=told["epoch"],
    )


def expire(table: Map, now: int = 0) -> int:
    """Delete what has expired; how many. The programs take an expired entry for none."""
    now = now or time.monotonic_ns()
    size, expired = table.info.key_size, []
    for count, keys, values in table.batches():
        # A million entries are looked through in a fraction of a second.
        times = memoryview(values).cast("Q")[_EXPIRES::_WORDS].tolist()
        expired += [keys[n * size : (n + 1) * size] for n in range(count) if times[n] <= now]
    table.delete_many(expired)
    return len(expired)


def forget(maps: Mapping[str, Map], endpoint: int) -> None:
    """Delete what there is of an endpoint: its number may be another's next."""
    for name, raw in (
        ("conntrack", endpoint.to_bytes(2, sys.byteorder)),
        ("fragments", endpoint.to_bytes(2, sys.byteorder)),
        ("counters", endpoint.to_bytes(4, sys.byteorder)),
    ):
        size = maps[name].info.key_size
        maps[name].delete_many(
            [
                keys[at : at + size]
                for count, keys, _ in maps[name].batches()
                for at in range(0, count * size, size)
                if keys.startswith(raw, at)
            ]
        )
    if endpoint < maps["traffic"].info.max_entries:
        maps["traffic"].set(U32.pack(endpoint), bytes(maps["traffic"].value_size))
