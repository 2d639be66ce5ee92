"""The daemon as a process: start, stop, kill -9, and what is there afterwards."""

from __future__ import annotations

import itertools
import json
import os
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from proxylib.errors import ConfigError
from proxylib.npds import HOSTS_TYPE, POLICY_TYPE
from proxylib.proto import npds_pb2 as npds
from tests.node.agents import Agent, http_client, r2d2, running, settings
from tests.node.conftest import Command
from tests.xds.client import Subscriber
from tests.xds.etcd_server import Etcd, eventually, needs_etcd

Start = Callable[..., Command]


def start(command: Start, folder: Path, *arguments: object) -> Command:
    agent = command(
        "agent", "--json", "--state-dir", folder / "state", "--run-dir", folder / "run", *arguments
    )
    agent.event("ready")
    return agent


def test_a_signal_ends_it_in_order(command: Start, short_path: Path) -> None:
    agent = start(command, short_path)
    run = short_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "proxylib.sock",
        "xds.sock",
        "access_log.sock",
    }
    assert all(stat.S_ISSOCK(path.stat().st_mode) for path in run.iterdir())
    assert agent.end(signal.SIGTERM) == 0
    assert agent.event("stopped")["exit_status"] == 0
    assert list(run.iterdir()) == []


def test_check_config(command: Start, short_path: Path) -> None:
    file = short_path / "agent.yaml"
    file.write_text("node-name: n\n")
    checked = command("agent", "--config", file, "--check-config", read=False)
    output, _ = checked.process.communicate(timeout=30)
    assert json.loads(output)["node-name"] == "n"
    assert checked.process.returncode == 0
    file.write_text("nodename: n\n")
    wrong = command("agent", "--config", file, "--check-config", read=False)
    _, errors = wrong.process.communicate(timeout=30)
    assert "did you mean 'node-name'?" in errors
    assert wrong.process.returncode == 2


def test_check_config_says_what_the_data_path_lacks(command: Start, short_path: Path) -> None:
    def check(*arguments: object) -> tuple[int, str]:
        checked = command("agent", "--check-config", *arguments, read=False)
        output, errors = checked.process.communicate(timeout=60)
        assert "bpf-root" in json.loads(output)
        return checked.process.returncode, errors

    status, said = check("--datapath", "none")
    assert (status, said) == (0, "no data path: this agent has datapath: none\n")
    if os.geteuid() != 0:
        pytest.skip("root has more to check")
    nowhere = short_path / "bpf"
    status, said = check("--bpf-root", nowhere)
    assert status == 0
    assert f"missing   a bpffs for {nowhere}: " in said
    assert "ok        rights" in said
    status, said = check("--bpf-root", nowhere, "--datapath", "veth")
    assert status != 0
    assert "datapath veth cannot work on this machine" in said
    # It does not start then, and says the same.
    places = ("--state-dir", short_path / "s", "--run-dir", short_path / "r")
    agent = command("agent", *places, "--bpf-root", nowhere, "--datapath", "veth", read=False)
    _, errors = agent.process.communicate(timeout=60)
    assert agent.process.returncode != 0
    assert f"a bpffs for {nowhere}" in errors
    assert list((short_path / "r").iterdir()) == []


def test_state_survives_kill_9(command: Start, short_path: Path) -> None:
    agent = start(command, short_path)
    path = settings(short_path).api_path
    with http_client(path) as http:
        client = Agent(settings(short_path), http)
        client.put_policy(r2d2())
        client.add_endpoint("10.0.0.1", "app=r2d2", id=7)
        client.add_endpoint("10.0.0.2", "role=jedi")
        before = {path: client.get(path) for path in ("/policy", "/endpoint", "/ip", "/identity")}
    os.kill(agent.process.pid, signal.SIGKILL)
    agent.process.wait()
    # Its sockets are still there, stale.
    again = start(command, short_path)
    with http_client(path) as http:
        client = Agent(settings(short_path), http)
        assert {path: client.get(path) for path in before} == before
        assert client.put_policy(r2d2("more")).json()["revision"] == 4
        assert client.add_endpoint("10.0.0.3").json()["id"] == 2
    assert again.end() == 0


def test_kill_9_under_writers(command: Start, short_path: Path) -> None:
    """What was acknowledged is there; what was not is there whole, or not at all."""
    path = settings(short_path).api_path
    for _ in range(2):
        agent = start(command, short_path)
        acknowledged: list[str] = []

        def write(who: str, done: list[str] = acknowledged) -> None:
            with http_client(path) as http:
                client = Agent(settings(short_path), http)
                for number in range(10_000):
                    name = f"p-{who}-{os.getpid()}-{number % 5}"
                    try:
                        answer = client.put_policy(r2d2(name) + "---\n" + r2d2(name + "-twin"))
                    except httpx.HTTPError:
                        return
                    assert answer.status_code == 200
                    done.append(name)

        threads = [threading.Thread(target=write, args=(who,)) for who in "ab"]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 6:
            threads[0].join(0.01)
        os.kill(agent.process.pid, signal.SIGKILL)
        agent.process.wait()
        for thread in threads:
            thread.join()
        with running(short_path) as client:
            found = client.get("/policy")
            names = {policy["name"] for policy in found["policies"]}
            assert names >= set(acknowledged)
            assert {f"{name}-twin" for name in names if not name.endswith("-twin")} == {
                name for name in names if name.endswith("-twin")
            }
            assert found["revision"] >= len(acknowledged)


def test_what_was_in_force_is_served_first(short_path: Path) -> None:
    """A new agent takes nothing away from an Envoy that comes back to it."""
    with running(short_path) as agent:
        agent.put_policy(r2d2())
        agent.add_endpoint("10.0.0.1", "app=r2d2")
        agent.add_endpoint("10.0.0.2", "role=jedi")
        with Subscriber(agent.config.xds_path, POLICY_TYPE) as subscriber:
            before = subscriber.subscribe().resources
    with running(short_path) as agent, Subscriber(agent.config.xds_path) as subscriber:
        response = subscriber.subscribe()
        assert [r.value for r in response.resources] == [r.value for r in before]
        found = [npds.NetworkPolicy.FromString(r.value) for r in response.resources]
        (policy,) = (policy for policy in found if "10.0.0.1" in policy.endpoint_ips)
        assert policy.ingress_per_port_policies[0].port == 4040


def test_identities_stay(short_path: Path) -> None:
    with running(short_path) as agent:
        agent.add_endpoint("10.0.0.1", "b=1")
        agent.add_endpoint("10.0.0.2", "a=1")
        identity = agent.get("/endpoint/2")["identity"]["id"]
        agent.http.delete("/endpoint/1")
    with running(short_path) as agent:
        assert agent.get("/endpoint/2")["identity"]["id"] == identity
        with Subscriber(agent.config.xds_path, HOSTS_TYPE) as subscriber:
            (hosts,) = subscriber.subscribe().resources
        assert npds.NetworkPolicyHosts.FromString(hosts.value).policy == identity


@pytest.mark.parametrize("size", [0, 1, 100, 4096])
def test_a_state_file_cut_short(short_path: Path, size: int) -> None:
    with running(short_path) as agent:
        for number in range(20):
            agent.put_policy(r2d2(f"p{number}"))
    path = short_path / "state" / "state.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    with pytest.raises(ConfigError, match="move it away"), running(short_path):
        pass
    assert path.read_bytes() == whole[:size]


def test_a_rule_that_can_no_longer_be_enforced_is_closed(short_path: Path) -> None:
    with running(short_path) as agent:
        agent.put_policy(r2d2() + "---\n" + r2d2("other", app="other"))
        agent.add_endpoint("10.0.0.1", "app=r2d2")
        agent.add_endpoint("10.0.0.2", "role=jedi")
        edit(agent, 'replace(value, \'"r2d2", "l7"\', \'"c3po", "l7"\')', "%/droids")
    with running(short_path) as agent:
        (problem,) = agent.get("/policy")["problems"]
        assert "c3po" in problem["message"]
        assert agent.get("/endpoint/1")["policy"]["ingress"] is True
        assert "rules are closed" in agent.cli("status").stdout
        with Subscriber(agent.config.xds_path) as subscriber:
            found = [
                npds.NetworkPolicy.FromString(r.value) for r in subscriber.subscribe().resources
            ]
        (policy,) = (policy for policy in found if "10.0.0.1" in policy.endpoint_ips)
        assert not policy.ingress_per_port_policies


def test_a_document_that_can_no_longer_be_enforced(short_path: Path) -> None:
    with running(short_path) as agent:
        agent.put_policy(r2d2())
        edit(agent, "replace(value, 'endpointSelector', 'nobody')", "%")
    with pytest.raises(ConfigError, match="can no longer be enforced"), running(short_path):
        pass
    assert not (short_path / "run" / "proxylib.sock").exists()


def edit(agent: Agent, expression: str, keys: str) -> None:
    """What another version of the program may have left."""
    assert agent.node is not None
    database = agent.node.repository._store._database
    statement = f"UPDATE item SET value={expression} WHERE kind='policy' AND key LIKE ?"
    assert database.execute(statement, [keys]).rowcount >= 1


def test_modes_of_the_node(short_path: Path) -> None:
    with running(short_path, enable_policy="always") as agent:
        agent.add_endpoint("10.0.0.1")
        assert agent.get("/endpoint/1")["policy"] == {"ingress": True, "egress": True}
        assert agent.get("/config")["enable-policy"] == "always"
    with running(short_path, policy_audit_mode="true") as agent:
        assert agent.get("/endpoint/1")["policy"]["audit"] is True
        assert agent.get("/config")["policy-audit-mode"] == "true"


@needs_etcd
def test_nodes_share_identities(tmp_path: Path) -> None:
    server = Etcd(tmp_path)
    try:
        with (
            running(tmp_path / "1", etcd=server.address, node_name="one") as one,
            running(tmp_path / "2", etcd=server.address, node_name="two") as two,
        ):
            one.add_endpoint("10.0.0.1", "k8s:app=a")
            two.add_endpoint("10.0.0.2", "k8s:app=b")
            two.add_endpoint("10.0.0.3", "k8s:app=a")
            eventually(lambda: labels_of(one).items() == labels_of(two).items(), "the same")
            assert len(labels_of(one)) == 2
    finally:
        server.kill()


def labels_of(agent: Agent) -> dict[int, str]:
    known = agent.node.control.engine.known_identities()
    return {number: str(labels) for number, labels in known.items() if number > 255}


def test_an_etcd_that_is_not_there_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"etcd at 127\.0\.0\.1:1: UNAVAILABLE"),
        running(tmp_path, etcd="127.0.0.1:1"),
    ):
        pass


def test_own_addresses_change_while_policies_do(tmp_path: Path) -> None:
    """Each is one change, in an order of revisions: none ends the agent."""
    failed: list[Exception] = []
    done = threading.Event()
    with running(tmp_path) as agent:
        assert agent.node is not None
        repository = agent.node.repository

        def move() -> None:
            try:
                for number in itertools.cycle(range(1, 250)):
                    if done.is_set():
                        return
                    repository.set_own_addresses(frozenset({f"192.0.2.{number}"}))
            except Exception as error:
                failed.append(error)

        mover = threading.Thread(target=move)
        mover.start()
        for number in range(1, 30):
            assert agent.add_endpoint(f"10.0.0.{number}", "app=r2d2").status_code == 201
        done.set()
        mover.join()
        assert repository.state.revision == 29
    assert failed == []
