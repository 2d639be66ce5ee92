"""Allowed, denied and redirected, for each direction, family and kind of peer."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable

import pytest

from bpf import syscall
from bpf.netns import within
from tests.bpf.datapath.conftest import (
    BOTH_PROXY,
    CLIENT,
    EGRESS_PROXY,
    INGRESS_PROXY,
    PORT,
    SERVER,
    host,
)
from tests.bpf.datapath.frames import ethernet, ipv4, tcp
from tests.bpf.datapath.hosts import (
    DENIED_AFTER,
    RunningProxy,
    Talk,
    connects,
    datagram,
    eventually,
    family,
)
from tests.bpf.datapath.plane import (
    DENY,
    EGRESS,
    INGRESS,
    NONE,
    OPEN,
    REDIRECT,
    TCP,
    UDP,
    WORLD,
    Entry,
    Plane,
)
from tests.bpf.datapath.proxy import transparent

PAIRS = [
    ("client", "server"),
    ("client", "outside"),
    ("client", "node"),
    ("outside", "server"),
    ("node", "server"),
]
FAMILIES = ["ipv4", "ipv6"]
IDENTITIES = {"client": CLIENT, "server": SERVER, "outside": WORLD, "node": 1}

every_pair = pytest.mark.parametrize(("source", "target"), PAIRS)
every_family = pytest.mark.parametrize("version", FAMILIES)

TO_EGRESS_PROXY = [
    Entry(EGRESS, 0, protocol, PORT, REDIRECT, proxy=EGRESS_PROXY, both=BOTH_PROXY)
    for protocol in (TCP, UDP)
]
TO_INGRESS_PROXY = [
    Entry(INGRESS, 0, protocol, PORT, REDIRECT, proxy=INGRESS_PROXY, both=BOTH_PROXY)
    for protocol in (TCP, UDP)
]


def judge_of(source: str, target: str) -> list[tuple[str, Entry]]:
    """Whose policy can deny the pair's connections, and what it says of the peer."""
    return [
        *([("client", Entry(EGRESS, IDENTITIES[target]))] if source == "client" else []),
        *([("server", Entry(INGRESS, IDENTITIES[source]))] if target == "server" else []),
    ]


@every_family
@every_pair
def test_what_is_allowed_passes(plane: Plane, source: str, target: str, version: str) -> None:
    sender, address = host(plane, source), getattr(host(plane, target), version)
    for name, entry in judge_of(source, target):
        plane.policy(
            name,
            entry._replace(protocol=TCP, port=PORT),
            entry._replace(protocol=UDP, port=PORT),
        )
    with Talk(sender, address, PORT) as talk:
        assert talk.peer == (getattr(sender, version), talk.port)
        assert talk.echo(b"x" * 100_000) == b"x" * 100_000
    answer = datagram(sender, address, PORT, timeout=5)
    assert answer is not None
    assert answer.startswith(getattr(sender, version).encode())
    assert plane.drops() == {}


@every_family
@every_pair
@pytest.mark.parametrize(
    "said",
    [
        # Nothing of the port; another identity; another port; a deny that wins over an allow.
        lambda entry: [],
        lambda entry: [entry._replace(identity=4711)],
        lambda entry: [entry._replace(protocol=TCP, port=PORT + 1)],
        lambda entry: [Entry(entry.direction), entry._replace(verdict=DENY)],
        lambda entry: [Entry(entry.direction, verdict=DENY), entry],
    ],
    ids=["nothing", "identity", "port", "deny", "deny any"],
)
def test_what_is_not_is_dropped(
    plane: Plane,
    source: str,
    target: str,
    version: str,
    said: Callable[[Entry], list[Entry]],
) -> None:
    address = getattr(host(plane, target), version)
    for name, entry in judge_of(source, target)[-1:]:
        other = Entry(INGRESS if entry.direction == EGRESS else EGRESS)
        plane.policy(name, other, *said(entry))
        reason = "POLICY_DENY" if any(e.verdict == DENY for e in said(entry)) else "POLICY"
        assert datagram(host(plane, source), address, PORT, timeout=0.05) is None
        assert plane.counters()[name, entry.direction, reason] == 1
        assert plane.drops() == {reason: 1}


@every_family
def test_a_denied_connection_is_not_made(plane: Plane, version: str) -> None:
    server = plane.lab["server"]
    plane.policy("server", Entry(EGRESS))
    assert not connects(plane.lab["client"], getattr(server, version), PORT)
    assert plane.drops() == {"POLICY": 1}
    plane.policy("server", *OPEN)
    assert connects(plane.lab["client"], getattr(server, version), PORT)


def test_an_endpoint_without_policy_is_closed(plane: Plane) -> None:
    plane.policy("server")
    assert not connects(plane.lab["client"], plane.lab["server"].ipv4, PORT)
    assert not connects(plane.lab["server"], plane.lab["client"].ipv4, PORT)
    assert plane.drops() == {"POLICY": 2}


@pytest.mark.parametrize("policies", ["egress", "ingress", "both"])
@every_family
@every_pair
def test_redirected_through_one_proxy(
    plane: Plane,
    taken: list[RunningProxy],
    source: str,
    target: str,
    version: str,
    policies: str,
) -> None:
    """Exactly one proxy sees the connection; the server sees the client's own address."""
    at_client = source == "client" and policies != "ingress"
    at_server = target == "server" and policies != "egress"
    if policies != "ingress":
        plane.policy("client", *OPEN, *TO_EGRESS_PROXY)
    if policies != "egress":
        plane.policy("server", *OPEN, *TO_INGRESS_PROXY)
    sender, address = host(plane, source), getattr(host(plane, target), version)
    own = getattr(sender, version)
    with Talk(sender, address, PORT) as talk:
        assert talk.peer[0] == own
        judged = talk.ask(b"X")
        assert talk.echo(b"x" * 100_000) == b"x" * 100_000
    told = datagram(sender, address, PORT, b"hello", timeout=5)
    denied = datagram(sender, address, PORT, b"X", timeout=5)
    assert told is not None
    assert told.split()[0] == own.encode()
    expected = [at_client and not at_server, at_server and not at_client, at_client and at_server]
    if any(expected):
        assert judged == denied == b"X denied by the proxy"
    else:
        assert judged == b"X"
    if any(expected):
        saw = [("tcp", own, address), ("udp", own, address), ("udp", own, address)]
        eventually(lambda: len(taken[expected.index(True)].connections) == 3)
        assert taken[expected.index(True)].connections == saw
    assert [bool(one.connections) for one in taken] == expected
    assert plane.drops() == {}


@every_family
def test_only_the_port_that_is_told_is_redirected(
    plane: Plane, taken: list[RunningProxy], version: str
) -> None:
    address = getattr(plane.lab["server"], version)
    plane.policy("client", *OPEN, *(e._replace(port=PORT + 1) for e in TO_EGRESS_PROXY))
    with Talk(plane.lab["client"], address, PORT) as talk:
        assert talk.ask(b"X") == b"X"
    assert [one.connections for one in taken] == [[], [], []]


def test_ranges_of_ports_are_prefixes(plane: Plane) -> None:
    assert PORT == 8080, "8064 to 8095 are 11 of 16 bits"
    plane.policy("client", Entry(INGRESS), Entry(EGRESS, SERVER, TCP, 8064, port_bits=11))
    assert connects(plane.lab["client"], plane.lab["server"].ipv4, PORT)
    plane.policy("client", Entry(INGRESS), Entry(EGRESS, SERVER, TCP, 8096, port_bits=11))
    assert not connects(plane.lab["client"], plane.lab["server"].ipv4, PORT)


def test_the_greater_verdict_wins(plane: Plane, taken: list[RunningProxy]) -> None:
    """What is said to an identity, and what is said to any: a redirect beats an allow."""
    client, address = plane.lab["client"], plane.lab["server"].ipv4
    for identity in (SERVER, 0):
        other = SERVER if identity == 0 else 0
        redirect = TO_EGRESS_PROXY[0]._replace(identity=identity)
        plane.policy("client", redirect, Entry(EGRESS, other, TCP, PORT))
        with Talk(client, address, PORT) as talk:
            assert talk.ask(b"X") == b"X denied by the proxy"
    plane.policy("client", TO_EGRESS_PROXY[0], Entry(EGRESS, SERVER, TCP, PORT, DENY))
    assert not connects(client, address, PORT)
    eventually(lambda: len(taken[0].connections) == 2)


def test_two_parsers_for_one_connection(plane: Plane, taken: list[RunningProxy]) -> None:
    client, address = plane.lab["client"], plane.lab["server"].ipv4
    plane.policy("client", *OPEN, TO_EGRESS_PROXY[0]._replace(both=10009))
    plane.policy("server", *OPEN, TO_INGRESS_PROXY[0])
    assert not connects(client, address, PORT)
    plane.policy("client", *OPEN, TO_EGRESS_PROXY[0]._replace(both=0))
    assert not connects(client, address, PORT)
    assert plane.drops() == {"TWO_PARSERS": 2}


@pytest.mark.parametrize("name", ["client", "server"])
def test_a_redirect_without_a_port(plane: Plane, name: str) -> None:
    entry = TO_EGRESS_PROXY[0] if name == "client" else TO_INGRESS_PROXY[0]
    plane.policy(name, *OPEN, entry._replace(proxy=0, both=0))
    assert not connects(plane.lab["client"], plane.lab["server"].ipv4, PORT)
    assert plane.drops() == {"NO_PROXY_PORT": 1}


def test_the_other_end_is_asked_before_the_proxy_is(
    plane: Plane, taken: list[RunningProxy]
) -> None:
    """An egress redirect does not get round what the server's ingress policy denies."""
    plane.policy("client", *OPEN, TO_EGRESS_PROXY[0])
    plane.policy("server", Entry(EGRESS), Entry(INGRESS, 4711, TCP, PORT))
    assert not connects(plane.lab["client"], plane.lab["server"].ipv4, PORT)
    assert taken[0].connections == []
    assert plane.drops() == {"POLICY": 1}


def test_audit_mode_passes_and_tells(plane: Plane, taken: list[RunningProxy]) -> None:
    """What a policy in audit mode would deny passes; where it has L7 rules the proxy logs."""
    client, address = plane.lab["client"], plane.lab["server"].ipv4
    plane.policy("client", Entry(INGRESS), Entry(EGRESS, would=NONE))
    with Talk(client, address, PORT) as talk:
        found = plane.conntrack()["client", TCP, talk.port, PORT, address]
        assert found["flags"] & 32
    plane.policy("client", *OPEN, TO_EGRESS_PROXY[0]._replace(verdict=1, would=REDIRECT))
    with Talk(client, address, PORT) as talk:
        assert talk.ask(b"X") == b"X denied by the proxy"
    eventually(lambda: len(taken[0].connections) == 1)
    # As long as it has no proxy, nothing is cut.
    plane.policy("client", *OPEN, Entry(EGRESS, 0, TCP, PORT, 1, would=REDIRECT))
    assert connects(client, address, PORT)


def test_a_policy_is_replaced_in_one_step(plane: Plane) -> None:
    """While it is, what both policies allow is not denied, and what both deny does not pass."""
    node, client = plane.lab.node, plane.lab["client"]
    index, answers, stop = node.ifindex(client.interface), set(), threading.Event()
    frames = {
        port: ethernet(ipv4(client.ipv4, "198.51.100.7", TCP, tcp(5000, port)))
        for port in (PORT, PORT + 1)
    }

    def ask() -> None:
        with node.entered():
            while not stop.is_set():
                for port, frame in frames.items():
                    ran = syscall.run_program(plane.from_endpoint, frame, index)
                    answers.add((port, ran.code))

    def replace(round_: int) -> None:
        # Wide, and what takes back from it; in a new place each time.
        others = [Entry(EGRESS, 5000 + round_ + n, TCP, n + 1) for n in range(30)]
        said = [Entry(EGRESS), Entry(EGRESS, WORLD, TCP, PORT + 1, DENY)]
        plane.policy("client", *others, *said)

    replace(0)
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for round_ in range(400):
            replace(round_)
    finally:
        stop.set()
        asking.join()
    assert answers == {(PORT, 0), (PORT + 1, 2)}
    assert set(plane.drops()) == {"POLICY_DENY"}


def test_the_mark_has_the_sources_identity(plane: Plane) -> None:
    """All of its 24 bits, on the way back to the interface."""
    node, server = plane.lab.node, plane.lab["server"]
    plane.policy("server", *OPEN, TO_INGRESS_PROXY[0])
    plane.identify({"198.51.100.7/32": 0x123456})
    frame = ethernet(ipv4("198.51.100.7", server.ipv4, TCP, tcp(5000, PORT)))
    index = node.ifindex(server.interface)
    ran = within(str(node.path), lambda: syscall.run_program(plane.to_endpoint, frame, index))
    assert ran.code == 7, "redirected"
    assert ran.mark == 0x200 | 0x3456 << 16 | 0x12


@every_family
def test_the_proxys_datagram_sockets_are_no_way_round_a_policy(plane: Plane, version: str) -> None:
    """One towards servers that takes from everybody: whom the client may not ask, it may not."""
    target = getattr(plane.lab["server"], version)
    with plane.lab.node.entered():
        made = transparent(family(target), socket.SOCK_DGRAM, 0xA00)
    with made:
        made.bind((target, 5353))
        plane.policy("client", Entry(INGRESS))
        assert datagram(plane.lab["client"], target, 5353, timeout=0.05) is None
        assert plane.drops() == {"POLICY": 1}
        with pytest.raises(BlockingIOError):
            made.recv(1)
        # What comes from outside for it is its own.
        assert datagram(plane.lab.outside, target, 5353, timeout=0.05) is None
        eventually(lambda: bool(select.select([made], [], [], 0)[0]))
        assert made.recv(100) == b"hello"


def test_what_goes_out_of_the_namespace_has_no_mark(plane: Plane) -> None:
    """An endpoint cannot pass for the proxy: marks do not leave their namespace."""
    plane.policy("server", Entry(EGRESS))
    with plane.lab["client"].entered():
        for mark in (0x200, 0xA00, 0xB00):
            with socket.socket() as made:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                made.settimeout(DENIED_AFTER)
                with pytest.raises(TimeoutError):
                    made.connect((plane.lab["server"].ipv4, PORT))
    assert plane.drops() == {"POLICY": 3}
