"""The commands that speak to an agent: what they print, and their exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from node.cli import cli
from proxylib.npds import POLICY_TYPE
from tests.node.agents import Agent, r2d2, running
from tests.node.conftest import ROOT
from tests.xds.client import Subscriber


@pytest.fixture
def agent() -> Iterator[Agent]:
    with tempfile.TemporaryDirectory(prefix="cli") as path, running(Path(path)) as found:
        yield found


def test_endpoint_list_reads_like_the_sample(agent: Agent) -> None:
    """Feature C-019: enforcement is Disabled until there is a rule."""
    agent.add_endpoint("172.27.2.118", "k8s:app=alpine", id=888)
    agent.add_endpoint("172.27.2.97", "k8s:app=r2d2", id=931)
    agent.add_endpoint("172.27.2.148", "k8s:app=r2d2", id=1781)
    (alpine, droid) = (agent.get(f"/endpoint/{n}")["identity"]["id"] for n in (888, 931))
    header = (
        "ENDPOINT   POLICY (ingress)   POLICY (egress)   IDENTITY   "
        "LABELS (source:key[=value])   IPv6   IPv4           STATUS\n"
        "           ENFORCEMENT        ENFORCEMENT\n"
    )
    row = "{:<11}{:<19}{:<18}{:<11}{:<37}{:<15}ready\n"
    alpine_row = row.format(888, "Disabled", "Disabled", alpine, "k8s:app=alpine", "172.27.2.118")
    before = agent.cli("endpoint", "list")
    assert before.exit_code == 0
    assert before.stdout == (
        header
        + alpine_row
        + row.format(931, "Disabled", "Disabled", droid, "k8s:app=r2d2", "172.27.2.97")
        + row.format(1781, "Disabled", "Disabled", droid, "k8s:app=r2d2", "172.27.2.148")
    )
    agent.put_policy(r2d2())
    assert agent.cli("endpoint", "list").stdout == (
        header
        + alpine_row
        + row.format(931, "Enabled", "Disabled", droid, "k8s:app=r2d2", "172.27.2.97")
        + row.format(1781, "Enabled", "Disabled", droid, "k8s:app=r2d2", "172.27.2.148")
    )
    chosen = agent.cli("endpoint", "list", "--label", "app=alpine", "--json")
    assert [e["id"] for e in json.loads(chosen.stdout)] == [888]


def test_status_reads_like_the_sample(agent: Agent) -> None:
    agent.put_policy(r2d2())
    agent.add_endpoint("10.0.0.1", "app=r2d2")
    result = agent.cli("status")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "KVStore:                Ok   Disabled"
    (controllers,) = [text for text in lines if text.startswith("Controller Status: ")]
    assert re.fullmatch(r"Controller Status:      (\d+)/\1 healthy", controllers)
    envoy = "Envoy:                  Ok   none runs: no endpoint with an interface has a redirect"
    assert envoy in lines
    assert "NodeMonitor:            0 of 16 watch (proxylib monitor)" in lines
    assert lines[-1] == (
        "Proxy Status:           OK, ip 127.0.0.1, 1 redirects active on ports 10000-20000"
    )
    assert agent.cli("status", "--brief").stdout == "Ok\n"
    assert json.loads(agent.cli("status", "--json").stdout)["state"] == "Ok"


def test_policy_import_get_delete(agent: Agent, tmp_path: Path) -> None:
    agent.add_endpoint("10.0.0.1", "app=r2d3")
    one, two = tmp_path / "one.yaml", tmp_path / "two.json"
    one.write_text(r2d2())
    two.write_text(
        json.dumps(
            {
                "kind": "CiliumNetworkPolicy",
                "metadata": {"name": "two"},
                "spec": {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}]}]},
            }
        )
    )
    imported = agent.cli("policy", "import", tmp_path)
    assert imported.exit_code == 0
    assert imported.stdout == "Revision: 2\n"
    assert f"warning: {one}:5:3: spec.endpointSelector: selects no endpoint" in imported.stderr
    listed = agent.cli("policy", "get").stdout.splitlines()
    assert listed[0].split() == ["NAMESPACE", "NAME", "KIND", "REVISION", "SOURCE", "LABELS"]
    assert listed[1].split() == ["droids", "CiliumNetworkPolicy", "2", "api", "unspec:team=a"]
    assert listed[-1] == "Revision: 2"
    printed = agent.cli("policy", "get", "droids")
    again = agent.cli("policy", "import", "-", stdin=printed.stdout)
    assert again.stdout == "Revision: 3\n"
    assert agent.cli("policy", "get", "droids").stdout == printed.stdout
    assert agent.cli("policy", "get", "nobody").exit_code == 1
    assert agent.cli("policy", "delete", "droids").stdout == "Revision: 4\n"
    missing = agent.cli("policy", "delete", "droids")
    assert missing.exit_code == 1
    assert "there is no policy 'droids'" in missing.stderr
    assert agent.cli("policy", "delete").exit_code == 2
    assert agent.cli("policy", "delete", "--all").exit_code == 0


def test_import_is_all_or_nothing(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(r2d2())
    (tmp_path / "b.yaml").write_text(r2d2("bad", cmd="JUMP"))
    result = agent.cli("policy", "import", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path}/b.yaml:11:" in result.stderr
    assert "must be one of READ, WRITE, HALT, RESET" in result.stderr
    assert agent.get("/policy")["revision"] == 0
    assert agent.cli("policy", "import", tmp_path / "nothing.yaml").exit_code == 2


def test_files_that_are_good_and_do_not_fit_together(agent: Agent, tmp_path: Path) -> None:
    """Each of them could be put in force alone; neither is."""
    agent.add_endpoint("10.0.0.1", "k8s:app=r2d2")
    (tmp_path / "a.yaml").write_text(r2d2())
    memcache = r2d2("other").replace("l7proto: r2d2", "l7proto: memcache")
    (tmp_path / "b.yaml").write_text(memcache.replace("cmd: READ", "command: get"))
    result = agent.cli("policy", "import", tmp_path)
    assert result.exit_code == 2
    assert "one port of an endpoint can have one parser" in result.stderr
    (tmp_path / "b.yaml").write_text(r2d2(team="b"))
    result = agent.cli("policy", "import", tmp_path)
    assert result.exit_code == 2
    assert "is there twice" in result.stderr
    assert f"{tmp_path}/a.yaml:" in result.stderr
    assert f"{tmp_path}/b.yaml:" in result.stderr
    assert agent.get("/policy") == {"revision": 1, "policies": [], "problems": []}
    (tmp_path / "b.yaml").write_text(r2d2("other"))
    imported = agent.cli("policy", "import", tmp_path, "--json")
    assert imported.exit_code == 0
    assert json.loads(imported.stdout)["revision"] == 2
    assert len(agent.get("/policy")["policies"]) == 2


def test_policy_wait(agent: Agent, tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(r2d2())
    with Subscriber(agent.config.xds_path, POLICY_TYPE, node="envoy-1") as subscriber:
        subscriber.ack(subscriber.subscribe())
        agent.add_endpoint("10.0.0.1", "app=r2d2")
        response = subscriber.receive()
        subscriber.send(response.nonce, "1", error="no droids here")
        late = agent.cli("policy", "import", file, "--wait", "--timeout", "0.3")
        assert late.exit_code == 1
        assert "not in force envoy-1:" in late.stderr
        status = agent.cli("xds", "status")
        assert "envoy-1" in status.stdout
        subscriber.ack(subscriber.receive())
        waited = agent.cli("policy", "wait", "2", "--nodes", "1")
        assert (waited.exit_code, waited.stdout) == (0, "Revision 2: 1 nodes\n")
        assert agent.cli("xds", "status").exit_code == 0
        few = agent.cli("policy", "wait", "2", "--nodes", "2", "--timeout", "0")
        assert few.exit_code == 1
        assert "only 1 nodes are connected" in few.stderr


def test_a_refusal_is_shown_with_its_reason(agent: Agent) -> None:
    agent.add_endpoint("10.0.0.1")
    with Subscriber(agent.config.xds_path, POLICY_TYPE, node="envoy-1") as subscriber:
        response = subscriber.subscribe()
        subscriber.send(response.nonce, "", error="no droids\nhere")
        waited = agent.cli("policy", "wait", "1", "--timeout", "0.3")
        assert "no droids" in waited.stderr
        status = agent.cli("xds", "status")
        assert status.exit_code == 1
        header, *rows = status.stdout.splitlines()
        assert header.split() == ["NODE", "TYPE", "STATE", "SENT", "ACKED", "RESOURCES", "REASON"]
        words = rows[0].split()
        assert words[:3] == ["envoy-1", "cilium.NetworkPolicy", "refused"]
        assert words[-3:] == ["0", "no", "droids"]
        assert rows[1].split() == ["here"]


def test_endpoint_commands(agent: Agent) -> None:
    added = agent.cli("endpoint", "add", "--address", "10.0.0.1", "--address", "fd00::1",
                      "--label", "k8s:app=nginx", "--k8s-pod-name", "nginx-0")  # fmt: skip
    assert added.stdout == "1\n"
    shown = json.loads(agent.cli("endpoint", "get", 1).stdout)
    assert shown["external-identifiers"] == {"k8s-pod-name": "nginx-0"}
    changed = agent.cli("endpoint", "labels", 1, "--add", "x=y", "--delete", "k8s:app=nginx")
    assert changed.stdout == "unspec:x=y\n"
    assert agent.cli("endpoint", "labels", 1, "--set", "a=b").stdout == "unspec:a=b\n"
    assert agent.cli("endpoint", "labels", 1).stdout == "unspec:a=b\n"
    assert agent.cli("endpoint", "labels", 1, "--set", "a=b", "--add", "c").exit_code == 2
    taken = agent.cli("endpoint", "add", "--address", "10.0.0.1")
    assert taken.exit_code == 2
    assert "10.0.0.1 is the address of endpoint 1 already" in taken.stderr
    ips = agent.cli("ip", "list").stdout.splitlines()
    assert [line.split()[0] for line in ips[1:]] == ["10.0.0.1/32", "fd00::1/128"]
    assert agent.cli("endpoint", "delete", 1).exit_code == 0
    assert agent.cli("endpoint", "get", 1).exit_code == 1


def test_identities_and_selectors(agent: Agent) -> None:
    agent.add_endpoint("10.0.0.1", "app=r2d2")
    agent.put_policy(r2d2())
    listed = agent.cli("identity", "list").stdout.splitlines()
    assert listed[1].split() == ["0", "reserved:unknown", "0"]
    number = agent.get("/endpoint/1")["identity"]["id"]
    assert agent.cli("identity", "get", number).stdout == "unspec:app=r2d2\n"
    assert agent.cli("identity", "get", 4711).exit_code == 1
    selectors = agent.cli("policy", "selectors").stdout.splitlines()
    assert selectors[1].split() == ["app=r2d2", "1", str(number)]


def test_without_an_agent(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["status", "--socket", str(tmp_path / "none")])
    assert result.exit_code == 3
    assert "no agent is at" in result.stderr
    assert "PROXYLIB_SOCKET" in result.stderr


def test_the_option_wins_over_the_variable(agent: Agent, tmp_path: Path) -> None:
    path = str(agent.config.api_path)
    environment = {"PROXYLIB_SOCKET": str(tmp_path / "none")}
    result = CliRunner().invoke(cli, ["status", "--socket", path], env=environment)
    assert result.exit_code == 0


def test_trace_by_the_agent_and_off_line(agent: Agent, tmp_path: Path) -> None:
    policy, endpoints = tmp_path / "policy.yaml", tmp_path / "endpoints.yaml"
    policy.write_text(r2d2())
    endpoints.write_text(
        "endpoints:\n"
        "- {address: 10.0.0.1, labels: {app: r2d2}}\n"
        "- {address: 10.0.0.2, labels: {role: jedi}}\n"
    )
    assert agent.cli("policy", "import", policy).exit_code == 0
    agent.add_endpoint("10.0.0.1", "app=r2d2")
    agent.add_endpoint("10.0.0.2", "role=jedi")
    offline = ("--policy", policy, "--endpoints", endpoints)
    to = ("--dst", "app=r2d2", "--dport", "4040/TCP")

    def both(status: int, *arguments: str) -> str:
        """What both print; it is the same."""
        online = agent.cli("policy", "trace", *arguments, *to)
        assert online.exit_code == status, online.output
        assert agent.cli("policy", "trace", *arguments, *to, *offline).stdout == online.stdout
        return online.stdout

    allowed = both(0, "--src", "role=jedi", "--l7", "cmd=READ file=x")
    assert "Final verdict: ALLOWED" in allowed
    assert f"{policy}:11:" in allowed
    denied = both(1, "--src", "10.0.0.2", "--l7", "cmd=HALT")
    assert "the request matches none of r2d2: {cmd: READ}" in denied
    assert denied.endswith("Final verdict: DENIED\n")
    assert "nobody here has these labels" in both(1, "--src", "role=sith,x=y", "--ingress")
    assert "DEPENDS on what is said" in both(0, "--src", "role=jedi")
    assert "1 rules do not match" in both(1, "--src", "2", "--matched")
    assert "Ingress" not in both(0, "--src", "10.0.0.2", "--egress")
    as_json = json.loads(both(0, "--src", "role=jedi", "--l7", "cmd=READ", "--json"))
    assert as_json["agrees"] is True
    assert as_json["directions"][1]["steps"][0]["matched"] is True


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dport", "http"),
        ("--dport", "0"),
        ("--dport", "80/ICMP"),
        ("--dport", "4040", "--l7", "READ"),
        ("--dport", "4040", "--http", "GET"),
        ("--dport", "4040", "--l7", "cmd=READ", "--http", "GET /"),
        ("--dport", "4040", "--header", "a: b"),
        ("--dport", "4040", "--endpoints", "x"),
        ("--dport", "4040", "--l7", "colour=red"),
        ("--dport", "4040", "--parser", "http", "--l7", "path=/"),
        ("--dport", "4040", "--src", "a b"),
    ],
)
def test_trace_questions_that_make_no_sense(agent: Agent, arguments: tuple[str, ...]) -> None:
    agent.put_policy(r2d2())
    agent.add_endpoint("10.0.0.1", "app=r2d2")
    agent.add_endpoint("10.0.0.2", "role=jedi")
    result = agent.cli("policy", "trace", "--src", "role=jedi", "--dst", "app=r2d2", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr


def test_metrics_list(agent: Agent) -> None:
    agent.put_policy(r2d2())
    listed = agent.cli("metrics", "list", "--match", "policies").stdout.splitlines()
    assert [line.split() for line in listed] == [
        ["Metric", "Labels", "Value"],
        ["proxylib_policies", "1.000000"],
    ]
    found = json.loads(agent.cli("metrics", "list", "--match", "api_requests", "--json").stdout)
    labels = {"method": "PUT", "status": "200"}
    assert {"name": "proxylib_api_requests_total", "labels": labels, "value": 1.0} in found


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "say where it is"),
        (("--address", "10.0.0.1", "--label", "k8s:a=\x1b[31m"), "control character"),
        (("--address", "10.0.0.1", "--label", "a b"), "has a space"),
        (("--address", "10.0.0.1", "--label", "k8s:a=\udcff"), ""),
        (("--address", "10.0.0.1", "--label", ""), "labels"),
        (("--address", "10.0.0.1", "--k8s-pod-name", "\x1b]0;x\x07"), "k8s-pod-name '\\x1b]0;"),
        (("--address", "\x1b[2J"), "\\x1b[2J"),
        (("--address", "10.0.0.1", "--pid", "0"), "--pid"),
    ],
)
def test_odd_endpoints_are_refused(agent: Agent, arguments: tuple[str, ...], why: str) -> None:
    result = agent.cli("endpoint", "add", *arguments)
    assert result.exit_code == 2, result.output
    assert why in result.stderr
    assert all(line.isprintable() for line in result.stderr.splitlines())
    assert agent.get("/endpoint") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("words", [("status",), ("monitor",), ("bpf", "ipcache", "list")])
def test_who_has_no_right_hears_that(agent: Agent, words: tuple[str, ...]) -> None:
    folder = agent.config.run_dir.parent
    folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, *words],
        cwd=ROOT,
        env={**os.environ, "PROXYLIB_SOCKET": str(agent.config.api_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert "Usage" not in done.stderr
    assert "Traceback" not in done.stderr
    if words[0] != "bpf":
        assert "only its owner and its group may speak to the agent" in done.stderr


_AS_NOBODY = """
import os, sys
import node.agent.config, node.client, node.cli, node.monitor.pinned, node.tables
import node.commands.bpf, node.commands.monitor, node.commands.status
os.setgid(65534); os.setuid(65534)
sys.argv[0] = "proxylib"
node.cli.main()
"""
"""The checkout may be out of the user's reach: what is needed is loaded before."""
