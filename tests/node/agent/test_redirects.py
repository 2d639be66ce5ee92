"""Redirects: listeners for the parsers that policies name, at ports that stay."""

from __future__ import annotations

from pathlib import Path

from envoy_data_plane.envoy.config.listener.v3 import Listener

from node.agent.redirects import Kind
from tests.node.agents import Agent, r2d2, running
from tests.xds.client import Subscriber
from xds.ads.resources import DOWNSTREAM_MARK, Direction
from xds.ads.types import LISTENER

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"

MEMCACHE = r2d2("cache", app="cache").replace("r2d2, l7: [{cmd: READ}]", "memcache, l7: [{}]")


def ports(agent: Agent) -> dict[tuple[str, str], int]:
    return {(r["parser"], r["direction"]): r["proxy-port"] for r in agent.get("/redirects")}


def test_ports_are_given_remembered_and_released(short_path: Path) -> None:
    with running(short_path) as agent:
        agent.put_policy(r2d2() + "---\n" + MEMCACHE)
        assert ports(agent) == {}
        agent.add_endpoint("10.0.0.1", "app=r2d2")
        agent.add_endpoint("10.0.0.2", "app=r2d2")
        first = ports(agent)
        assert set(first) == {("r2d2", "ingress")}
        agent.add_endpoint("10.0.0.3", "app=cache")
        both = ports(agent)
        assert both.items() >= first.items()
        assert len(set(both.values())) == 2
        assert all(10_000 <= port <= 20_000 for port in both.values())
        assert "3 redirects active" in agent.cli("status").stdout
    with running(short_path) as agent:
        assert ports(agent) == both
        with Subscriber(agent.config.xds_path, LISTENER, method=ADS) as envoy:
            names = {r.value for r in envoy.subscribe().resources}
        assert len(names) == 2
        agent.http.delete("/policy/cache")
        assert ports(agent) == first


BOTH = """
---
kind: CiliumNetworkPolicy
metadata: {name: pilots}
spec:
  endpointSelector: {matchLabels: {role: jedi}}
  egress:
  - toPorts:
    - ports: [{port: "4040", protocol: TCP}]
      rules: {l7proto: r2d2, l7: [{cmd: READ}]}
"""


def test_a_parser_of_both_directions_judges_in_one_pass_too(short_path: Path) -> None:
    # No endpoint has an interface: it touches nothing.
    with running(short_path, datapath="auto") as agent:
        agent.add_endpoint("10.0.0.1", "app=r2d2")
        agent.add_endpoint("10.0.0.2", "role=jedi")
        agent.put_policy(r2d2() + BOTH)
        assert agent.node is not None
        found = agent.node.redirects.ports()
        assert {(k.parser, k.direction.value) for k in found} == {
            ("r2d2", "ingress"),
            ("r2d2", "egress"),
            ("r2d2", "both"),
        }
        assert len(set(found.values())) == 3
        # It is nobody's own redirect.
        assert {key: found[Kind(key[0], Direction(key[1]))] for key in ports(agent)} == ports(agent)
        assert len(ports(agent)) == 2
        with Subscriber(agent.config.xds_path, LISTENER, method=ADS) as envoy:
            listeners = [Listener.FromString(r.value) for r in envoy.subscribe().resources]
        assert {x.name for x in listeners} == {"r2d2/ingress", "r2d2/egress", "r2d2/both"}
        marks = {option.int_value for x in listeners for option in x.socket_options}
        assert marks == {DOWNSTREAM_MARK}
        agent.http.delete("/policy/pilots")
        assert len(agent.node.redirects.ports()) == 1


def test_without_a_datapath_nobody_needs_one_pass(short_path: Path) -> None:
    with running(short_path, datapath="none") as agent:
        agent.add_endpoint("10.0.0.1", "app=r2d2", "role=jedi")
        agent.put_policy(r2d2() + BOTH)
        assert agent.node is not None
        assert len(agent.node.redirects.ports()) == 2


def test_without_a_port_nothing_changes(short_path: Path) -> None:
    with running(short_path, proxy_ports="19997-19997") as agent:
        agent.add_endpoint("10.0.0.1", "app=r2d2")
        agent.add_endpoint("10.0.0.3", "app=cache")
        assert agent.put_policy(r2d2()).status_code == 200
        before = agent.get("/redirects"), agent.get("/policy")["policies"]
        refused = agent.put_policy(MEMCACHE)
        assert refused.status_code == 503
        assert "no proxy port is left" in refused.json()["detail"]
        assert (agent.get("/redirects"), agent.get("/policy")["policies"]) == before
        assert agent.get("/endpoint/2")["policy"]["ingress"] is False
        agent.http.delete("/policy/droids")
    with running(short_path, proxy_ports="19997-19997") as agent:
        assert agent.get("/policy")["policies"] == []


def test_a_revision_is_waited_for_with_its_listeners(short_path: Path) -> None:
    with running(short_path) as agent:
        agent.add_endpoint("10.0.0.1", "app=r2d2")
        with Subscriber(agent.config.xds_path, LISTENER, node="envoy", method=ADS) as envoy:
            envoy.send()
            revision = agent.put_policy(r2d2()).json()["revision"]
            response = envoy.receive()
            while not response.resources:
                envoy.ack(response)
                response = envoy.receive()
            waiting = agent.get(f"/policy/revisions/{revision}", timeout=0.1)
            assert waiting["waiting"] == {"envoy": "has not answered yet"}
            envoy.ack(response)
            assert agent.get(f"/policy/revisions/{revision}", timeout=20)["reached"]


TLS = r2d2().replace(
    "rules:", "terminatingTLS: {secret: {name: web, namespace: prod}}\n      rules:"
)


def test_a_tls_context_is_a_redirect_of_its_own(short_path: Path) -> None:
    secret = short_path / "secrets/prod/web"
    secret.mkdir(parents=True)
    with running(short_path, secrets_dir=short_path / "secrets") as agent:
        agent.put_policy(r2d2("plain", app="other") + "---\n" + TLS)
        agent.add_endpoint("10.0.0.1", "app=r2d2")
        agent.add_endpoint("10.0.0.2", "app=other")
        tls, plain = agent.get("/redirects")
        assert (plain["terminating"], plain["problem"]) == ("", "")
        assert plain["proxy-port"] > 0
        assert (tls["terminating"], tls["proxy-port"]) == ("prod/web", 0)
        assert str(secret / "tls.crt") in tls["problem"]
        assert "1 listeners cannot be had" in agent.cli("status").stdout
        for name in ("tls.crt", "tls.key"):
            (secret / name).write_text("-----BEGIN SOMETHING-----\n")
        assert agent.node is not None
        agent.node.repository.resolve_redirects()
        tls, again = agent.get("/redirects")
        assert again == plain
        assert tls["proxy-port"] not in (0, plain["proxy-port"])
        agent.http.delete("/endpoint/1")
        assert agent.get("/redirects") == [plain]


def test_tls_that_cannot_be_had_holds_nothing_up(short_path: Path) -> None:
    """Without the client's TLS nobody knows what the server is called."""
    with running(short_path) as agent:
        agent.put_policy(TLS.replace("terminatingTLS", "originatingTLS"))
        assert agent.add_endpoint("10.0.0.1", "app=r2d2").status_code == 201
        (redirect,) = agent.get("/redirects")
        assert redirect["proxy-port"] == 0
        assert "needs terminatingTLS beside it" in redirect["problem"]
