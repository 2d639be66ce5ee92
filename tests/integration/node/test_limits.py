"""Maps that are too small: what does not fit is closed, and told; the rest goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from demos.namespaces import Lab
from tests.integration.node.site import PATIENCE, Site, apps, eventually, policy, ports, site
from tests.integration.node.traffic import Talk, datagram, datagrams, fetch, lines, silent, web

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("client", "server", "other", outside=True) as made, ExitStack() as stack:
        for place in (made["server"], made["other"], made.outside):
            for address in (place.ipv4, place.ipv6):
                stack.enter_context(web(place, address))
                stack.enter_context(lines(place, address))
                stack.enter_context(datagrams(place, address))
        yield made


def many(count: int) -> dict[str, Any]:
    """A policy of the server with so many entries, and the client may do everything."""
    far = [{"fromCIDR": [f"198.51.{n >> 8}.{n & 255}/32"], **ports(8000)} for n in range(count)]
    return policy("in", "server", ingress=[apps("fromEndpoints", "client"), *far])


def test_a_policy_that_does_not_fit(lab: Lab, version: str) -> None:
    with site(lab, "--bpf-policy-map-max", "256") as made:
        client, server = lab["client"], lab["server"]
        address = getattr(server, version)
        own = f"200 {getattr(client, version)}"
        made.policies(many(8))
        assert fetch(client, address) == own
        with Talk(client, getattr(lab["other"], version)) as talk:
            made.put(many(400))
            eventually(lambda: made.endpoint("server")["state"] == "ready", False)
            assert "policy" in made.endpoint("server")["reason"]
            assert silent(client, address)
            assert silent(server, getattr(lab.outside, version))
            # Others have a policy that fits.
            assert talk.say("x") == "x"
            assert made.endpoint("client")["state"] == "ready"
        assert "256" in made.agent.log
        made.agent.kill()
        assert silent(client, address)
        made.agent.start()
        assert silent(client, address)
        made.put(many(8))
        made.wait_ready()
        assert fetch(client, address) == own


def test_addresses_that_do_not_fit(lab: Lab) -> None:
    """One that is denied by its address must not pass because nobody knows it."""
    with site(lab, "--bpf-ipcache-max", "1024") as made:
        client, outside = lab["client"], lab.outside
        everybody = [{"toEntities": ["all"]}]
        far = [f"198.51.{n >> 8}.{n & 255}/32" for n in range(1200)]
        denied = [{"toCIDR": [*far, f"{outside.ipv4}/32"]}]
        assert fetch(client, outside.ipv4) == f"200 {client.ipv4}"
        made.policies(policy("out", "client", egress=everybody, egress_deny=denied), ready=False)
        eventually(lambda: silent(client, outside.ipv4), True)
        assert "ipcache" in json.dumps([made.endpoint("client"), made.status()])
        made.policies()
        assert fetch(client, outside.ipv4) == f"200 {client.ipv4}"


def test_more_connections_than_there_is_room_for(lab: Lab) -> None:
    """The oldest make room; one of them that goes on is judged again, and goes on."""
    with site(lab, "--bpf-ct-global-max", "1024") as made:
        client, server = lab["client"], lab["server"]
        made.policies(
            policy(
                "in",
                "server",
                ingress=[
                    {**apps("fromEndpoints", "client"), **ports(7000)},
                    {**apps("fromEndpoints", "client"), **ports(7000, protocol="UDP")},
                ],
            )
        )
        with ExitStack() as stack:
            talks = [stack.enter_context(Talk(client, server.ipv4)) for _ in range(20)]
            for _ in range(3000):
                assert datagram(client, server.ipv4) == "answered"
            assert [talk.say("x") for talk in talks] == ["x"] * 20
        assert len(json.loads(made.cli("bpf", "ct", "list", "--json"))) <= 1024


def connections(made: Site, port: int) -> list[Any]:
    found = json.loads(made.cli("bpf", "ct", "list", "--json"))
    return [entry for entry in found if f"{port}" in json.dumps(entry)]


def test_connections_are_forgotten(lab: Lab) -> None:
    """Closed ones soon; the agent tidies up."""
    with site(lab) as made:
        made.policies(policy("in", "server", ingress=[apps("fromEndpoints", "client")]))
        client, server = lab["client"], lab["server"]
        with Talk(client, server.ipv4, own_port=21001) as talk:
            assert talk.say("x") == "x"
            assert len(connections(made, 21001)) in (1, 2)
        deadline = time.monotonic() + 3 * PATIENCE
        while connections(made, 21001):
            assert time.monotonic() < deadline
            time.sleep(1)
