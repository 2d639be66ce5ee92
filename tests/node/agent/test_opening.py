"""What is the node's own: found in namespaces."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address, ip_network

import pytest

from demos.namespaces import Lab
from node.agent.opening import own_addresses
from tests.conftest import MakeLab

PORT = 5555


def is_own(told: frozenset[str], address: str) -> bool:
    return any(ip_address(address) in ip_network(one) for one in told)


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab("client", outside=True)


def test_the_near_end_of_a_link_to_a_peer_is_own_the_peer_is_not(lab: Lab) -> None:
    lab.node.ip(
        "addr add 198.51.100.1 peer 198.51.100.2 dev ext0",
        "addr add fd30::1 peer fd30::2 dev ext0",
    )
    with lab.node.entered():
        told = own_addresses()
    assert {"198.51.100.1", "fd30::1", lab.node.ipv4, lab.node.ipv6, "fe80::1"} <= told
    assert not {"198.51.100.2", "fd30::2", "127.0.0.1", "::1"} & told
    assert not is_own(told, lab.outside.ipv4)
    assert not is_own(told, lab.outside.ipv6)


@pytest.mark.parametrize("address", ["192.0.2.255", "255.255.255.255", "ff02::1", "fd20::"])
def test_what_the_node_hears_is_its_own(lab: Lab, address: str) -> None:
    """The kernel is asked what it takes in: a datagram from an endpoint to no address of it."""
    six = ":" in address
    client = lab["client"]
    with lab.node.entered():
        told = own_addresses()
        node = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
        node.bind(("", PORT))
    node.settimeout(5)
    with client.entered():
        sender = socket.socket(node.family, socket.SOCK_DGRAM)
    with node, sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        sender.sendto(struct.pack("!I", 1), (address, PORT))
        assert node.recv(10)
    assert is_own(told, address)
