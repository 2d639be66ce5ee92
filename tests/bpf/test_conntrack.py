from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import conntrack, maps, schema, syscall
from bpf.ipcache import address_bytes
from bpf.schema import (
    CONNTRACK_KEY,
    CONNTRACK_VALUE,
    COUNTER_KEY,
    COUNTER_VALUE,
    MAPS,
    ConntrackFlags,
)
from bpf.syscall import Map

NOW = 10**12


@pytest.fixture
def table(privileged: None) -> Iterator[Map]:
    spec = MAPS["conntrack"]
    made = Map(syscall.create_map(spec.type, spec.key.size, spec.value.size, 1000, 0, "ct"))
    yield made
    made.close()


def put(table: Map, endpoint: int, port: int, expires: float, peer: str = "10.0.0.9") -> None:
    key = CONNTRACK_KEY.pack(endpoint, 6, 0, port, 80, address_bytes(peer))
    until = NOW + int(expires * 1e9)
    table.set(key, CONNTRACK_VALUE.pack(1, 60, 2, 120, until, 5, 301, 302, 3, 10001))


def test_connections(table: Map) -> None:
    put(table, 1, 40000, 60)
    put(table, 2, 40001, 0)
    put(table, 3, 40002, 0.5, "fd00::9")
    found = {one.endpoint: one for one in conntrack.connections(table, NOW)}
    assert found.keys() == {1, 3}
    assert found[1] == conntrack.Connection(
        endpoint=1,
        protocol=6,
        own_port=40000,
        peer="10.0.0.9",
        peer_port=80,
        own_identity=301,
        peer_identity=302,
        flags=ConntrackFlags.FROM_PEER | ConntrackFlags.PROXIED,
        proxy_port=10001,
        rx_packets=1,
        rx_bytes=60,
        tx_packets=2,
        tx_bytes=120,
        expires=60,
        epoch=5,
    )
    assert found[3].peer == "fd00::9"


def test_what_has_expired_is_deleted(table: Map) -> None:
    for n in range(500):
        put(table, 1, n, n - 250)
    assert conntrack.expire(table, NOW) == 251
    assert table.count() == 249
    assert conntrack.expire(table, NOW) == 0


def test_an_endpoint_is_forgotten(bpffs: Path) -> None:
    """Its connections, its fragments' ports and its counters, and nobody else's."""
    opened = maps.open_maps(bpffs / "v1", {"conntrack": 1000})
    for n in range(100):
        put(opened["conntrack"], 1 + 256 * (n % 2), n, 60)
    counter = COUNTER_VALUE.pack(1, 1) * syscall.possible_cpus()
    for endpoint in (1, 257, 65537):
        opened["counters"].set(COUNTER_KEY.pack(endpoint, 1, 0, 0), counter)
    traffic = schema.TRAFFIC.pack(1, 2, 3, 4) * syscall.possible_cpus()
    for endpoint in (1, 257):
        opened["traffic"].set(schema.U32.pack(endpoint), traffic)
    conntrack.forget(opened, 1)
    assert opened["traffic"].get(schema.U32.pack(1)) == bytes(len(traffic))
    assert opened["traffic"].get(schema.U32.pack(257)) == traffic
    assert {one.endpoint for one in conntrack.connections(opened["conntrack"], NOW)} == {257}
    assert opened["conntrack"].count() == 50
    left = {COUNTER_KEY.unpack(key)[0] for key, _ in opened["counters"].items()}
    assert left == {257, 65537}
    maps.close_maps(opened)
