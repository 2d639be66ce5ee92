"""Endpoints that cannot be, that go away, and that change under the agent's feet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from demos.namespaces import Lab
from node.errors import SetupError
from tests.integration.node.site import Site, apps, eventually, http, policy, ports, site
from tests.integration.node.traffic import Talk, fetch, lines, silent, web

pytestmark = pytest.mark.timeout(180)


@contextmanager
def a_site() -> Iterator[Site]:
    """The server's pages are for the client, by a parser; its lines for everybody."""
    with Lab("client", "server", "other") as lab, ExitStack() as stack:
        for place in lab:
            for address in (place.ipv4, place.ipv6):
                stack.enter_context(web(place, address))
                stack.enter_context(lines(place, address))
        node = stack.enter_context(site(lab))
        of = {**apps("fromEndpoints", "client"), **ports(80, http=http("/a"))}
        everybody = {"fromEntities": ["all"], **ports(7000)}
        node.policies(policy("in", "server", ingress=[of, everybody]))
        yield node


@pytest.fixture(scope="module")
def node() -> Iterator[Site]:
    """For those that leave it as it was."""
    with a_site() as site:
        yield site


@pytest.fixture
def made() -> Iterator[Site]:
    with a_site() as site:
        yield site


def as_ever(made: Site) -> None:
    """What was in force is in force."""
    client, other, server = made.lab["client"], made.lab["other"], made.lab["server"]
    for version in ("ipv4", "ipv6"):
        address = getattr(server, version)
        assert fetch(client, address, "/a") == f"200 {getattr(client, version)}"
        assert fetch(client, address, "/b") == "403"
    assert silent(other, server.ipv4, "/a")


ODD: tuple[dict[str, Any], ...] = (
    {"netns": "nobody-made-this"},
    {"netns": "../../proc/1/ns/net"},
    {"netns": "/etc/passwd"},
    {"netns": "/"},
    {"netns": "a\u0000b"},
    {"netns": "a\nb\u001b[2J"},
    {"netns": "x" * 5000},
    {"netns": ""},
    {"pid": 0},
    {"pid": -1},
    {"pid": 4194303},
    {"interface": "nothing0"},
    {"interface": "lo"},
    {"interface": "../../x"},
    {"interface": "x" * 16},
    {"interface": "a b"},
)


@pytest.mark.parametrize("body", ODD, ids=lambda body: ascii(body)[:40])
def test_what_is_no_endpoint_is_refused(node: Site, body: dict[str, Any]) -> None:
    before = node.get("/endpoint")
    response = node.http.post("/endpoint", json={**body, "labels": ["k8s:app=odd"]})
    assert 400 <= response.status_code < 500, response.text
    detail = response.json()["detail"]
    assert detail
    assert detail.isprintable()
    assert node.get("/endpoint") == before


@pytest.mark.parametrize(
    "label",
    [
        "k8s:app=gr\u00fcn",
        "k8s:app=a b",
        "k8s:app=\u001b[31mred",
        "k8s:app=a\nb",
        "k8s:" + "x" * 3000,
        "=",
        "k8s:=",
        "reserved:host",
        "k8s:app=" + "\U0001f916" * 200,
    ],
    ids=lambda label: ascii(label)[:40],
)
def test_odd_labels_are_refused_or_harmless(node: Site, label: str) -> None:
    added = node.lab.add(f"odd-{len(list(node.lab))}")
    body = {"netns": added.netns, "labels": [label]}
    response = node.http.post("/endpoint", json=body)
    assert response.status_code in (201, 400, 422), response.text
    shown = node.cli("endpoint", "list")
    assert "\x1b" not in shown
    assert all(line.isprintable() for line in shown.splitlines())
    if response.status_code == 201:
        # It has no right that nobody gave it.
        assert silent(added, node.lab["server"].ipv4, "/a")
        assert node.http.delete(f"/endpoint/{response.json()['id']}").is_success
    as_ever(node)


def test_no_address_and_no_interface_twice(node: Site) -> None:
    lab = node.lab
    response = node.http.post("/endpoint", json={"netns": lab["client"].netns})
    assert response.status_code == 409, response.text
    thief = lab.add("thief")
    stolen = lab["client"].ipv4
    thief.ip(f"addr add {stolen}/32 dev eth0", f"addr del {thief.ipv4}/32 dev eth0")
    response = node.http.post("/endpoint", json={"netns": thief.netns})
    assert response.status_code == 409, response.text
    assert stolen in response.json()["detail"]
    as_ever(node)


def test_a_port_of_a_bridge_is_refused(node: Site) -> None:
    lab = node.lab
    bridged = lab.add("bridged")
    lab.node.ip("link add br0 type bridge", f"link set {bridged.interface} master br0")
    response = node.http.post("/endpoint", json={"netns": bridged.netns})
    assert response.status_code == 422, response.text
    assert "bridge" in response.json()["detail"]


def test_a_namespace_that_vanishes(made: Site) -> None:
    lab = made.lab
    lab["client"].ip("link del eth0")
    lab.node.run("ip", "netns", "del", lab["client"].netns)
    eventually(lambda: made.endpoint("client")["state"], "disconnected")
    assert made.endpoint("client")["reason"]
    assert "disconnected" in made.cli("endpoint", "list")
    with Talk(lab["other"], lab["server"].ipv4) as talk:
        assert talk.say("x") == "x"
    assert silent(lab["other"], lab["server"].ipv4, "/a")
    # A new agent has the same to say.
    made.agent.kill()
    made.agent.start()
    eventually(lambda: made.endpoint("client")["state"], "disconnected")
    assert made.http.delete(f"/endpoint/{made.numbers.pop('client')}").is_success
    # Whoever has its address next has its own labels.
    heir = lab.add("heir")
    heir.ip(f"addr add {lab['client'].ipv4}/32 dev eth0", f"addr del {heir.ipv4}/32 dev eth0")
    lab.node.ip(f"route replace {lab['client'].ipv4}/32 dev {heir.interface}")
    made.add("heir")
    assert silent(heir, lab["server"].ipv4, "/a")


def test_an_interface_that_is_renamed(made: Site) -> None:
    lab, client = made.lab, made.lab["client"]
    old = client.interface
    lab.node.ip(
        f"link set {old} down",
        f"link set {old} name renamed0",
        "link set renamed0 up",
        "addr add fe80::1/64 dev renamed0 nodad",
        f"route replace {client.ipv4}/32 dev renamed0",
        f"route replace {client.ipv6}/128 dev renamed0",
    )
    client.ip("route replace default via fe80::1 dev eth0")
    as_ever(made)
    attached = made.endpoint("client")["attachment"]
    eventually(lambda: made.endpoint("client")["attachment"]["interface"], "renamed0")
    assert made.endpoint("client")["attachment"]["ifindex"] == attached["ifindex"]
    made.agent.kill()
    made.agent.start()
    as_ever(made)


def test_an_interface_that_is_gone(made: Site) -> None:
    """Its namespace lives, and another veth is no way around the policy."""
    lab, client = made.lab, made.lab["client"]
    lab.node.ip(f"link del {client.interface}")
    eventually(lambda: made.endpoint("client")["state"], "disconnected")
    assert silent(lab["other"], lab["server"].ipv4, "/a")
    with Talk(lab["other"], lab["server"].ipv6) as talk:
        assert talk.say("x") == "x"
    assert made.http.delete(f"/endpoint/{made.numbers['client']}").is_success


def test_commands_say_what_is_wrong(node: Site) -> None:
    for words, said in (
        (("endpoint", "add", "--netns", "nobody-made-this"), "nobody-made-this"),
        (("endpoint", "add", "--netns", "a", "--pid", "1"), "two ways"),
        (("endpoint", "add", "--interface", "lo"), "veth"),
        (("endpoint", "add"), "--netns"),
        (("endpoint", "delete", "60000"), "60000"),
    ):
        with pytest.raises(SetupError, match=said) as failed:
            node.cli(*words)
        assert "Traceback" not in str(failed.value)
