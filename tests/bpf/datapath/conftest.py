"""One lab with programs for a file of tests; each test finds it as new."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from demos.namespaces import Endpoint, Lab, Namespace
from tests.bpf.datapath.hosts import RunningProxy, Servers, proxies
from tests.bpf.datapath.plane import HOST, Plane

CLIENT, SERVER = 1001, 1002
"""Identities of the endpoints."""

PORT = 8080
"""Where every server of a lab listens."""

EGRESS_PROXY, INGRESS_PROXY, BOTH_PROXY = 10000, 10001, 10002


@pytest.fixture(scope="module")
def world(privileged: None, cache: Path) -> Iterator[Plane]:
    """client and server, endpoints of a node; a host outside; servers at `PORT` of all."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab("client", "server", outside=True))
        made = Plane(lab, cache)
        stack.callback(made.close)
        made.route(lab.node)
        made.attach(lab["client"], CLIENT)
        made.attach(lab["server"], SERVER)
        made.identify({lab.node.ipv4: HOST, lab.node.ipv6: HOST})
        for where in (lab["client"], lab["server"], lab.outside, lab.node):
            stack.callback(Servers(where, PORT).close)
        yield made


@pytest.fixture
def plane(world: Plane) -> Plane:
    """As new: everything is allowed, and nothing has happened."""
    world.reset()
    return world


@pytest.fixture(scope="module")
def running(world: Plane) -> Iterator[list[RunningProxy]]:
    """Proxies for egress, ingress and both, on the node."""
    with proxies(world.lab.node, EGRESS_PROXY, INGRESS_PROXY, BOTH_PROXY) as made:
        yield made


@pytest.fixture
def taken(running: list[RunningProxy]) -> list[RunningProxy]:
    """The proxies, which remember nothing."""
    for one in running:
        one.forget()
    return running


def host(plane: Plane, name: str) -> Namespace | Endpoint:
    """An endpoint, `node` or `outside`."""
    if name == "node":
        return plane.lab.node
    return plane.lab.outside if name == "outside" else plane.lab[name]
