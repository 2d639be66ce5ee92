"""Policies and identities that change under running connections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bpf import maps
from bpf.schema import CONNTRACK_VALUE
from tests.integration.node.site import Site, apps, eventually, http, policy, ports
from tests.integration.node.traffic import NO_ANSWER, SILENCE, Pages, Talk, fetch, silent

pytestmark = pytest.mark.usefixtures("servers")

LINES = 7000


def allowed(*names: str) -> dict[str, Any]:
    """These may talk to the server."""
    return policy("in", "server", ingress=[{**apps("fromEndpoints", *names), **ports(80, LINES)}])


def judged(*paths: str, app: str = "client") -> dict[str, Any]:
    """A client may ask the web server for these paths."""
    of = apps("fromEndpoints", app)
    return policy("in", "server", ingress=[{**of, **ports(80, http=http(*paths))}])


@pytest.fixture
def relabelled(node: Site) -> Iterator[None]:
    yield
    node.relabel("client", "k8s:app=client")


@pytest.mark.usefixtures("relabelled")
def test_an_identity_that_changes_takes_its_connections_along(node: Site, version: str) -> None:
    node.policies(allowed("client"))
    address = getattr(node.lab["server"], version)
    with Talk(node.lab["client"], address) as talk:
        assert talk.say("one") == "one"
        node.relabel("client", "k8s:app=stranger")
        assert talk.say("two", SILENCE) == NO_ANSWER
        assert silent(node.lab["client"], address)
        node.relabel("client", "k8s:app=client")
        # Nothing is lost: TCP sends it again.
        assert talk.hear(20) == "two"
        assert talk.say("three") == "three"


@pytest.mark.usefixtures("relabelled")
def test_an_identity_that_changes_under_a_parser(node: Site, version: str) -> None:
    node.policies(judged("/a"))
    with Pages(node.lab["client"], getattr(node.lab["server"], version)) as pages:
        assert [pages.get("/a"), pages.get("/b")] == ["200", "403"]
        node.relabel("client", "k8s:app=stranger")
        assert pages.get("/a", SILENCE) == NO_ANSWER


def test_a_connection_that_is_allowed_no_longer(node: Site, version: str) -> None:
    node.policies(allowed("client", "other"))
    address = getattr(node.lab["server"], version)
    with Talk(node.lab["client"], address) as talk, Talk(node.lab["other"], address) as other:
        assert [talk.say("one"), other.say("one")] == ["one", "one"]
        node.put(allowed("other"))
        assert talk.say("two", SILENCE) == NO_ANSWER
        assert other.say("two") == "two"
        node.put(allowed("client", "other"))
        assert talk.hear(20) == "two"


def test_a_direct_connection_that_needs_a_parser_now(node: Site, version: str) -> None:
    """It cannot be moved into the proxy: it is closed to it, and a new one is judged."""
    node.policies(allowed("client"))
    address = getattr(node.lab["server"], version)
    with Pages(node.lab["client"], address) as pages:
        assert pages.get("/b") == "200"
        node.policies(judged("/a"))
        assert pages.get("/b", SILENCE) == NO_ANSWER
    assert fetch(node.lab["client"], address, "/b") == "403"
    assert fetch(node.lab["client"], address, "/a").startswith("200")


def test_the_next_request_is_judged_by_the_new_rules(node: Site, version: str) -> None:
    node.policies(judged("/a"))
    with Pages(node.lab["client"], getattr(node.lab["server"], version)) as pages:
        assert [pages.get("/a"), pages.get("/b")] == ["200", "403"]
        node.put(judged("/b"))
        eventually(lambda: (pages.get("/a"), pages.get("/b")), ("403", "200"))


def test_a_judged_connection_that_needs_no_parser_any_more(node: Site, version: str) -> None:
    node.policies(judged("/a"))
    with Pages(node.lab["client"], getattr(node.lab["server"], version)) as pages:
        assert [pages.get("/a"), pages.get("/b")] == ["200", "403"]
        node.put(allowed("client"))
        eventually(lambda: pages.get("/a"), "200")
        # The parser that still has the connection finds every request allowed.
        eventually(lambda: pages.get("/b"), "200")


def test_a_judged_connection_that_is_allowed_no_longer(node: Site, version: str) -> None:
    node.policies(judged("/a"))
    with Pages(node.lab["client"], getattr(node.lab["server"], version)) as pages:
        assert pages.get("/a") == "200"
        node.put(judged("/a", app="other"))
        assert pages.get("/a", SILENCE) not in ("200", "403")


def age(node: Site) -> None:
    """Every connection that is known has expired, as if nobody had used it for hours."""
    (folder,) = maps.folders(node.agent.bpf_root)
    opened = maps.read_maps(folder)
    at = CONNTRACK_VALUE.offsets()["expires"]
    for key, value in opened["conntrack"].items():
        opened["conntrack"].set(key, value[:at] + bytes(8) + value[at + 8 :])
    maps.close_maps(opened)


def test_a_connection_that_has_expired_is_judged_as_a_new_one(node: Site, version: str) -> None:
    # What the server sends then is judged as its own: it may make no connections.
    mute = policy("mute", "server", egress=[apps("toEndpoints", "nobody")])
    node.policies(allowed("client"), mute)
    address = getattr(node.lab["server"], version)
    with Talk(node.lab["client"], address) as talk:
        assert talk.say("one") == "one"
        age(node)
        assert talk.say("two") == "two"
        node.put(allowed("other"))
        age(node)
        assert talk.say("three", SILENCE) == NO_ANSWER
        node.put(allowed("client"))
        assert talk.hear(20) == "three"


def test_a_judged_connection_that_has_expired_is_its_parsers_still(
    node: Site, version: str
) -> None:
    node.policies(judged("/a"))
    with Pages(node.lab["client"], getattr(node.lab["server"], version)) as pages:
        assert [pages.get("/a"), pages.get("/b")] == ["200", "403"]
        for _ in range(3):
            age(node)
            assert [pages.get("/a"), pages.get("/b")] == ["200", "403"]


def test_thousands_of_changes_let_nothing_through(node: Site) -> None:
    """What every version of the policy denies is denied in between, what all allow is allowed."""
    versions = [
        policy(
            "in",
            "server",
            ingress=[
                {**apps("fromEndpoints", "client"), **ports(80)},
                {**apps("fromEndpoints", f"friend-{number}"), **ports(*range(8000, 8040))},
            ],
        )
        for number in range(2)
    ]
    node.policies(versions[0])
    address = node.lab["server"].ipv4
    with Pages(node.lab["client"], address) as pages:
        for number in range(100):
            node.put(versions[number % 2])
            assert pages.get("/") == "200"
            if number % 20 == 0:
                assert silent(node.lab["other"], address)
