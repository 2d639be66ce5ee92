"""A site for each file of tests: a client, a server, another, and a host outside of the node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from demos.namespaces import Lab
from tests.integration.node.site import Site, site
from tests.integration.node.traffic import datagrams, lines, web

WEB, OTHER_WEB = 80, 81


@pytest.fixture(scope="module")
def node() -> Iterator[Site]:
    """A node with its agent and endpoints, shared by the tests of a file."""
    with Lab("client", "server", "other", outside=True) as lab, site(lab) as made:
        yield made


@pytest.fixture(scope="module")
def servers(node: Site) -> Iterator[None]:
    """Web servers at two ports, lines and datagrams: at the server, and outside."""
    with ExitStack() as stack:
        for place in (node.lab["server"], node.lab.outside):
            for address in (place.ipv4, place.ipv6):
                stack.enter_context(web(place, address, WEB))
                stack.enter_context(web(place, address, OTHER_WEB))
                stack.enter_context(lines(place, address))
                stack.enter_context(datagrams(place, address))
        yield


@pytest.fixture(params=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> str:
    """Of IP: the attribute of a namespace that has its address."""
    name: str = request.param
    return name
