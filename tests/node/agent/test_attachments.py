"""Endpoints with an interface: added, seen, renamed, gone; with an agent in a real node."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bpf.datapath import Datapath, Link
from demos.namespaces import Lab
from tests.conftest import MakeLab
from tests.node.agent.nodes import programs
from tests.node.agents import Agent, running


@contextmanager
def agent_of(lab: Lab, folder: Path, **more: Any) -> Iterator[Agent]:
    """An agent whose threads, and so its sockets, are in the lab's node."""
    settings = {
        "datapath": "auto",
        "bpf_root": lab.bpffs() / "proxylib",
        "bpf_cache": Path(programs().name),
        "envoy": "none",
        **more,
    }
    with lab.node.entered(), running(folder, **settings) as agent:
        yield agent


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab("client", "server")


@pytest.fixture
def agent(lab: Lab, tmp_path: Path) -> Iterator[Agent]:
    with agent_of(lab, tmp_path) as made:
        yield made


def until(agent: Agent, number: int, wanted: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 30
    while not wanted(endpoint := agent.get(f"/endpoint/{number}")):
        assert time.monotonic() < deadline, endpoint
        time.sleep(0.02)
    return endpoint


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def test_added_by_namespace_process_and_interface(lab: Lab, agent: Agent) -> None:
    client, server = lab["client"], lab["server"]
    process = server.popen("sleep", "60")
    added = agent.cli("endpoint", "add", "--netns", client.netns, "--label", "k8s:app=client")
    assert (added.exit_code, added.stdout) == (0, "1\n"), added.output
    assert agent.cli("endpoint", "add", "--pid", process.pid).stdout == "2\n"
    first, second = agent.get("/endpoint")
    assert (first["state"], second["state"]) == ("ready", "ready")
    assert first["networking"]["addressing"] == [{"ipv4": client.ipv4, "ipv6": client.ipv6}]
    assert first["attachment"] == {
        "interface": client.interface,
        "ifindex": lab.node.ifindex(client.interface),
        "netns": str(client.path),
        "inner": "eth0",
    }
    assert second["attachment"]["netns"] == str(server.path)
    header, *rows = agent.cli("endpoint", "list").stdout.splitlines()
    assert header.split()[-2:] == ["INTERFACE", "STATUS"]
    assert rows[1].split()[-2:] == [client.interface, "ready"]
    assert agent.cli("endpoint", "delete", 1).exit_code == 0
    again = agent.cli("endpoint", "add", "--interface", client.interface, "--address", client.ipv4)
    assert again.stdout == "3\n", again.output
    assert agent.get("/endpoint/3")["networking"]["addressing"] == [{"ipv4": client.ipv4}]


def test_what_cannot_be_attached_is_refused(lab: Lab, agent: Agent) -> None:
    client = lab["client"]
    assert agent.cli("endpoint", "add", "--netns", client.netns).exit_code == 0
    lab.node.ip("link add br0 type bridge", f"link set {lab['server'].interface} master br0")
    for arguments, why in (
        (("--netns", client.netns), f"{client.ipv4} is the address of endpoint 1 already"),
        (("--netns", "nobody"), "there is no network namespace 'nobody'"),
        (("--netns", "\x1b[2J"), "'\\x1b[2J' is no name of a network namespace"),
        (("--netns", "./nowhere"), "there is no such network namespace"),
        (("--netns", client.netns, "--interface", "lo"), "lo is loopback"),
        (("--netns", client.netns, "--pid", "1"), "give one"),
        (("--pid", "4194000"), "there is no process 4194000"),
        (("--interface", "nothing"), "the node has no interface 'nothing'"),
        (("--interface", "\x9b2J"), "'\\x9b2J' is no name of an interface"),
        (("--interface", lab["server"].interface), "a port of the bridge br0"),
        (("--netns", lab.node.netns), "the node's own namespace"),
        (("--address", "10.0.0.1", "--sidecar"), "need netns, pid or interface"),
    ):
        refused = agent.cli("endpoint", "add", *arguments)
        assert refused.exit_code == 2, (arguments, refused.output)
        assert why in refused.stderr
        assert refused.stderr.replace("\n", "").isprintable()
    client.ip("addr add 10.1.0.99/32 dev eth0")
    twice = agent.add_endpoint("10.1.0.99", netns=client.netns)
    assert twice.status_code == 409
    assert "lxc1 is that of endpoint 1 already" in twice.json()["detail"]
    assert len(agent.get("/endpoint")) == 1


def test_the_nodes_own_addresses_are_no_endpoints(lab: Lab, tmp_path: Path) -> None:
    client = lab["client"]
    lab.node.ip("addr add 10.7.7.7/32 dev lo", "addr add fd77::1/128 dev lo")
    client.ip("addr add 10.7.7.7/32 dev eth0")
    with agent_of(lab, tmp_path, node_ip="203.0.113.7") as agent:
        for arguments, why in (
            (("--address", "10.7.7.7"), "10.7.7.7 is an address of this node itself"),
            (("--address", "fd77:0::1"), "fd77::1 is an address of this node itself"),
            (("--address", "203.0.113.7"), "203.0.113.7 is an address of this node itself"),
            (("--netns", client.netns, "--address", "10.7.7.7"), "of this node itself"),
            (("--netns", client.netns, "--address", "10.7.7.7", "--label", "reserved:host"), "10."),
            (("--address", "127.0.0.1"), "127.0.0.1 is a loopback address"),
            (("--address", "::1"), "::1 is a loopback address"),
        ):
            refused = agent.cli("endpoint", "add", *arguments)
            assert refused.exit_code == 2, (arguments, refused.output)
            assert why in refused.stderr
        assert agent.get("/endpoint") == []
        # The node may have labels of its own.
        assert agent.add_endpoint("10.7.7.7", "reserved:host", "k8s:type=edge").status_code == 201


def test_names_and_addresses_change(lab: Lab, agent: Agent) -> None:
    client = lab["client"]
    agent.cli("endpoint", "add", "--netns", client.netns, "--label", "k8s:app=client")
    lab.node.ip(f"link set {client.interface} name other")
    client.ip("link set eth0 name net0")
    now = until(agent, 1, lambda e: e["attachment"]["inner"] == "net0")
    assert (now["attachment"]["interface"], now["state"]) == ("other", "ready")
    client.ip(f"addr del {client.ipv4}/32 dev net0")
    lost = until(agent, 1, lambda e: e["state"] != "ready")
    assert (lost["state"], lost["reason"]) == (
        "not-ready",
        f"net0 does not have {client.ipv4} any more",
    )
    assert "not-ready\n" in agent.cli("endpoint", "list").stdout
    client.ip(f"addr add {client.ipv4}/32 dev net0")
    until(agent, 1, lambda e: e["state"] == "ready")


def test_a_namespace_vanishes(lab: Lab, agent: Agent) -> None:
    """Nothing is lost: the endpoint is there, says what it is waiting for, and can go."""
    client = lab["client"]
    agent.cli("endpoint", "add", "--netns", client.netns, "--label", "k8s:app=client")
    ip("netns", "del", client.netns)
    gone = until(agent, 1, lambda e: e["state"] == "disconnected")
    assert "gone" in gone["reason"] or "any more" in gone["reason"]
    assert gone["identity"]["labels"] == ["k8s:app=client"]
    assert "disconnected" in agent.cli("endpoint", "list").stdout
    (component,) = [c for c in agent.get("/healthz")["components"] if c["name"] == "Endpoints"]
    assert component["state"] == "Warning"
    assert "1 disconnected" in component["message"]
    assert agent.cli("endpoint", "labels", 1, "--add", "k8s:x=y").exit_code == 0
    taken = agent.cli("endpoint", "add", "--address", client.ipv4)
    assert taken.exit_code == 2
    assert f"{client.ipv4} is the address of endpoint 1 already, which is disc" in taken.stderr
    assert "proxylib endpoint delete 1" in taken.stderr
    assert agent.cli("endpoint", "delete", 1).exit_code == 0
    assert agent.get("/endpoint") == []


def test_the_next_agent_knows_what_has_gone(lab: Lab, tmp_path: Path) -> None:
    with agent_of(lab, tmp_path) as first:
        for endpoint in lab:
            assert first.cli("endpoint", "add", "--netns", endpoint.netns).exit_code == 0
    lab.node.ip("link set lxc1 name renamed")
    lab["server"].ip("link del eth0")
    with agent_of(lab, tmp_path) as second:
        until(second, 1, lambda e: e["attachment"]["interface"] == "renamed")
        assert second.get("/endpoint/1")["state"] == "ready"
        until(second, 2, lambda e: e["state"] == "disconnected")


def test_programs_are_attached_to_nobody_else(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a boot, or a veth that was made anew, a number is another interface's."""
    client, server = lab["client"], lab["server"]
    with agent_of(lab, tmp_path) as first:
        for endpoint in lab:
            assert first.cli("endpoint", "add", "--netns", endpoint.netns).exit_code == 0
        number = first.get("/endpoint/1")["attachment"]["ifindex"]
    client.ip("link del eth0")
    lab.node.ip(
        f"link add {client.interface} index {number} type veth peer name eth9 netns {server.netns}"
    )
    with closing(sqlite3.connect(tmp_path / "state/state.db")) as database, database:
        database.execute(
            "UPDATE item SET value = json_set(value, '$.attachment.boot', 'another') "
            "WHERE kind = 'endpoint' AND key = '2'"
        )
    attached: list[int] = []
    attach = Datapath.attach

    def spy(self: Datapath, link: Link) -> None:
        attached.append(link.number)
        attach(self, link)

    monkeypatch.setattr(Datapath, "attach", spy)
    with agent_of(lab, tmp_path) as second:
        states = {e["id"]: e["state"] for e in second.get("/endpoint")}
        assert states == {1: "disconnected", 2: "disconnected"}
        assert "before this machine booted" in second.get("/endpoint/2")["reason"]
        added = second.cli("endpoint", "add", "--interface", client.interface)
        assert "no IPv4 and no global IPv6 address" in added.stderr
    assert attached == []
    shown = lab.node.run("tc", "filter", "show", "dev", client.interface, "ingress")
    assert shown.stdout == ""


@pytest.mark.parametrize("datapath", ["auto", "veth"])
def test_the_next_agent_takes_nothing_away(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, datapath: str
) -> None:
    """An interface without programs for a moment is one that lets everything pass."""
    with agent_of(lab, tmp_path, datapath=datapath) as first:
        for endpoint in lab:
            assert first.cli("endpoint", "add", "--netns", endpoint.netns).exit_code == 0
    detached: list[int] = []
    monkeypatch.setattr(Datapath, "detach", lambda self, number: detached.append(number))
    with agent_of(lab, tmp_path, datapath=datapath) as second:
        assert [e["state"] for e in second.get("/endpoint")] == ["ready", "ready"]
        assert detached == []
        second.cli("endpoint", "delete", 1)
        assert detached == [1]
