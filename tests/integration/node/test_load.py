"""Large packets, many connections, floods; and the traps of port numbers."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from demos.namespaces import Endpoint, Lab, Namespace
from tests.integration.node.site import Site, apps, policy, ports, site
from tests.integration.node.traffic import BLOCK, PATIENCE, fetch, web

CROWD = Path(__file__).with_name("crowd.py")
SIZE = 24 << 20
PORT = 8080

pytestmark = [pytest.mark.usefixtures("servers"), pytest.mark.timeout(180)]


def judged(port: int = 80) -> dict[str, Any]:
    of = apps("fromEndpoints", "client")
    return policy("in", "server", ingress=[{**of, **ports(port, http=[{}])}])


def direct(port: int = 80) -> dict[str, Any]:
    return policy("in", "server", ingress=[{**apps("fromEndpoints", "client"), **ports(port)}])


def content(size: int) -> bytes:
    return (BLOCK * (size // len(BLOCK) + 1))[:size]


def move(client: Namespace, address: str) -> None:
    """Much to the server and much from it, and all of it is right."""
    data = content(SIZE)
    connection = http.client.HTTPConnection(address, 80, timeout=60)
    with client.entered():
        connection.connect()
    connection.request("POST", "/", data)
    assert connection.getresponse().read().decode() == hashlib.sha256(data).hexdigest()
    connection.request("GET", f"/bytes/{SIZE}")
    assert connection.getresponse().read() == data
    connection.close()


@pytest.mark.parametrize("way", ["direct", "judged"])
def test_large_segments(node: Site, version: str, way: str) -> None:
    """A veth hands over 64 KiB at once: the programs see no such thing as an MTU."""
    node.policies(judged() if way == "judged" else direct())
    move(node.lab["client"], getattr(node.lab["server"], version))


@pytest.mark.parametrize("way", ["direct", "judged"])
def test_small_packets(node: Site, version: str, way: str) -> None:
    """Segmented before the programs see them, at an MTU of 1,280."""
    node.policies(judged() if way == "judged" else direct())
    client, server = node.lab["client"], node.lab["server"]
    with ExitStack() as stack:
        for place in (client, server):
            place.ip("link set eth0 mtu 1280")
            stack.callback(place.ip, "link set eth0 mtu 1500")
        for place in (client, server):
            place.run("ip", "link", "set", "eth0", "gso_max_segs", "1", check=True)
            stack.callback(place.run, "ip", "link", "set", "eth0", "gso_max_segs", "65535")
        move(client, getattr(server, version))


def crowd(server: Endpoint, client: Endpoint, address: str, count: int, verbs: str) -> Any:
    serve, call = verbs.split()
    command = (sys.executable, CROWD, serve, address, PORT)
    process = server.popen(*command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == "ready\n"
        done = client.run(sys.executable, CROWD, call, address, str(PORT), str(count), timeout=100)
        process.terminate()
        process.wait()
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_two_thousand_connections_at_once(node: Site, version: str) -> None:
    node.policies(direct(PORT))
    client, server = node.lab["client"], node.lab["server"]
    found = crowd(server, client, getattr(server, version), 2000, "serve call")
    assert found == {"right": 2000}


def test_two_thousand_connections_to_a_parser_at_once(node: Site, version: str) -> None:
    """More than the 1,024 of a cluster's circuit breaker that nobody has set."""
    node.policies(judged(PORT))
    client, server = node.lab["client"], node.lab["server"]
    found = crowd(server, client, getattr(server, version), 2000, "web browse")
    assert found == {"right": 2000}


@pytest.fixture
def few_ports(node: Site) -> Any:
    """The node has no other port numbers than these for connections of its own."""
    before = node.lab.node.sysctl("ipv4/ip_local_port_range")
    node.lab.node.sysctl("ipv4/ip_local_port_range", "20000 20019")
    yield range(20000, 20020)
    node.lab.node.sysctl("ipv4/ip_local_port_range", before)


def test_equal_port_numbers_at_both_sides_of_the_proxy(
    node: Site, version: str, few_ports: range
) -> None:
    """Envoy's connection to the server has the client's address and, here, one of its ports."""
    to, of = apps("toEndpoints", "server"), apps("fromEndpoints", "client")
    node.policies(
        policy("out", "client", egress=[{**to, **ports(80, http=[{}])}]),
        policy("in", "server", ingress=[{**of, **ports(80, http=[{}])}]),
    )
    client, address = node.lab["client"], getattr(node.lab["server"], version)
    own = getattr(client, version)
    with ExitStack() as stack:
        connections = []
        for port in few_ports[:15]:
            made = http.client.HTTPConnection(address, 80, 10, source_address=(own, port))
            stack.callback(made.close)
            with client.entered():
                made.connect()
            connections.append(made)
        for _ in range(3):
            for made in connections:
                made.request("GET", "/")
                response = made.getresponse()
                assert (response.status, response.read().decode()) == (200, own)


@pytest.mark.parametrize("way", ["direct", "judged"])
def test_a_port_that_is_used_again_at_once(node: Site, version: str, way: str) -> None:
    """The other side, be it Envoy, has closed first: what is left of the connection there is
    a TIME_WAIT, which a new one from the same port must be able to replace."""
    node.policies(judged() if way == "judged" else direct())
    client, address = node.lab["client"], getattr(node.lab["server"], version)
    own = getattr(client, version)
    for _ in range(10):
        with client.entered():
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        with made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.settimeout(PATIENCE)
            made.bind((own, 21678))
            made.connect((address, 80))
            made.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            reply = b""
            while part := made.recv(4096):
                reply += part
        assert reply.startswith(b"HTTP/1.1 200"), reply


def flood(client: Endpoint, server: Endpoint, port: int, seconds: float) -> int:
    """SYNs from all port numbers of a client that answers nothing; how many."""
    frame = _syn(client, server, port)
    sent = 0
    with client.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for _ in range(200):
                sent += 1
                raw.send(frame(1024 + sent % 60000))
    return sent


def _syn(client: Endpoint, server: Endpoint, port: int) -> Any:
    import struct

    def checksum(data: bytes) -> int:
        total = sum(struct.unpack(f"!{len(data) // 2}H", data))
        total = (total >> 16) + (total & 0xFFFF)
        return ~(total + (total >> 16)) & 0xFFFF

    ethernet = bytes.fromhex((client.gateway_mac + client.mac).replace(":", "")) + b"\x08\x00"
    ends = socket.inet_aton(client.ipv4) + socket.inet_aton(server.ipv4)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, 6, 0) + ends
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    pseudo = ends + struct.pack("!BBH", 0, 6, 20)

    def frame(source: int) -> bytes:
        def tcp(check: int) -> bytes:
            return struct.pack("!HHIIBBHHH", source, port, source, 0, 0x50, 2, 65535, check, 0)

        return ethernet + ip + tcp(checksum(pseudo + tcp(0)))

    return frame


@pytest.mark.parametrize("way", ["direct", "judged"])
def test_a_flood_of_beginnings_is_bounded(way: str) -> None:
    """The map of connections has a size, old half-open ones make room, and others go on."""
    with (
        Lab("client", "server", "other") as lab,
        site(lab, "--bpf-ct-global-max", "1024") as node,
        web(lab["server"], lab["server"].ipv4),
        ExitStack() as stack,
    ):
        of = apps("fromEndpoints", "client", "other")
        rules = {"http": [{}]} if way == "judged" else {}
        node.policies(policy("in", "server", ingress=[{**of, **ports(80, **rules)}]))
        other, server = lab["other"], lab["server"]
        made = http.client.HTTPConnection(server.ipv4, 80, timeout=5)
        stack.callback(made.close)
        with other.entered():
            made.connect()
        # The client that floods hears no answers, so it resets none of its connections.
        lab["client"].ip("route replace blackhole default", "addr flush dev eth0")
        assert flood(lab["client"], server, 80, 2.0) > 5000
        for _ in range(3):
            made.request("GET", "/")
            assert made.getresponse().read().decode() == other.ipv4
        found = json.loads(node.cli("bpf", "ct", "list", "--json"))
        assert 0 < len(found) <= 1024
        assert fetch(other, server.ipv4) == f"200 {other.ipv4}"
