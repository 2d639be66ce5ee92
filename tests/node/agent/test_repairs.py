"""What other tools take away from under an agent: it is put back, and said."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from demos.namespaces import Lab
from demos.node.agent import NodeAgent
from tests.conftest import MakeLab
from tests.node.agent.nodes import ask, connect, eventually, ingress, programs, say, serve

CLIENT = b"::ffff:10.1.0.2 "
OTHER = b"::ffff:10.1.0.4 "

pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def start(make_lab: MakeLab) -> Iterator[Callable[[str], tuple[Lab, NodeAgent]]]:
    """Starts an agent as a process of its own, with three endpoints and a policy."""
    started: list[NodeAgent] = []

    def make(mode: str) -> tuple[Lab, NodeAgent]:
        lab = make_lab("client", "server", "other")
        serve(lab["server"])
        agent = NodeAgent(lab, "--bpf-cache", programs().name)
        agent.start()
        started.append(agent)
        sidecar = ("--sidecar",) if mode == "sidecar" else ()
        for name in ("client", "server", "other"):
            words = ("endpoint", "add", "--netns", lab[name].netns, "--label", f"app={name}")
            agent.proxylib(*words, *sidecar)
        agent.proxylib("policy", "import", "-", "--wait", stdin=ingress("READ"))
        judged(lab)
        return lab, agent

    yield make
    for agent in started:
        agent.stop()


def judged(lab: Lab) -> None:
    """`ingress("READ")` is in force."""
    server = lab["server"].ipv4
    eventually(lambda: ask(lab["client"], server, b"READ x", timeout=1) == CLIENT + b"READ x")
    assert ask(lab["client"], server, b"HALT") == b"ERROR"
    assert ask(lab["other"], server, b"READ x", timeout=0.5) == b""


def clsact(lab: Lab, action: str, *, inside: bool = False) -> None:
    namespace = lab["server"] if inside else lab.node
    interface = "eth0" if inside else "lxc2"
    namespace.run("tc", "qdisc", action, "dev", interface, "clsact", check=True)


def endpoint(agent: NodeAgent) -> dict[str, Any]:
    """The server's, as the command line shows it."""
    return dict(json.loads(agent.proxylib("endpoint", "get", "2", "--json")))


@contextmanager
def halted(agent: NodeAgent) -> Iterator[None]:
    """The agent sees nothing of what happens in the block before its end."""
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(agent.pid, signal.SIGCONT)


@pytest.mark.parametrize("mode", ["node", "sidecar"])
def test_programs_that_are_taken_away(
    start: Callable[[str], tuple[Lab, NodeAgent]], mode: str
) -> None:
    lab, agent = start(mode)
    server, inside = lab["server"].ipv4, mode == "sidecar"
    with halted(agent):
        clsact(lab, "del", inside=inside)
        unjudged = connect(lab["other"], server)
        assert say(unjudged, b"HALT") == OTHER + b"HALT"
    with unjudged:
        eventually(lambda: "endpoint 2: somebody has changed program at egress, " in agent.log)
        # What began unjudged is judged now, as what is new.
        unjudged.settimeout(1)
        with pytest.raises(TimeoutError):
            say(unjudged, b"HALT")
    judged(lab)
    # One of the two is enough.
    namespace, interface = (lab["server"], "eth0") if inside else (lab.node, "lxc2")
    namespace.run("tc", "filter", "del", "dev", interface, "egress", check=True)
    eventually(lambda: "endpoint 2: somebody has changed program at egress: put" in agent.log)
    judged(lab)
    assert "2 repairs" in agent.proxylib("status", "--verbose")


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_programs_that_are_taken_away_while_no_agent_runs(
    start: Callable[[str], tuple[Lab, NodeAgent]], end: str
) -> None:
    lab, agent = start("node")
    getattr(agent, end)()
    before = lab.node.run("tc", "filter", "show", "dev", "lxc1", "ingress").stdout
    clsact(lab, "del")
    assert ask(lab["other"], lab["server"].ipv4, b"HALT") == OTHER + b"HALT"
    agent.start()
    assert ask(lab["other"], lab["server"].ipv4, b"HALT", timeout=0.5) == b""
    judged(lab)
    assert endpoint(agent)["state"] == "ready"
    # The others have what they had: the same program, by its number.
    assert lab.node.run("tc", "filter", "show", "dev", "lxc1", "ingress").stdout == before


def test_programs_that_cannot_be_put_back(
    start: Callable[[str], tuple[Lab, NodeAgent]],
) -> None:
    lab, agent = start("node")
    with halted(agent):
        clsact(lab, "del")
        # It has clsact's place.
        lab.node.run("tc", "qdisc", "add", "dev", "lxc2", "ingress", check=True)
    eventually(lambda: endpoint(agent)["state"] == "not-ready")
    assert "a program cannot be attached" in endpoint(agent)["reason"]
    assert "1 not ready" in agent.proxylib("status")
    lab.node.run("tc", "qdisc", "del", "dev", "lxc2", "ingress", check=True)
    eventually(lambda: endpoint(agent)["state"] == "ready")
    judged(lab)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("ip rule del pref 9", "IPv4 rule to table 2004"),
        ("ip route flush table 2004", "IPv4 route in table 2004"),
        ("ip -6 rule del pref 9", "IPv6 rule to table 2004"),
        ("sysctl -qw net.ipv4.ip_forward=0", "net/ipv4/ip_forward"),
    ],
)
def test_routing_of_the_node(
    start: Callable[[str], tuple[Lab, NodeAgent]], command: str, said: str
) -> None:
    lab, agent = start("node")
    lab.node.run(*command.split(), check=True)
    eventually(lambda: f"the node: somebody has changed {said}: put back" in agent.log)
    judged(lab)
    assert endpoint(agent)["state"] == "ready"


def test_routing_of_a_sidecar(start: Callable[[str], tuple[Lab, NodeAgent]]) -> None:
    lab, agent = start("sidecar")
    lab["server"].ip("rule del pref 9")
    eventually(lambda: "endpoint 2: somebody has changed IPv4 rule to table 2004: put" in agent.log)
    judged(lab)
