"""The same programs inside the endpoint's namespace, with a proxy of its own there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from demos.namespaces import Lab
from tests.bpf.datapath.conftest import CLIENT, PORT, SERVER, host
from tests.bpf.datapath.hosts import (
    RunningProxy,
    Servers,
    Talk,
    connects,
    crowd,
    datagram,
    eventually,
)
from tests.bpf.datapath.plane import (
    EGRESS,
    HOST,
    INGRESS,
    OPEN,
    REDIRECT,
    TCP,
    UDP,
    Entry,
    Plane,
)
from tests.bpf.datapath.test_connections import entry_of, silent

PROXY_PORTS = {"client": "32768-46000", "server": "46001-60999"}
"""Of the proxies' sockets towards servers: a proxy whose port towards its own endpoint is one
that the other proxy has would meet its own accepted connection (equal 4-tuples)."""

OUT = [Entry(EGRESS, 0, p, PORT, REDIRECT, proxy=10000, both=10000) for p in (TCP, UDP)]
IN = [Entry(INGRESS, 0, p, PORT, REDIRECT, proxy=10000, both=10000) for p in (TCP, UDP)]


@pytest.fixture(scope="module")
def world(privileged: None, cache: Path) -> Iterator[Plane]:
    """client and server with programs inside; other has its own on the node."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab("client", "server", "other", outside=True))
        made = Plane(lab, cache)
        stack.callback(made.close)
        made.route(lab.node)
        made.attach_sidecar(lab["client"], CLIENT)
        made.attach_sidecar(lab["server"], SERVER)
        made.attach(lab["other"], 1003)
        made.identify({lab.node.ipv4: HOST, lab.node.ipv6: HOST})
        for where in (*lab, lab.outside, lab.node):
            stack.callback(Servers(where, PORT).close)
        yield made


@pytest.fixture(scope="module")
def running(world: Plane) -> Iterator[list[RunningProxy]]:
    made = [
        RunningProxy(world.lab[name], 10000, "--upstream-ports", ports)
        for name, ports in PROXY_PORTS.items()
    ]
    yield made
    for one in made:
        one.close()


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("client", "server"),
        ("client", "outside"),
        ("client", "node"),
        ("client", "other"),
        ("other", "server"),
        ("outside", "server"),
        ("node", "server"),
    ],
)
@pytest.mark.parametrize("policies", ["none", "egress", "ingress", "both"])
def test_each_end_judges_for_itself(
    plane: Plane,
    taken: list[RunningProxy],
    source: str,
    target: str,
    version: str,
    policies: str,
) -> None:
    plane.policy("client", *OPEN, *(OUT if policies in ("egress", "both") else ()))
    plane.policy("server", *OPEN, *(IN if policies in ("ingress", "both") else ()))
    by = [
        source == "client" and policies in ("egress", "both"),
        target == "server" and policies in ("ingress", "both"),
    ]
    sender, address = host(plane, source), getattr(host(plane, target), version)
    with Talk(sender, address, PORT) as talk:
        assert talk.peer[0] == getattr(sender, version)
        assert talk.echo(b"x" * 100_000) == b"x" * 100_000
        assert talk.ask(b"X") == (b"X denied by the proxy" if any(by) else b"X")
    told = datagram(sender, address, PORT, b"hello", timeout=5)
    assert told is not None
    assert told.split()[0] == getattr(sender, version).encode()
    eventually(lambda: [len(one.connections) == 2 for one in taken] == by)
    assert plane.drops() == {}


@pytest.mark.parametrize("name", ["client", "server"])
def test_denied(plane: Plane, name: str) -> None:
    plane.policy(name, Entry(INGRESS if name == "client" else EGRESS))
    assert not connects(plane.lab["client"], plane.lab["server"].ipv4, PORT)
    direction = EGRESS if name == "client" else INGRESS
    assert plane.counters()[name, direction, "POLICY"] == 1


def test_a_policy_changes_under_a_connection(plane: Plane, taken: list[RunningProxy]) -> None:
    with Talk(plane.lab["client"], plane.lab["server"].ipv4, PORT) as talk:
        plane.policy("client", Entry(INGRESS))
        silent(talk)
        plane.policy("client", *OPEN, *OUT)
        silent(talk)
        assert plane.drops()["PROXY_NEEDED"] > 0


def test_lost_entries(plane: Plane, taken: list[RunningProxy]) -> None:
    plane.policy("client", *OPEN, *OUT)
    plane.policy("server", *OPEN, *IN)
    with Talk(plane.lab["client"], plane.lab["server"].ipv6, PORT) as talk:
        assert entry_of(plane, "client", talk.port)["flags"] & 2
        for _ in range(3):
            plane.maps["conntrack"].delete_many(k for k, _ in plane.maps["conntrack"].items())
            assert talk.echo(b"x" * 10_000) == b"x" * 10_000


def test_the_proxy_is_gone(plane: Plane) -> None:
    policy = [entry._replace(proxy=10001) for entry in OUT]
    plane.policy("client", *OPEN, *policy)
    assert not connects(plane.lab["client"], plane.lab["server"].ipv4, PORT)
    assert set(plane.drops()) == {"NO_SOCKET"}


def test_300_connections_at_once(plane: Plane, taken: list[RunningProxy]) -> None:
    """Through both proxies, whose own ports never collide with the clients'."""
    plane.policy("client", *OPEN, *OUT)
    plane.policy("server", *OPEN, *IN)
    made = crowd(plane.lab["client"], plane.lab["server"].ipv4, PORT, 300)
    for one in made:
        one.close()
    eventually(lambda: [len(one.connections) for one in taken] == [300, 300])
