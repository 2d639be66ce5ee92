"""Connections that live on while something changes: policy, identity, time, the proxy."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from bpf import schema
from tests.bpf.datapath.conftest import CLIENT, EGRESS_PROXY, INGRESS_PROXY, PORT, SERVER, host
from tests.bpf.datapath.hosts import (
    DENIED_AFTER,
    RunningProxy,
    Talk,
    connects,
    crowd,
    datagram,
    eventually,
    proxies,
)
from tests.bpf.datapath.plane import (
    DENY,
    EGRESS,
    INGRESS,
    OPEN,
    REDIRECT,
    TCP,
    UDP,
    Entry,
    Plane,
)

REDIRECTED = (*OPEN, Entry(EGRESS, 0, TCP, PORT, REDIRECT, proxy=EGRESS_PROXY))
REDIRECTED_IN = (*OPEN, Entry(INGRESS, 0, TCP, PORT, REDIRECT, proxy=INGRESS_PROXY))

FROM_PEER, PROXIED, SEEN_REPLY = 1, 2, 4
TIME_WAIT_PORT = 43210


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def entry_of(plane: Plane, name: str, port: int, own: bool = True) -> dict[str, int]:
    """The one entry of an endpoint's TCP connection from (or, not own, to) a port."""
    (found,) = [
        value
        for (endpoint, protocol, own_port, peer_port, _), value in plane.conntrack().items()
        if endpoint == name and protocol == TCP and (own_port if own else peer_port) == port
    ]
    return found


def silent(talk: Talk) -> None:
    """Nothing comes back any more."""
    talk.socket.settimeout(DENIED_AFTER)
    talk.socket.sendall(b"?")
    with pytest.raises(TimeoutError):
        talk.socket.recv(1)


def answers(talk: Talk) -> None:
    """What was lost meanwhile comes too."""
    talk.socket.settimeout(5)
    talk.socket.sendall(b"!")
    found = b""
    while not found.endswith(b"!"):
        found += talk.socket.recv(100)


def test_an_identity_changes_under_a_connection(plane: Plane) -> None:
    plane.policy("server", Entry(EGRESS), Entry(INGRESS, CLIENT, TCP, PORT))
    with Talk(plane.lab["client"], plane.lab["server"].ipv4, PORT) as talk:
        plane.relabel("client", 4711)
        silent(talk)
        assert plane.drops()["POLICY"] > 0
        plane.relabel("client", CLIENT)
        answers(talk)
    plane.relabel("client", CLIENT)


@pytest.mark.parametrize("name", ["client", "server"])
@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_a_policy_changes_under_a_connection(plane: Plane, name: str, version: str) -> None:
    with Talk(plane.lab["client"], getattr(plane.lab["server"], version), PORT) as talk:
        direction = EGRESS if name == "client" else INGRESS
        plane.policy(name, *OPEN, Entry(direction, 0, TCP, PORT, DENY))
        silent(talk)
        assert set(plane.drops()) == {"POLICY_DENY"}
        plane.policy(name, *OPEN)
        answers(talk)


def test_a_denied_connection_is_denied_to_both_of_its_ends(plane: Plane) -> None:
    """Also to the server, whose own egress policy allows everything."""
    server = plane.lab["server"]
    with server.entered():
        listener = socket.create_server(("", 7000))
    with plane.lab["client"].entered():
        made = socket.create_connection((server.ipv4, 7000), timeout=DENIED_AFTER)
    accepted, _ = listener.accept()
    with listener, accepted, made:
        plane.policy("server", Entry(EGRESS))
        accepted.sendall(b"pushed")
        with pytest.raises(TimeoutError):
            made.recv(10)
        assert plane.counters()["server", EGRESS, "POLICY"] > 0


@pytest.mark.parametrize("name", ["client", "server"])
def test_a_direct_connection_that_now_needs_the_proxy(
    plane: Plane, taken: list[RunningProxy], name: str
) -> None:
    with Talk(plane.lab["client"], plane.lab["server"].ipv4, PORT) as talk:
        plane.policy(name, *(REDIRECTED if name == "client" else REDIRECTED_IN))
        silent(talk)
        assert "PROXY_NEEDED" in plane.drops()
        with Talk(plane.lab["client"], plane.lab["server"].ipv4, PORT) as another:
            assert another.ask(b"X") == b"X denied by the proxy"


def test_a_proxied_connection_that_needs_none_any_more(
    plane: Plane, taken: list[RunningProxy]
) -> None:
    plane.policy("client", *REDIRECTED)
    with Talk(plane.lab["client"], plane.lab["server"].ipv4, PORT) as talk:
        plane.policy("client", *OPEN)
        assert talk.ask(b"X") == b"X denied by the proxy"
        assert talk.echo(b"on") == b"on"
        plane.policy("client", Entry(INGRESS))
        silent(talk)


def test_datagrams_go_to_the_proxy_as_soon_as_they_shall(
    plane: Plane, taken: list[RunningProxy]
) -> None:
    """A flow has no state that a proxy would have to know the beginning of."""
    with plane.lab["client"].entered():
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.settimeout(5)
        made.connect((plane.lab["server"].ipv4, PORT))
        made.send(b"X")
        assert made.recv(100).endswith(b"\nX")
        plane.policy("client", *OPEN, Entry(EGRESS, 0, UDP, PORT, REDIRECT, proxy=EGRESS_PROXY))
        made.send(b"X")
        assert made.recv(100) == b"X denied by the proxy"


def test_replies_pass_without_being_asked_for(plane: Plane) -> None:
    plane.policy("client", Entry(EGRESS))
    plane.policy("server", Entry(INGRESS))
    with Talk(plane.lab["client"], plane.lab["server"].ipv6, PORT) as talk:
        assert talk.echo(b"x" * 10_000) == b"x" * 10_000
    assert datagram(plane.lab["client"], plane.lab["server"].ipv6, PORT, timeout=5) is not None
    assert plane.drops() == {}
    assert not connects(plane.lab["server"], plane.lab["client"].ipv6, PORT)


def test_lifetimes(plane: Plane) -> None:
    client, address = plane.lab["client"], plane.lab["server"].ipv4

    def seconds(port: int, name: str = "client", own: bool = True) -> float:
        return (entry_of(plane, name, port, own)["expires"] - now()) / 1e9

    with client.entered():
        asking = socket.socket()
    asking.setblocking(False)
    plane.policy("server", Entry(EGRESS))
    asking.connect_ex((address, PORT))
    port = asking.getsockname()[1]
    assert 58 < seconds(port) < 60.1, "not answered"
    asking.close()
    plane.policy("server", *OPEN)
    talk = Talk(client, address, PORT)
    assert 21_590 < seconds(talk.port) < 21_600.1, "established"
    talk.socket.shutdown(socket.SHUT_WR)
    eventually(lambda: seconds(talk.port) < 10.1)
    assert seconds(talk.port) > 8, "closed by both"
    port = talk.port
    talk.close()
    talk = Talk(client, address, PORT)
    port = talk.port
    talk.close()
    assert 8 < seconds(port) < 10.1, "reset"
    assert 8 < seconds(port, "server", own=False) < 10.1


def test_what_has_expired_is_not_there(plane: Plane) -> None:
    """The server may answer, not ask; once the connection is forgotten, what it sends is asking."""
    server = plane.lab["server"]
    plane.policy("server", Entry(INGRESS))
    with server.entered():
        listener = socket.create_server(("", 7000))
    with plane.lab["client"].entered():
        made = socket.create_connection((server.ipv4, 7000), timeout=5)
    accepted, _ = listener.accept()
    with listener, accepted, made:
        accepted.sendall(b"one")
        assert made.recv(10) == b"one"
        for key, raw in plane.maps["conntrack"].items():
            told = schema.CONNTRACK_VALUE.unpack(raw)
            told[list(schema.CONNTRACK_VALUE.fields).index("expires")] = now() - 10**9
            plane.maps["conntrack"].set(key, schema.CONNTRACK_VALUE.pack(*told))
        made.settimeout(DENIED_AFTER)
        accepted.sendall(b"two")
        with pytest.raises(TimeoutError):
            made.recv(10)
        assert plane.drops()["POLICY"] > 0
        # Whoever may ask makes it known again.
        made.sendall(b"three")
        made.settimeout(5)
        assert made.recv(10) == b"two"


def test_a_lost_entry_harms_no_proxied_connection(plane: Plane, taken: list[RunningProxy]) -> None:
    """On any of its four ways: the proxy's sockets tell."""
    for name, policy in (("client", REDIRECTED), ("server", REDIRECTED_IN)):
        plane.reset()
        plane.policy(name, *policy)
        with Talk(plane.lab["client"], plane.lab["server"].ipv4, PORT) as talk:
            for _ in range(3):
                plane.maps["conntrack"].delete_many(k for k, _ in plane.maps["conntrack"].items())
                assert talk.echo(b"still there") == b"still there"
                assert talk.ask(b"X") == b"X denied by the proxy"
    with Talk(plane.lab.outside, plane.lab["server"].ipv6, PORT) as talk:
        plane.maps["conntrack"].delete_many(k for k, _ in plane.maps["conntrack"].items())
        plane.policy("server", *OPEN)
        assert talk.ask(b"X") == b"X denied by the proxy", "by its socket's mark alone"
    assert plane.drops() == {}


def test_the_proxy_is_gone(plane: Plane) -> None:
    """What needs it fails closed, at once known; other connections notice nothing."""
    client, address = plane.lab["client"], plane.lab["server"].ipv4
    with Talk(client, address, PORT) as direct:
        plane.policy("client", *OPEN, Entry(EGRESS, SERVER, TCP, PORT + 1, REDIRECT, proxy=10005))
        with plane.lab["server"].entered():
            listener = socket.create_server(("", PORT + 1))
        listener.settimeout(5)
        with listener:
            first = RunningProxy(plane.lab.node, 10005)
            with client.entered():
                made = socket.create_connection((address, PORT + 1), timeout=5)
            accepted, _ = listener.accept()
            first.close()
            with made, accepted:
                # The dead process's kernel has closed both ends: nothing hangs.
                assert made.recv(1) == accepted.recv(1) == b""
            assert not connects(client, address, PORT + 1)
            assert set(plane.drops()) == {"NO_SOCKET"}
            assert direct.echo(b"on") == b"on"

            # Another program on its port is given nothing.
            with plane.lab.node.entered():
                squatter = socket.create_server(("127.0.0.1", 10005))
                squatter.settimeout(0)
            with squatter:
                assert not connects(client, address, PORT + 1)
                with pytest.raises(BlockingIOError):
                    squatter.accept()
            with proxies(plane.lab.node, 10005), client.entered():
                socket.create_connection((address, PORT + 1), timeout=5).close()
            assert direct.echo(b"on") == b"on"


@pytest.mark.parametrize(
    ("source", "target"), [("client", "server"), ("client", "outside"), ("outside", "server")]
)
def test_equal_4_tuples(plane: Plane, source: str, target: str) -> None:
    """Towards the server the proxy has the client's own port: two connections, one 4-tuple."""
    one = RunningProxy(plane.lab.node, 10005, "--same-port")
    try:
        redirect = Entry(EGRESS, 0, TCP, PORT, REDIRECT, proxy=10005, both=10005)
        plane.policy("client", *OPEN, redirect)
        plane.policy("server", *OPEN, redirect._replace(direction=INGRESS))
        for version in ("ipv4", "ipv6"):
            for _ in range(10):
                address = getattr(host(plane, target), version)
                with Talk(host(plane, source), address, PORT) as talk:
                    assert talk.peer == (getattr(host(plane, source), version), talk.port)
                    assert talk.ask(b"X") == b"X denied by the proxy"
                    assert talk.echo(b"x" * 100_000) == b"x" * 100_000
        eventually(lambda: len(one.connections) == 20)
        # What comes late for a connection that was reset.
        assert set(plane.drops()) <= {"NO_SOCKET"}
    finally:
        one.close()


def test_a_port_is_used_again_while_the_proxy_waits(
    plane: Plane, taken: list[RunningProxy]
) -> None:
    """The proxy has closed first, and its socket is in TIME_WAIT when the next SYN comes."""
    plane.policy("client", *REDIRECTED)
    for round_ in range(3):
        talk = Talk(
            plane.lab["client"], plane.lab["server"].ipv4, PORT, timeout=10, source=TIME_WAIT_PORT
        )
        assert talk.ask(b"X") == b"X denied by the proxy"
        talk.socket.sendall(b"Q")
        assert talk.socket.recv(1) == b""
        talk.close(gently=True)
        eventually(lambda n=round_: len(taken[0].connections) == n + 1)  # type: ignore[misc]
        listed = plane.lab.node.run("ss", "-Htan", "state", "time-wait").stdout
        assert f":{TIME_WAIT_PORT}" in listed


@pytest.fixture
def many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 20_000), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("policy", [OPEN, REDIRECTED], ids=["direct", "redirected"])
def test_2000_connections_at_once(
    plane: Plane, taken: list[RunningProxy], many_files: None, policy: tuple[Entry, ...]
) -> None:
    plane.policy("client", *policy)
    made = crowd(plane.lab["client"], plane.lab["server"].ipv4, PORT, 2000)
    try:
        ports = {one.getsockname()[1] for one in made}
        tracked = {key[2] for key in plane.conntrack() if key[0] == "client"}
        assert len(ports & tracked) == 2000
        if policy is REDIRECTED:
            eventually(lambda: len(taken[0].connections) == 2000)
        assert plane.drops() == {}
    finally:
        for one in made:
            one.close()


def test_programs_outlive_their_loader(plane: Plane) -> None:
    """Killed without a pin of anything: what is attached goes on judging, by its maps."""
    lab, ready = plane.lab, os.pipe()
    child = os.fork()
    if child == 0:
        try:
            made = Plane(lab, plane.cache)
            made.attach(lab["client"], CLIENT)
            made.attach(lab["server"], SERVER)
            made.policy("client", *OPEN)
            made.policy("server", Entry(EGRESS), Entry(INGRESS, CLIENT, TCP, PORT))
            os.write(ready[1], b"!")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(ready[0], 1) == b"!"
        talk = Talk(lab["client"], lab["server"].ipv4, PORT)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready[0])
        os.close(ready[1])
    try:
        with talk:
            assert talk.echo(b"on") == b"on"
        assert connects(lab["client"], lab["server"].ipv4, PORT)
        assert not connects(lab.outside, lab["server"].ipv4, PORT)
    finally:
        plane.attach(lab["client"], CLIENT)
        plane.attach(lab["server"], SERVER)
