"""Who may connect to whom, and what a parser says about it: each direction, and both at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from demos.namespaces import Lab, Namespace
from tests.integration.node.conftest import OTHER_WEB, WEB
from tests.integration.node.site import Site, apps, http, policy, ports, site
from tests.integration.node.traffic import NO_ANSWER, PATIENCE, SILENCE, datagram, fetch

pytestmark = pytest.mark.usefixtures("servers")


@pytest.fixture(scope="module", params=["node", "sidecar"])
def node(request: pytest.FixtureRequest) -> Iterator[Site]:
    """The same verdicts, whether one Envoy judges for all or each endpoint has its own."""
    with (
        Lab("client", "server", "other", outside=True) as lab,
        site(lab, mode=request.param) as made,
    ):
        yield made


PUBLIC = http("/public/.*")
WORLD = {"fromEntities": ["world"]}


def ask(
    client: Namespace,
    server: Namespace,
    version: str,
    path: str,
    port: int = WEB,
    expected: str = "",
) -> str:
    timeout = SILENCE if expected == NO_ANSWER else PATIENCE
    return fetch(client, getattr(server, version), path, port, timeout=timeout)


def check(version: str, expected: Sequence[str], *requests: tuple[Any, ...]) -> None:
    """`ask` for each (client, server, path, and perhaps port), all at once: silence takes time."""
    with ThreadPoolExecutor(len(requests)) as pool:
        calls = [
            pool.submit(ask, client, server, version, *more, expected=wanted)
            for (client, server, *more), wanted in zip(requests, expected, strict=True)
        ]
        assert tuple(call.result() for call in calls) == expected


def seen(client: Namespace, version: str) -> str:
    """A page that says that the server saw the client's own address."""
    return f"200 {getattr(client, version)}"


def ingress(verdict: str, peers: dict[str, Any]) -> dict[str, Any]:
    """The server's policy about its clients."""
    if verdict == "deny":
        everybody = [{"fromEntities": ["all"]}]
        return policy("in", "server", ingress=everybody, ingress_deny=[{**peers, **ports(WEB)}])
    rules = {"http": PUBLIC} if verdict == "redirect" else {}
    return policy("in", "server", ingress=[{**peers, **ports(WEB, **rules)}])


def egress(verdict: str, peers: dict[str, Any]) -> dict[str, Any]:
    """The client's policy about its servers."""
    if verdict == "deny":
        everybody = [{"toEntities": ["all"]}]
        return policy("out", "client", egress=everybody, egress_deny=[{**peers, **ports(WEB)}])
    rules = {"http": PUBLIC} if verdict == "redirect" else {}
    return policy("out", "client", egress=[{**peers, **ports(WEB, **rules)}])


def test_without_policies_everything_passes(node: Site, version: str) -> None:
    node.policies()
    lab = node.lab
    for client in (lab["client"], lab["other"], lab.outside, lab.node):
        assert ask(client, lab["server"], version, "/") == seen(client, version)
    assert ask(lab["client"], lab.outside, version, "/") == seen(lab["client"], version)
    assert datagram(lab["client"], getattr(lab["server"], version)) == "answered"


@pytest.mark.parametrize("verdict", ["allow", "deny", "redirect"])
def test_ingress(node: Site, version: str, verdict: str) -> None:
    node.policies(ingress(verdict, apps("fromEndpoints", "client")))
    client, server, other = node.lab["client"], node.lab["server"], node.lab["other"]
    expected = {
        "allow": (seen(client, version), seen(client, version), NO_ANSWER, NO_ANSWER),
        "deny": (NO_ANSWER, NO_ANSWER, seen(other, version), seen(client, version)),
        "redirect": (seen(client, version), "403", NO_ANSWER, NO_ANSWER),
    }[verdict]
    check(
        version,
        expected,
        (client, server, "/public/a"),
        (client, server, "/private"),
        (other, server, "/public/a"),
        (client, server, "/public/a", OTHER_WEB),
    )


@pytest.mark.parametrize("verdict", ["allow", "deny", "redirect"])
def test_egress(node: Site, version: str, verdict: str) -> None:
    node.policies(egress(verdict, apps("toEndpoints", "server")))
    client, server, other = node.lab["client"], node.lab["server"], node.lab["other"]
    expected = {
        "allow": (seen(client, version), seen(client, version), NO_ANSWER, NO_ANSWER),
        "deny": (NO_ANSWER, NO_ANSWER, seen(client, version), seen(client, version)),
        "redirect": (seen(client, version), "403", NO_ANSWER, NO_ANSWER),
    }[verdict]
    check(
        version,
        expected,
        (client, server, "/public/a"),
        (client, server, "/private"),
        (client, server, "/public/a", OTHER_WEB),
        (client, node.lab.outside, "/public/a"),
    )
    # Whom it does not select has no policy.
    assert ask(other, server, version, "/private") == seen(other, version)


def test_a_parser_in_each_direction_both_at_once(node: Site, version: str) -> None:
    """One pass: a request must please the client's policy and the server's."""
    to, of = apps("toEndpoints", "server"), apps("fromEndpoints", "client", "other")
    node.policies(
        policy("out", "client", egress=[{**to, **ports(WEB, http=http("/a.*", "/both"))}]),
        policy("in", "server", ingress=[{**of, **ports(WEB, http=http("/b.*", "/both"))}]),
    )
    client, server, other = node.lab["client"], node.lab["server"], node.lab["other"]
    check(
        version,
        (seen(client, version), "403", "403", "403", seen(other, version), "403"),
        (client, server, "/both"),
        (client, server, "/a"),
        (client, server, "/b"),
        (client, server, "/neither"),
        (other, server, "/b"),
        (other, server, "/a"),
    )


@pytest.mark.parametrize("closed", ["ingress", "egress"])
def test_one_direction_denies_what_the_other_gives_to_a_parser(
    node: Site, version: str, closed: str
) -> None:
    to, of = apps("toEndpoints", "server"), apps("fromEndpoints", "client")
    nobody, nowhere = apps("fromEndpoints", "nobody"), apps("toEndpoints", "nobody")
    if closed == "ingress":
        documents = [egress("redirect", to), ingress("allow", nobody)]
    else:
        documents = [egress("allow", nowhere), ingress("redirect", of)]
    node.policies(*documents)
    assert (
        ask(node.lab["client"], node.lab["server"], version, "/public/a", expected=NO_ANSWER)
        == NO_ANSWER
    )


@pytest.mark.parametrize("verdict", ["allow", "deny", "redirect"])
def test_from_outside(node: Site, version: str, verdict: str) -> None:
    node.policies(ingress(verdict, WORLD))
    outside, server, other = node.lab.outside, node.lab["server"], node.lab["other"]
    expected = {
        "allow": (seen(outside, version), seen(outside, version), NO_ANSWER),
        "deny": (NO_ANSWER, NO_ANSWER, seen(other, version)),
        "redirect": (seen(outside, version), "403", NO_ANSWER),
    }[verdict]
    check(
        version,
        expected,
        (outside, server, "/public/a"),
        (outside, server, "/private"),
        (other, server, "/public/a"),
    )


@pytest.mark.parametrize("verdict", ["allow", "deny", "redirect"])
def test_to_the_outside(node: Site, version: str, verdict: str) -> None:
    outside = node.lab.outside
    bits = {"ipv4": 32, "ipv6": 128}[version]
    node.policies(egress(verdict, {"toCIDR": [f"{getattr(outside, version)}/{bits}"]}))
    client, server = node.lab["client"], node.lab["server"]
    expected = {
        "allow": (seen(client, version), seen(client, version), NO_ANSWER),
        "deny": (NO_ANSWER, NO_ANSWER, seen(client, version)),
        "redirect": (seen(client, version), "403", NO_ANSWER),
    }[verdict]
    check(
        version,
        expected,
        (client, outside, "/public/a"),
        (client, outside, "/private"),
        (client, server, "/public/a"),
    )


@pytest.mark.parametrize("verdict", ["allow", "redirect"])
def test_from_the_node_itself(node: Site, version: str, verdict: str) -> None:
    node.policies(ingress(verdict, {"fromEntities": ["host"]}))
    host, server = node.lab.node, node.lab["server"]
    private = "403" if verdict == "redirect" else seen(host, version)
    assert ask(host, server, version, "/public/a") == seen(host, version)
    assert ask(host, server, version, "/private") == private
    assert ask(node.lab["client"], server, version, "/public/a", expected=NO_ANSWER) == NO_ANSWER


def test_replies_pass_where_nothing_else_does(node: Site, version: str) -> None:
    """The server may say nothing by itself, the client hear nothing."""
    node.policies(
        policy("mute", "server", egress=[apps("toEndpoints", "nobody")]),
        policy("deaf", "client", ingress=[apps("fromEndpoints", "nobody")]),
    )
    client, server = node.lab["client"], node.lab["server"]
    assert ask(client, server, version, "/") == seen(client, version)
    assert datagram(client, getattr(server, version)) == "answered"
    assert ask(server, node.lab.outside, version, "/", expected=NO_ANSWER) == NO_ANSWER
    assert datagram(server, getattr(node.lab.outside, version), timeout=SILENCE) == NO_ANSWER


def test_datagrams(node: Site, version: str) -> None:
    of = apps("fromEndpoints", "client")
    node.policies(policy("in", "server", ingress=[{**of, **ports(7000, protocol="UDP")}]))
    address = getattr(node.lab["server"], version)
    assert datagram(node.lab["client"], address) == "answered"
    assert datagram(node.lab["other"], address, timeout=SILENCE) == NO_ANSWER
    # The port is open to UDP alone.
    assert (
        ask(node.lab["client"], node.lab["server"], version, "/", 7000, expected=NO_ANSWER)
        == NO_ANSWER
    )
