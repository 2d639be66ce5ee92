"""What a hostile endpoint, or a host outside, sends to get round a policy, or as another."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from demos.namespaces import Endpoint, Namespace
from tests.bpf.datapath import frames
from tests.bpf.datapath.conftest import BOTH_PROXY, CLIENT, EGRESS_PROXY, PORT, host
from tests.bpf.datapath.frames import IPV4, IPV6, ethernet
from tests.bpf.datapath.hosts import RunningProxy, eventually, raw_socket
from tests.bpf.datapath.plane import (
    ALLOW,
    EGRESS,
    ICMPV6,
    INGRESS,
    REDIRECT,
    TCP,
    UDP,
    WORLD,
    Entry,
    Plane,
)

FORBIDDEN = 22
MARKED = b"marked"
PACKET_VNET_HDR = 15
SOL_PACKET = 263
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17


def by(endpoint: Endpoint, source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    """A frame of an endpoint to the node, its checksums right; hop limit 255."""
    to, of = (bytes.fromhex(mac.replace(":", "")) for mac in (endpoint.gateway_mac, endpoint.mac))
    if ":" not in source:
        return ethernet(frames.ipv4(source, destination, protocol, payload), IPV4, to, of)
    pseudo = ip_address(source).packed + ip_address(destination).packed
    pseudo += struct.pack("!II", len(payload), protocol)
    at = {TCP: 16, UDP: 6, ICMPV6: 2}[protocol]
    payload = payload[:at] + bytes(2) + payload[at + 2 :]
    total = struct.pack("!H", frames.checksum(pseudo + payload))
    payload = payload[:at] + total + payload[at + 2 :]
    return ethernet(frames.ipv6(source, destination, protocol, payload, hops=255), IPV6, to, of)


@contextmanager
def watching(where: Namespace) -> Iterator[Callable[[], list[bytes]]]:
    """What comes to a namespace of what is `MARKED`, as IP packets."""
    with raw_socket(where) as wire:
        wire.setblocking(False)
        found: list[bytes] = []

        def read() -> list[bytes]:
            while True:
                try:
                    frame = wire.recv(1 << 16)
                except BlockingIOError:
                    return found
                if MARKED in frame:
                    found.append(frame[14:])

        yield read


def comes(read: Callable[[], list[bytes]], seconds: float = 0.3) -> list[bytes]:
    """What has come after that time."""
    time.sleep(seconds)
    return read()


@pytest.mark.parametrize("kind", [131, 133, 135, 136, 143])
def test_discovery_goes_no_further_than_the_node(plane: Plane, kind: int) -> None:
    client, outside = plane.lab["client"], plane.lab.outside
    plane.policy("client")
    frame = by(client, client.ipv6, outside.ipv6, ICMPV6, frames.icmp(kind, data=MARKED))
    with raw_socket(client) as wire, watching(outside) as read:
        wire.send(frame)
        eventually(lambda: plane.drops()["ICMPV6_FORBIDDEN"] == 1)
        assert comes(read) == []
        # Of the node itself its address may be asked for.
        wire.send(by(client, client.ipv6, plane.lab.node.ipv6, ICMPV6, frames.icmp(135)))
        eventually(lambda: plane.counters()["client", EGRESS, "FORWARDED"] >= 1)


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_nobody_outside_has_an_endpoint_s_address(plane: Plane, version: str) -> None:
    """A policy believes addresses: those of this node's endpoints come by their interfaces only."""
    server, outside = plane.lab["server"], plane.lab.outside
    source, target = (getattr(plane.lab[name], version) for name in ("client", "server"))
    plane.policy("server", Entry(INGRESS, CLIENT))
    datagram = frames.udp(4000, PORT, MARKED)
    with raw_socket(outside) as wire, watching(server) as read:
        wire.send(by(outside, source, target, UDP, datagram))
        eventually(lambda: plane.drops()["INVALID_SOURCE"] == 1)
        assert comes(read) == []
    with raw_socket(plane.lab["client"]) as wire, watching(server) as read:
        wire.send(by(plane.lab["client"], source, target, UDP, datagram))
        eventually(lambda: bool(read()))


def leave_checksums(where: Namespace, interface: str, leave: bool) -> None:
    """Whether what an interface sends may leave its checksums to the receiver, as veths can."""
    value = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_STXCSUM, leave))
    request = struct.pack("=16sQ", interface.encode(), ctypes.addressof(value))
    with where.entered(), socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


@pytest.fixture(params=["outside", "server"])
def written_on_the_way(plane: Plane, request: pytest.FixtureRequest) -> Iterator[str]:
    """Whose link writes checksums, as network cards do: after all programs."""
    name = str(request.param)
    target = host(plane, name)
    assert isinstance(target, Endpoint)
    leave_checksums(plane.lab.node, target.interface, False)
    yield name
    leave_checksums(plane.lab.node, target.interface, True)


def test_a_checksum_is_not_written_over_a_port(plane: Plane, written_on_the_way: str) -> None:
    """Who sends says where: here, over the allowed port, and the sum is the forbidden one."""
    client, target = plane.lab["client"], host(plane, written_on_the_way)
    plane.policy("client", Entry(EGRESS, 0, TCP, PORT))
    plane.policy("server", Entry(INGRESS, 0, TCP, PORT))
    segment = frames.tcp(40000, PORT, data=MARKED + bytes(2))
    filler = (frames.checksum(segment[2:]) - FORBIDDEN) % 0xFFFF
    segment = segment[:-2] + struct.pack("!H", filler)
    assert frames.checksum(segment[2:]) == FORBIDDEN
    frame = by(client, client.ipv4, target.ipv4, TCP, segment)
    with client.entered():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        wire.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        wire.bind(("eth0", 0x0800))

    def left(start: int, offset: int) -> bytes:
        """struct virtio_net_hdr: the sum is to be made from `start`, and put `offset` behind."""
        return struct.pack("=BBHHHH", 1, 0, 0, 0, start, offset)

    with wire, watching(target) as read:
        wire.send(left(14 + 20 + 2, 0) + frame)
        eventually(lambda: plane.drops()["INVALID"] == 1)
        assert comes(read) == []
        # As every kernel leaves its own.
        wire.send(left(14 + 20, 16) + frame)
        eventually(lambda: bool(read()))
        assert struct.unpack_from("!H", read()[0], 22) == (PORT,)


def test_the_unspecified_address_is_nobody_s(plane: Plane, taken: list[RunningProxy]) -> None:
    """Whoever connects there, as the proxy would, connects to itself."""
    client = plane.lab["client"]
    redirect = Entry(EGRESS, WORLD, TCP, PORT, REDIRECT, proxy=EGRESS_PROXY, both=BOTH_PROXY)
    plane.policy("client", redirect)
    with raw_socket(client) as wire:
        wire.send(by(client, client.ipv6, "::", TCP, frames.tcp(40000, PORT)))
        eventually(lambda: plane.drops()["INVALID"] == 1)
    assert not plane.conntrack()


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_an_answer_that_nobody_asked_for_goes_round_no_proxy(plane: Plane, version: str) -> None:
    """A connection is older than what is remembered of it, and its server speaks first."""
    server, outside = plane.lab["server"], plane.lab.outside
    with server.entered():
        listener = socket.create_server(
            ("", FORBIDDEN), family=socket.AF_INET6 if version == "ipv6" else socket.AF_INET
        )
    with outside.entered():
        client = socket.create_connection((getattr(server, version), FORBIDDEN), 5)
    accepted, _ = listener.accept()
    with listener, client, accepted:
        for said, passes in ((ALLOW, True), (REDIRECT, False)):
            line = Entry(INGRESS, 0, TCP, FORBIDDEN, said, proxy=EGRESS_PROXY, both=BOTH_PROXY)
            plane.policy("server", Entry(EGRESS), line)
            plane.maps["conntrack"].delete_many(key for key, _ in plane.maps["conntrack"].items())
            accepted.send(MARKED)
            if passes:
                assert client.recv(100) == MARKED
        eventually(lambda: plane.drops()["PROXY_NEEDED"] >= 1)
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(100)
        assert not plane.conntrack()
