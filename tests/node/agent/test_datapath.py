"""Endpoints with an interface: judged by programs, and by Envoy where a policy asks for it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bpf.errors import BpfError
from demos.namespaces import Lab
from node.agent.claim import claim_namespace
from node.agent.datapath import NoDatapath
from tests.conftest import MakeLab
from tests.node.agent.nodes import (
    add,
    agent_in,
    ask,
    connect,
    egress,
    eventually,
    ingress,
    put,
    say,
    serve,
)
from tests.node.agents import Agent, running

CLIENT = b"::ffff:10.1.0.2 "
"""What the server says of the client "client"."""

HOST = "fromEntities: [host]"


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[Lab]:
    with Lab("client", "server", "other") as lab:
        serve(lab["server"])
        yield lab


@pytest.fixture(scope="module")
def shared_agent(shared_lab: Lab) -> Iterator[Agent]:
    with agent_in(shared_lab) as agent:
        for name in ("client", "server", "other"):
            add(agent, shared_lab[name], f"app={name}")
        yield agent


@pytest.fixture
def lab(shared_lab: Lab) -> Lab:
    return shared_lab


@pytest.fixture
def agent(shared_agent: Agent) -> Iterator[Agent]:
    """With three endpoints and no policy."""
    yield shared_agent
    shared_agent.http.delete("/policy", params={"all": "true"})


@pytest.fixture
def own(make_lab: MakeLab) -> Iterator[tuple[Lab, Agent]]:
    """A lab and an agent of the test's own, to break something of them."""
    lab = make_lab("client", "server", "other")
    serve(lab["server"])
    with agent_in(lab) as agent:
        for name in ("client", "server", "other"):
            add(agent, lab[name], f"app={name}")
        yield lab, agent


def envoys(agent: Agent) -> list[int]:
    assert agent.node is not None
    return [s.pid for s in agent.node.links.proxies.statuses().values() if s.pid]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_from_no_policy_to_l4_to_l7(lab: Lab, agent: Agent, family: str) -> None:
    client, other = lab["client"], lab["other"]
    server = getattr(lab["server"], family)
    who = CLIENT if family == "ipv4" else b"fd10:1::2 "
    assert ask(client, server, b"HALT") == who + b"HALT"
    running = envoys(agent)
    put(agent, ingress())
    assert ask(client, server, b"HALT") == who + b"HALT"
    assert ask(other, server, b"HALT", timeout=0.5) == b""
    # Nothing of that is for Envoy: IPv4 is the first test of this agent.
    assert envoys(agent) == running
    assert bool(running) is (family == "ipv6")
    put(agent, ingress("READ"))
    eventually(lambda: len(envoys(agent)) == 1)
    # The server sees the client's own address.
    assert ask(client, server, b"READ x") == who + b"READ x"
    assert ask(client, server, b"HALT") == b"ERROR"
    assert ask(other, server, b"READ x", timeout=0.5) == b""
    eventually(lambda: agent.get("/endpoint/2")["state"] == "ready")


def test_egress_and_both_in_one_pass(lab: Lab, agent: Agent) -> None:
    client, server = lab["client"], lab["server"].ipv4
    put(agent, egress("READ", "HALT"))
    assert ask(client, server, b"HALT") == CLIENT + b"HALT"
    assert ask(client, server, b"RESET") == b"ERROR"
    assert ask(lab["other"], server, b"RESET") == b"::ffff:10.1.0.4 RESET"
    put(agent, ingress("READ", "RESET"))
    assert ask(client, server, b"READ x") == CLIENT + b"READ x"
    assert ask(client, server, b"HALT") == b"ERROR"
    assert ask(client, server, b"RESET") == b"ERROR"


def test_a_change_under_a_running_connection(lab: Lab, agent: Agent) -> None:
    client, server = lab["client"], lab["server"].ipv4
    put(agent, ingress("READ"))
    with connect(client, server) as judged:
        assert say(judged, b"HALT") == b"ERROR"
        put(agent, ingress("HALT"))
        assert say(judged, b"HALT") == CLIENT + b"HALT"
        put(agent, ingress(peer="other"))
        judged.settimeout(0.5)
        # Envoy's parser denies it, until nothing of it comes through any more.
        with contextlib.suppress(TimeoutError, ConnectionError):
            assert say(judged, b"HALT") in (b"", b"ERROR")


def test_a_connection_outlives_the_redirect_that_it_came_by(lab: Lab, agent: Agent) -> None:
    put(agent, ingress("READ"))
    with connect(lab["client"], lab["server"].ipv4) as judged:
        assert say(judged, b"HALT") == b"ERROR"
        put(agent, ingress())
        assert say(judged, b"HALT") == CLIENT + b"HALT"
        agent.http.delete("/policy/in")
        assert say(judged, b"HALT") == CLIENT + b"HALT"


def test_labels_are_another_identity_at_once(lab: Lab, agent: Agent) -> None:
    put(agent, ingress())
    server = lab["server"].ipv4
    assert ask(lab["other"], server, b"x", timeout=0.5) == b""
    agent.http.put("/endpoint/3/labels", json={"labels": ["app=client"]})
    assert ask(lab["other"], server, b"x") == b"::ffff:10.1.0.4 x"
    agent.http.put("/endpoint/3/labels", json={"labels": ["app=other"]})
    assert ask(lab["other"], server, b"x", timeout=0.5) == b""


def test_the_node_is_the_host(lab: Lab, agent: Agent) -> None:
    server = lab["server"].ipv4
    put(agent, ingress())
    assert ask(lab.node, server, b"x", timeout=0.5) == b""
    put(agent, ingress().replace("fromEndpoints: [{matchLabels: {app: client}}]", HOST))
    assert ask(lab.node, server, b"x") == b"::ffff:10.1.0.1 x"
    assert ask(lab["client"], server, b"x", timeout=0.5) == b""


def test_a_policy_that_does_not_fit_closes_its_endpoint(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server", "other")
    serve(lab["server"])
    with agent_in(lab, bpf_policy_map_max="256") as agent:
        for name in ("client", "server", "other"):
            add(agent, lab[name], f"app={name}")
        client, server = lab["client"], lab["server"].ipv4
        wide = ", ".join(f'{{port: "{port}", protocol: TCP}}' for port in range(4039, 4039 + 40))
        many = ingress().replace('{port: "4040", protocol: TCP}', wide)
        rules = many.index("  - fromEndpoints")
        cidrs = "".join(
            many[rules:].replace(
                "fromEndpoints: [{matchLabels: {app: client}}]", f"fromCIDR: [192.0.2.{n}/32]"
            )
            for n in range(8)
        )
        answer = agent.put_policy(many + cidrs)
        assert answer.status_code == 200, answer.text
        found = agent.get("/endpoint/2")
        assert found["state"] == "not-ready"
        assert "bpf-policy-map-max" in found["reason"]
        revision = answer.json()["revision"]
        waited = agent.get(f"/policy/revisions/{revision}", timeout=0.1)
        assert not waited["reached"]
        assert "bpf-policy-map-max" in waited["waiting"]["endpoint 2"]
        assert ask(client, server, b"x", timeout=0.5) == b""
        # Nobody else is touched, and a policy that fits opens it again.
        assert agent.get("/endpoint/1")["state"] == "ready"
        put(agent, ingress())
        assert agent.get("/endpoint/2")["state"] == "ready"
        assert ask(client, server, b"x") == CLIENT + b"x"


def test_dns_rules_are_closed_and_that_is_said(lab: Lab, agent: Agent) -> None:
    """There is no DNS proxy yet."""
    rules = "rules: {dns: [{matchPattern: '*'}]}"
    text = egress("READ").replace('{port: "4040", protocol: TCP}', '{port: "53", protocol: UDP}')
    text = text.replace("rules: {l7proto: r2d2, l7: [{cmd: READ}]}", rules)
    put(agent, text)
    found = agent.get("/endpoint/1")
    assert found["closed"] == ["egress UDP/53 (dns): there is no proxy for it"]
    with lab["server"].entered():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("", 53))
        server.settimeout(0.5)
    with lab["client"].entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        client.sendto(b"query", (lab["server"].ipv4, 53))
        with pytest.raises(TimeoutError):
            server.recv(100)
        agent.http.delete("/policy/out")
        client.sendto(b"query", (lab["server"].ipv4, 53))
        assert server.recv(100) == b"query"


def test_a_deleted_endpoint_is_nobody_s(own: tuple[Lab, Agent]) -> None:
    lab, agent = own
    put(agent, ingress())
    agent.http.delete("/endpoint/1")
    assert ask(lab["client"], lab["server"].ipv4, b"x", timeout=0.5) == b""
    assert agent.node is not None
    assert sorted(agent.node.links.datapath.attached()) == [2, 3]
    agent.http.delete("/endpoint/2")
    assert ask(lab["client"], lab["server"].ipv4, b"x") == CLIENT + b"x"


def test_an_interface_that_is_renamed(own: tuple[Lab, Agent]) -> None:
    lab, agent = own
    put(agent, ingress())
    lab.node.ip("link set lxc2 down", "link set lxc2 name web0", "link set web0 up")
    lab.node.ip(
        "addr replace fe80::1/64 dev web0 nodad", f"route replace {lab['server'].ipv4} dev web0"
    )
    eventually(lambda: agent.get("/endpoint/2")["attachment"]["interface"] == "web0")
    assert ask(lab["client"], lab["server"].ipv4, b"x") == CLIENT + b"x"
    assert ask(lab["other"], lab["server"].ipv4, b"x", timeout=0.5) == b""


def test_an_interface_that_is_gone(own: tuple[Lab, Agent]) -> None:
    lab, agent = own
    lab.node.ip("link del lxc2")
    eventually(lambda: agent.get("/endpoint/2")["state"] == "disconnected")
    assert agent.get("/endpoint/2")["reason"]
    assert agent.node is not None
    assert sorted(agent.node.links.datapath.attached()) == [1, 3]
    # A policy is not held up by it.
    put(agent, ingress())


def test_an_endpoint_twice(lab: Lab, agent: Agent) -> None:
    answer = agent.http.post("/endpoint", json={"netns": lab["server"].netns})
    assert answer.status_code == 409
    assert "endpoint 2 already" in answer.json()["detail"]


def test_an_endpoint_that_is_none(agent: Agent) -> None:
    for body, text in (
        ({"netns": "no-such-namespace"}, "no-such-namespace"),
        ({"interface": "lo"}, "loopback"),
        ({"interface": "none0"}, "no interface 'none0'"),
    ):
        answer = agent.http.post("/endpoint", json=body)
        assert answer.status_code == 422
        assert text in answer.json()["detail"]


def test_without_a_datapath_no_endpoint_has_an_interface(short_path: Path) -> None:
    with running(short_path, datapath="none") as agent:
        answer = agent.http.post("/endpoint", json={"netns": "x"})
        assert answer.status_code == 503
        assert "datapath: none" in answer.json()["detail"]


def test_two_agents_of_one_node(lab: Lab, agent: Agent, short_path: Path) -> None:
    assert agent.node is not None
    again = agent_in(lab, state_dir=short_path / "s", run_dir=short_path / "r")
    with pytest.raises(NoDatapath, match=r"another agent \(pid \d+\) redirects"), again:
        pass
    with Lab("x") as other:
        elsewhere = agent_in(other, bpf_root=agent.config.bpf_root)
        with pytest.raises(NoDatapath, match="in use by another agent"), elsewhere:
            pass


def test_a_proxy_port_that_somebody_else_has(own: tuple[Lab, Agent]) -> None:
    """Between the choice of the port and Envoy's listening on it."""
    lab, agent = own
    assert agent.node is not None
    with lab.node.entered():
        thief = socket.create_server(("127.0.0.1", 10000), backlog=1)
    with thief:
        # The choice is made where it looks free.
        agent.node.redirects._redirects._ports._free = lambda number: True
        answer = agent.put_policy(ingress("READ"))
        assert answer.status_code == 200

        def moved() -> bool:
            assert agent.node is not None
            agent.node.tick()
            return agent.get("/redirects")[0]["proxy-port"] not in (0, 10000)

        eventually(moved)
        server = lab["server"].ipv4
        eventually(lambda: ask(lab["client"], server, b"READ x") == CLIENT + b"READ x")
        assert ask(lab["client"], server, b"HALT") == b"ERROR"


CIDRS = """
kind: CiliumNetworkPolicy
metadata: {{name: cidrs}}
spec:
  endpointSelector: {{matchLabels: {{app: server}}}}
  ingress: [{{fromEntities: [all]}}]
  ingressDeny: [{{fromCIDR: [{cidr}]}}]
"""


def test_no_address_passes_while_identities_are_exchanged(lab: Lab, agent: Agent) -> None:
    """By the old policy with the new identities, or the other way round, it would."""
    put(agent, CIDRS.format(cidr="192.0.2.0/24"))
    assert agent.node is not None
    datapath = agent.node.links.datapath.datapath
    assert datapath is not None
    steps: list[tuple[str, object]] = []
    set_policy, set_identities = datapath.set_policy, datapath.set_identities

    def policy(number: int, entries: Any) -> None:
        if number == 2:
            steps.append(("closed" if entries is None else "open", datapath.epoch))
        set_policy(number, entries)

    def identities(told: Mapping[str, int | None]) -> None:
        steps.append((f"identities {sorted(told)}", datapath.epoch))
        set_identities(told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datapath, "set_policy", policy)
        patch.setattr(datapath, "set_identities", identities)
        put(agent, CIDRS.format(cidr="192.0.2.0/28"))
    epoch = datapath.epoch
    # Within one epoch: running connections are judged again when all of it is in force.
    assert steps == [
        ("closed", epoch - 1),
        ("identities ['192.0.2.0/28']", epoch - 1),
        ("identities ['192.0.2.0/24']", epoch - 1),
        ("open", epoch - 1),
    ]
    assert ask(lab["client"], lab["server"].ipv4, b"x") == CLIENT + b"x"


def test_what_fails_is_closed_said_and_tried_again(lab: Lab, agent: Agent) -> None:
    assert agent.node is not None
    ours = agent.node.links.datapath
    assert ours.datapath is not None
    failures, server = ours.failures, lab["server"].ipv4

    def fail(number: int, entries: object) -> None:
        if entries is not None:
            raise BpfError("the kernel has no memory")
        set_policy(number, None)

    set_policy = ours.datapath.set_policy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours.datapath, "set_policy", fail)
        revision = agent.put_policy(ingress()).json()["revision"]
        found = agent.get("/endpoint/2")
        assert (found["state"], found["reason"]) == ("not-ready", "the kernel has no memory")
        assert ask(lab["client"], server, b"x", timeout=0.5) == b""
        assert ours.failures > failures
        waited = agent.get(f"/policy/revisions/{revision}", timeout=0.1)
        assert waited["waiting"] == {"endpoint 2": "the kernel has no memory"}
    eventually(lambda: agent.node.tick() or not ours.pending())  # type: ignore[union-attr, func-returns-value]
    assert agent.get("/endpoint/2")["state"] == "ready"
    assert agent.get(f"/policy/revisions/{revision}", timeout=5)["reached"]
    assert ask(lab["client"], server, b"x") == CLIENT + b"x"


def test_endpoints_of_an_agent_that_has_no_datapath_any_more(make_lab: MakeLab) -> None:
    lab = make_lab("client")
    with agent_in(lab) as agent:
        add(agent, lab["client"], "app=client")
    with agent_in(lab, datapath="none") as agent:
        found = agent.get("/endpoint/1")
        assert found["state"] == "not-ready"
        assert found["reason"] == "this agent has datapath: none"
    with agent_in(lab) as agent:
        assert agent.get("/endpoint/1")["state"] == "ready"


def test_audit_sees_everything_and_denies_nothing(lab: Lab, agent: Agent) -> None:
    assert agent.node is not None
    server, decisions = lab["server"].ipv4, agent.node.decisions
    assert agent.http.patch("/endpoint/2", json={"audit": True}).status_code == 200
    try:
        put(agent, ingress("READ"))
        before = decisions.entries
        assert ask(lab["client"], server, b"HALT") == CLIENT + b"HALT"
        # The parser has judged it, and only said so.
        eventually(lambda: decisions.entries > before)
        assert ask(lab["other"], server, b"HALT") == b"::ffff:10.1.0.4 HALT"
    finally:
        agent.http.patch("/endpoint/2", json={"audit": False})
    assert ask(lab["client"], server, b"HALT") == b"ERROR"
    assert ask(lab["other"], server, b"HALT", timeout=0.5) == b""


def test_a_data_path_that_comes_late(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server")
    serve(lab["server"])
    with agent_in(lab) as agent:
        add(agent, lab["client"], "app=client")
        add(agent, lab["server"], "app=server")
    with lab.node.entered():
        held = claim_namespace()
    with held, agent_in(lab, datapath="auto") as agent:
        found = agent.get("/endpoint/2")
        assert found["state"] == "not-ready"
        assert f"another agent (pid {os.getpid()}) redirects" in found["reason"]
        # What the agent before has left is in force, and not taken up with a new policy.
        assert ask(lab["client"], lab["server"].ipv4, b"x") == CLIENT + b"x"
        held.__exit__(None, None, None)

        def is_ready() -> bool:
            assert agent.node is not None
            agent.node.tick()
            return str(agent.get("/endpoint/2")["state"]) == "ready"

        eventually(is_ready)
        put(agent, ingress(peer="nobody"))
        assert ask(lab["client"], lab["server"].ipv4, b"x", timeout=0.5) == b""
        lab.node.ip("link del lxc2")
        eventually(lambda: agent.get("/endpoint/2")["state"] == "disconnected")


def test_an_ipcache_that_is_full_closes_what_it_cannot_tell_apart(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server")
    serve(lab["server"])
    with agent_in(lab, bpf_ipcache_max="1024") as agent:
        add(agent, lab["client"], "app=client")
        add(agent, lab["server"], "app=server")
        assert agent.node is not None
        ours, server = agent.node.links.datapath, lab["server"].ipv4
        failures = ours.failures
        many = ", ".join(f"198.18.{n >> 8}.{n & 255}/32" for n in range(1100))
        put(agent, CIDRS.format(cidr=many))
        assert ours.failures > failures
        # Who has room is known, and judged as ever.
        assert agent.get("/endpoint/2")["state"] == "ready"
        assert ask(lab["client"], server, b"x") == CLIENT + b"x"
        put(agent, CIDRS.format(cidr="198.18.0.0/15"))
        assert ask(lab["client"], server, b"x") == CLIENT + b"x"


def test_a_fault_of_our_own_takes_no_change_back(lab: Lab, agent: Agent) -> None:
    assert agent.node is not None
    ours = agent.node.links.datapath
    assert ours.datapath is not None

    def fail(number: int, entries: object) -> None:
        raise RuntimeError("a slip")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours.datapath, "set_policy", fail)
        answer = agent.put_policy(ingress())
        assert answer.status_code == 200
        assert "a slip" in agent.get("/endpoint/2")["reason"]
    eventually(lambda: agent.node.tick() or not ours.pending())  # type: ignore[union-attr, func-returns-value]
    assert ask(lab["client"], lab["server"].ipv4, b"x") == CLIENT + b"x"
    assert ask(lab["other"], lab["server"].ipv4, b"x", timeout=0.5) == b""
