"""Envoys that come with the first redirect, and those of sidecars."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeLab
from tests.node.agent.nodes import add, agent_in, ask, egress, eventually, ingress, put, serve
from tests.node.agents import Agent, running

CLIENT = b"::ffff:10.1.0.2 "


def pids(agent: Agent) -> dict[int, int]:
    """The process of each Envoy that serves, by endpoint; 0 is the node's."""
    assert agent.node is not None
    statuses = agent.node.links.proxies.statuses()
    return {number: status.pid for number, status in statuses.items() if status.pid}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.timeout(200)
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_sidecar_judges_as_the_node_does(make_lab: MakeLab, family: str) -> None:
    lab = make_lab("client", "server", "other")
    serve(lab["server"])
    server = getattr(lab["server"], family)
    who = CLIENT if family == "ipv4" else b"fd10:1::2 "
    with agent_in(lab) as agent:
        add(agent, lab["client"], "app=client", mode="sidecar")
        add(agent, lab["server"], "app=server", mode="sidecar")
        add(agent, lab["other"], "app=other")
        put(agent, ingress())
        assert ask(lab["client"], server, b"HALT") == who + b"HALT"
        assert ask(lab["other"], server, b"HALT", timeout=0.5) == b""
        assert pids(agent) == {}
        # At the server's side, at the client's, and at both.
        put(agent, ingress("READ"))
        eventually(lambda: list(pids(agent)) == [2])
        assert ask(lab["client"], server, b"READ x") == who + b"READ x"
        assert ask(lab["client"], server, b"HALT") == b"ERROR"
        assert ask(lab["other"], server, b"READ x", timeout=0.5) == b""
        put(agent, egress("READ", "RESET"))
        eventually(lambda: sorted(pids(agent)) == [1, 2])
        assert ask(lab["client"], server, b"READ x") == who + b"READ x"
        assert ask(lab["client"], server, b"RESET") == b"ERROR"
        agent.http.delete("/policy/in")
        assert ask(lab["client"], server, b"RESET") == who + b"RESET"
        assert ask(lab["client"], server, b"HALT") == b"ERROR"
        # An Envoy ends with its endpoint.
        pid = pids(agent)[1]
        agent.http.delete("/endpoint/1")
        eventually(lambda: not alive(pid))
        assert list(pids(agent)) == [2]


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("client", "server", "expected"), [("node", "sidecar", [0, 2]), ("sidecar", "node", [0, 1])]
)
def test_a_sidecar_and_the_node(
    make_lab: MakeLab, client: str, server: str, expected: list[int]
) -> None:
    lab = make_lab("client", "server")
    serve(lab["server"])
    with agent_in(lab) as agent:
        add(agent, lab["client"], "app=client", mode=client)
        add(agent, lab["server"], "app=server", mode=server)
        put(agent, ingress("READ", "HALT") + "---" + egress("READ", "RESET"))
        eventually(lambda: sorted(pids(agent)) == expected)
        address = lab["server"].ipv4
        assert ask(lab["client"], address, b"READ x") == CLIENT + b"READ x"
        assert ask(lab["client"], address, b"HALT") == b"ERROR"
        assert ask(lab["client"], address, b"RESET") == b"ERROR"


def test_a_sidecar_whose_namespace_is_gone(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server")
    with agent_in(lab) as agent:
        add(agent, lab["server"], "app=server", mode="sidecar")
        put(agent, ingress("READ"))
        eventually(lambda: pids(agent))
        (pid,) = pids(agent).values()
        lab.node.ip("link del lxc2")
        eventually(lambda: not alive(pid))
        assert agent.get("/endpoint/1")["state"] == "disconnected"


def test_no_envoy_is_started_that_is_not_wanted(make_lab: MakeLab) -> None:
    lab = make_lab("server")
    with agent_in(lab, envoy="none") as agent:
        add(agent, lab["server"], "app=server")
        assert agent.put_policy(ingress("READ")).status_code == 200
        agent.node.tick()  # type: ignore[union-attr]
        assert pids(agent) == {}
        assert agent.get("/endpoint/1")["state"] == "ready"


def test_without_an_interface_no_envoy_is_ours(short_path: Path) -> None:
    with running(short_path) as agent:
        agent.put_policy(ingress("READ"))
        agent.add_endpoint("10.1.0.2", "app=server")
        assert len(agent.get("/redirects")) == 1
        assert pids(agent) == {}


def test_an_envoy_that_is_not_there_is_said(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab("server")
    with agent_in(lab, envoy=str(tmp_path / "envoy")) as agent:
        add(agent, lab["server"], "app=server")
        revision = agent.put_policy(ingress("READ")).json()["revision"]
        eventually(lambda: "no Envoy at" in agent.get("/endpoint/1").get("reason", ""))
        assert agent.get("/endpoint/1")["state"] == "waiting-for-proxy"
        waited = agent.get(f"/policy/revisions/{revision}", timeout=0.1)
        assert not waited["reached"]
        assert set(waited["waiting"]) == {"node-1"}
