"""The ports of a sidecar's Envoy towards its own application are never those of the clients.

Both ends of such a connection are sockets of one network namespace: with a client's port, it would
have the addresses and ports of the connection that it is made for. Here are so few ports
that each choice is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from demos.namespaces import Lab
from tests.integration.node.site import WEB, Site, apps, http, policy, ports, site
from tests.integration.node.traffic import fetch, web

EVEN, ODD, OWN = 40002, 40003, 40000

RULES = ports(WEB, http=http("/public/.*"))
INGRESS = policy("in", "server", ingress=[{**apps("fromEndpoints", "client"), **RULES}])
EGRESS = policy("out", "client", egress=[{**apps("toEndpoints", "server"), **RULES}])


@pytest.fixture
def node() -> Iterator[Site]:
    """Two sidecars; what their namespaces choose by themselves are two ports."""
    with Lab("client", "server") as lab, site(lab, mode="sidecar") as made, ExitStack() as stack:
        for address in (lab["server"].ipv4, lab["server"].ipv6):
            stack.enter_context(web(lab["server"], address, WEB))
        for endpoint in lab:
            endpoint.sysctl("ipv4/ip_local_port_range", f"{EVEN} {ODD}")
        yield made


def ask(node: Site, own_port: int) -> tuple[str, str]:
    """What the server says with either version of IP: the client's address."""
    client, server = node.lab["client"], node.lab["server"]
    first = fetch(client, server.ipv4, "/public/a", own_port=own_port)
    return first, fetch(client, server.ipv6, "/public/a", own_port=own_port)


def seen(node: Site) -> tuple[str, str]:
    client = node.lab["client"]
    return f"200 {client.ipv4}", f"200 {client.ipv6}"


def test_a_client_has_the_port_that_envoy_would_connect_from(node: Site) -> None:
    node.policies(INGRESS)
    assert ask(node, EVEN) == seen(node)


def test_the_client_is_another_envoy(node: Site) -> None:
    """Towards other servers it takes an even port as clients do, and leaves the odd ones."""
    node.policies(INGRESS, EGRESS)
    assert ask(node, OWN) == seen(node)
