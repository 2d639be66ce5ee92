"""Agents and Envoys that die: what is judged goes on, and the next agent takes it over."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from demos.namespaces import Lab
from demos.node.agent import NodeAgent
from node.errors import SetupError
from tests.conftest import MakeLab
from tests.node.agent.nodes import ask, connect, eventually, ingress, programs, say, serve
from tests.node.agents import Agent, http_client, settings

CLIENT = b"::ffff:10.1.0.2 "
OTHER = b"::ffff:10.1.0.4 "


@contextmanager
def api(agent: NodeAgent) -> Iterator[Agent]:
    """The API of an agent, as long as the block lasts."""
    with http_client(agent.socket) as http:
        yield Agent(settings(Path(agent.lab.folder)), http)


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    made = make_lab("client", "server", "other")
    serve(made["server"])
    return made


@pytest.fixture
def agent(lab: Lab) -> NodeAgent:
    """An agent as a process of its own, with three endpoints; it ends with the lab."""
    started = NodeAgent(lab, "--bpf-cache", programs().name)
    started.start()
    with api(started) as client:
        for name in ("client", "server", "other"):
            body = {"netns": lab[name].netns, "labels": [f"app={name}"]}
            assert client.http.post("/endpoint", json=body).status_code == 201
    return started


def put(agent: NodeAgent, *texts: str) -> None:
    agent.proxylib("policy", "import", "-", "--wait", stdin="---".join(texts))


def envoy(agent: NodeAgent) -> int:
    (pid,) = agent.envoys()
    return pid


def judged(lab: Lab) -> None:
    """`ingress("READ")` is in force."""
    server = lab["server"].ipv4
    assert ask(lab["client"], server, b"READ x") == CLIENT + b"READ x"
    assert ask(lab["client"], server, b"HALT") == b"ERROR"
    assert ask(lab["other"], server, b"READ x", timeout=0.5) == b""


@pytest.mark.timeout(200)
def test_an_agent_that_is_killed_is_missed_by_nobody(lab: Lab, agent: NodeAgent) -> None:
    put(agent, ingress("READ"))
    proxy = envoy(agent)
    with connect(lab["client"], lab["server"].ipv4) as running:
        assert say(running, b"READ 1") == CLIENT + b"READ 1"
        agent.kill()
        assert say(running, b"READ 2") == CLIENT + b"READ 2"
        assert say(running, b"HALT") == b"ERROR"
        judged(lab)
        agent.start()
        assert say(running, b"READ 3") == CLIENT + b"READ 3"
        judged(lab)
        assert envoy(agent) == proxy
        with api(agent) as client:
            assert {e["state"] for e in client.get("/endpoint")} == {"ready"}
        # What it is told from now on holds for the connections that were there before.
        put(agent, ingress("HALT"))
        assert say(running, b"HALT") == CLIENT + b"HALT"
        assert say(running, b"READ 4") == b"ERROR"
    assert agent.stop() == 0


@pytest.mark.timeout(200)
def test_take_overs_under_traffic(lab: Lab, agent: NodeAgent) -> None:
    """Nothing that is allowed fails in them, and nothing that is denied passes."""
    put(agent, ingress("READ"))
    stopping = threading.Event()
    answers: dict[str, list[bytes]] = {"client": [], "other": []}

    def traffic(name: str, timeout: float) -> None:
        while not stopping.is_set():
            answers[name].append(ask(lab[name], lab["server"].ipv4, b"READ x", timeout))

    threads = [
        threading.Thread(target=traffic, args=args) for args in (("client", 10), ("other", 0.2))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            agent.kill()
            agent.start()
        so_far = len(answers["client"])
        eventually(lambda: len(answers["client"]) > so_far + 20)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert set(answers["client"]) == {CLIENT + b"READ x"}
    assert set(answers["other"]) == {b""}


@pytest.mark.timeout(200)
def test_an_envoy_that_is_killed_closes_only_what_needs_it(lab: Lab, agent: NodeAgent) -> None:
    put(agent, ingress("READ"), ingress(name="l4", peer="other"))
    client, other, server = lab["client"], lab["other"], lab["server"].ipv4
    with connect(client, server) as l7, connect(other, server) as l4:
        assert say(l7, b"READ 1") == CLIENT + b"READ 1"
        assert say(l4, b"HALT") == OTHER + b"HALT"
        os.kill(envoy(agent), signal.SIGKILL)
        assert say(l4, b"HALT") == OTHER + b"HALT"
        with suppress(ConnectionError):
            assert say(l7, b"READ 2") == b""
        eventually(lambda: ask(client, server, b"READ 3") == CLIENT + b"READ 3")
        assert ask(client, server, b"HALT") == b"ERROR"
        assert say(l4, b"HALT") == OTHER + b"HALT"


@pytest.mark.timeout(200)
def test_a_stop_leaves_everything_and_cleanup_nothing(lab: Lab, agent: NodeAgent) -> None:
    put(agent, ingress("READ"))
    with pytest.raises(SetupError, match="another agent"):
        agent.cleanup()
    assert agent.stop() == 0
    judged(lab)
    said = agent.cleanup()
    assert "Envoy, process" in said
    assert agent.left() == []
    assert ask(lab["other"], lab["server"].ipv4, b"HALT") == OTHER + b"HALT"
    assert agent.cleanup() == "nothing was left\n"
    # What it was told is there again with the next one.
    agent.start()
    with api(agent) as client:
        assert {e["state"] for e in client.get("/endpoint")} <= {"ready", "waiting-for-proxy"}
    eventually(lambda: ask(lab["client"], lab["server"].ipv4, b"READ x"))
    judged(lab)


@pytest.mark.timeout(200)
def test_a_state_that_was_moved_away_opens_nobody_without_a_word(
    lab: Lab, agent: NodeAgent
) -> None:
    put(agent, ingress())
    assert ask(lab["other"], lab["server"].ipv4, b"x", timeout=0.5) == b""
    assert agent.stop() == 0
    state = agent.state_dir / "state.db"
    state.rename(state.with_suffix(".aside"))
    agent.start()
    assert "3 endpoints of an earlier agent are not in this one's state" in agent.log
    for number, name in enumerate(("client", "server", "other"), 1):
        assert f"endpoint {number} ({lab[name].ipv4}" in agent.log
    # It is true: they are open.
    assert ask(lab["other"], lab["server"].ipv4, b"x") == OTHER + b"x"
    # With the state they are judged again, and there is nothing to be told.
    agent.kill()
    state.with_suffix(".aside").replace(state)
    agent.start()
    assert "not in this one's state" not in agent.log
    assert ask(lab["other"], lab["server"].ipv4, b"x", timeout=0.5) == b""


@pytest.mark.timeout(200)
def test_what_went_while_no_agent_ran(lab: Lab, agent: NodeAgent) -> None:
    put(agent, ingress())
    agent.kill()
    lab.node.ip("link del lxc3")
    agent.start()
    with api(agent) as client:
        eventually(lambda: client.get("/endpoint/3")["state"] == "disconnected")
        assert client.get("/endpoint/2")["state"] == "ready"
    assert ask(lab["client"], lab["server"].ipv4, b"x") == CLIENT + b"x"


@pytest.mark.timeout(200)
@pytest.mark.parametrize("way", ["signal", "command"])
def test_a_new_envoy_takes_over(lab: Lab, agent: NodeAgent, way: str) -> None:
    put(agent, ingress("READ"))
    before = envoy(agent)
    with connect(lab["client"], lab["server"].ipv4) as running:
        assert say(running, b"READ 1") == CLIENT + b"READ 1"
        if way == "signal":
            os.kill(agent.pid, signal.SIGHUP)
        else:
            assert agent.proxylib("agent", "reload-envoy", "--json") == '{\n  "envoys": 1\n}\n'
        eventually(lambda: len(agent.envoys()) == 2)
        eventually(lambda: "a new Envoy has taken over" in agent.log)
        assert before in agent.envoys()
        assert say(running, b"READ 2") == CLIENT + b"READ 2"
        judged(lab)
    assert agent.stop() == 0


@pytest.mark.timeout(200)
def test_numbers_of_interfaces_are_not_believed_after_a_boot(lab: Lab, agent: NodeAgent) -> None:
    """A program on an interface that is not the endpoint's would cut that off."""
    assert agent.stop() == 0
    agent.cleanup()
    uplink = lab.add("uplink")
    number = lab.node.ifindex(uplink.interface)
    with closing(sqlite3.connect(agent.state_dir / "state.db")) as database:
        (text,) = database.execute(
            "SELECT value FROM item WHERE kind='endpoint' AND key='3'"
        ).fetchone()
        value = json.loads(text)
        value["attachment"] |= {"boot": "an earlier one", "ifindex": number}
        database.execute(
            "UPDATE item SET value=? WHERE kind='endpoint' AND key='3'", [json.dumps(value)]
        )
        database.commit()
    agent.start()
    with api(agent) as client:
        assert client.get("/endpoint/3")["state"] == "disconnected"
        assert "booted" in client.get("/endpoint/3")["reason"]
        assert client.get("/endpoint/2")["state"] == "ready"
    shown = lab.node.run("tc", "qdisc", "show", "dev", uplink.interface).stdout
    assert "clsact" not in shown
    assert "clsact" in lab.node.run("tc", "qdisc", "show", "dev", "lxc2").stdout


@pytest.mark.timeout(200)
def test_an_envoy_that_nobody_needs_any_more_holds_nothing_up(lab: Lab, agent: NodeAgent) -> None:
    put(agent, ingress("READ"))
    put(agent, ingress())
    os.kill(envoy(agent), signal.SIGKILL)
    eventually(lambda: agent.log.count("Envoy runs") == 2)
    # It has no listener, and so no parser.
    put(agent, ingress(peer="other"))
    assert ask(lab["other"], lab["server"].ipv4, b"x") == OTHER + b"x"


@pytest.mark.timeout(200)
def test_sidecars_are_taken_over_and_ended_with_their_endpoints(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server", "other")
    serve(lab["server"])
    agent = NodeAgent(lab, "--bpf-cache", programs().name)
    agent.start()
    with api(agent) as client:
        for name in ("client", "server", "other"):
            body = {"netns": lab[name].netns, "labels": [f"app={name}"], "mode": "sidecar"}
            assert client.http.post("/endpoint", json=body).status_code == 201
    put(agent, ingress("READ"), ingress("READ", name="unused", app="other"))
    eventually(lambda: len(agent.envoys()) == 2)
    before = agent.envoys()
    with connect(lab["client"], lab["server"].ipv4) as running:
        assert say(running, b"READ 1") == CLIENT + b"READ 1"
        agent.kill()
        assert say(running, b"HALT") == b"ERROR"
        judged(lab)
        with closing(sqlite3.connect(agent.state_dir / "state.db")) as database:
            database.execute("DELETE FROM item WHERE kind='endpoint' AND key='3'")
            database.commit()
        agent.start()
        eventually(lambda: len(agent.envoys()) == 1)
        assert set(agent.envoys()) < set(before)
        assert say(running, b"READ 2") == CLIENT + b"READ 2"
        assert ask(lab["client"], lab["server"].ipv4, b"HALT") == b"ERROR"
    assert agent.stop() == 0
    agent.cleanup()
    assert agent.left() == []
