"""Status, metrics, lists and the monitor of a whole node: real links, programs, Envoy."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from demos.namespaces import Lab
from demos.node.agent import PROXYLIB, ROOT, NodeAgent
from demos.servers.nginx import nginx
from node.address import Address
from node.monitor.lines import line
from tests.native.services import wait_for

L7 = ROOT / "demos" / "node" / "nginx-ingress-l7.yaml"

CIDRS = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: cidrs}}
spec:
  endpointSelector: {{matchLabels: {{app: alpine}}}}
  egress:
  - toCIDR: [{cidrs}]
  - toEndpoints: [{{}}]
"""

WORLD = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: world}
spec:
  endpointSelector: {matchLabels: {app: nginx}}
  ingress:
  - fromEntities: [world]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: GET, path: /welcome}]}
"""

pytestmark = pytest.mark.timeout(240)


@contextmanager
def node(*flags: object, options: Sequence[str] = (), outside: bool = False) -> Iterator[NodeAgent]:
    """nginx (endpoint 1) and alpine (endpoint 2), and the agent that has them.

    flags: the agent's; options: of both endpoints; outside: there is a host behind the node.
    """
    with ExitStack() as servers:
        lab = servers.enter_context(Lab("nginx", "alpine", outside=outside))
        agent = servers.enter_context(NodeAgent(lab, *flags))
        with lab["nginx"].entered():
            folder = lab.folder / "nginx"
            folder.mkdir(mode=0o755)
            files = {"index.html": b"hello\n", "welcome": b"welcome\n"}
            servers.enter_context(nginx(Address(lab["nginx"].ipv4, 80), folder, files))
        for endpoint in lab:
            agent.add(endpoint, f"k8s:app={endpoint.name}", options=options)
        yield agent


def code(agent: NodeAgent, path: str = "/welcome", port: int = 80) -> str:
    lab = agent.lab
    return lab["alpine"].http_code(f"http://{lab['nginx'].ipv4}:{port}{path}", timeout=1)


def status(agent: NodeAgent, expected: int = 0) -> dict[str, str]:
    """The lines of ``proxylib status -v`` by their names, details with them."""
    found: dict[str, str] = {}
    name = ""
    for text in agent.proxylib("status", "-v", status=expected).splitlines():
        begins = re.match(r"(\S[^:]*): +(.*)", text)
        name = begins[1] if begins else name
        found[name] = found.get(name, "") + (begins[2] if begins else "\n" + text.strip())
    return found


def parts(agent: NodeAgent) -> dict[str, str]:
    """The state of each part."""
    text = agent.lab.node.run(
        *("env", f"PROXYLIB_SOCKET={agent.socket}", *PROXYLIB, "status", "--json"), cwd=ROOT
    ).stdout
    return {part["name"]: part["state"] for part in json.loads(text)["components"]}


def metrics(agent: NodeAgent, match: str) -> dict[tuple[str, ...], float]:
    """The values of metrics, by name and the values of their labels."""
    text = agent.proxylib("metrics", "list", "--match", match, "--json")
    return {
        (item["name"].removeprefix("proxylib_"), *(v for _, v in sorted(item["labels"].items()))): (
            item["value"]
        )
        for item in json.loads(text)
    }


def test_status_and_metrics_follow_what_happens() -> None:
    with node() as agent:
        found = status(agent)
        assert found["Datapath"].startswith("Ok   veth, 2 of 2 endpoints attached\nmaps in ")
        assert found["Envoy"].startswith("Ok   none runs")
        assert re.match(r"Ok   ([0-9]+) of \1\nok: rights", found["Start-up checks"])
        assert re.match(r"Ok   fullest: \w+ 0\.0[0-9]%\naddresses 0.00%", found["BPF maps"])
        assert "256x4096 of shared memory" in found["NodeMonitor"]
        assert not metrics(agent, "envoy")

        agent.proxylib("policy", "import", "--wait", L7)
        assert code(agent) == "200"
        assert code(agent, port=81) == "000"
        found = status(agent)
        (envoy,) = agent.envoys()
        assert re.match(rf"Ok   running, pid {envoy}, 1\.4\d, generation 0, up ", found["Envoy"])
        assert found["Proxy Status"] == ("OK, ip 10.1.0.1, 1 redirects active on ports 10000-20000")
        packets = metrics(agent, "datapath_packets")
        name = "datapath_packets_total"
        assert packets[name, "ingress", "1", "Policy denied"] >= 1
        assert packets[name, "egress", "2", "Forwarded to the proxy"] >= 3
        octets = metrics(agent, "datapath_bytes")
        assert octets.keys() == {("datapath_bytes_total", *key[1:]) for key in packets}
        assert metrics(agent, "bpf_map_pressure")["bpf_map_pressure", "conntrack"] > 0
        assert metrics(agent, "envoy_up") == {("envoy_up", "0"): 1}

        os.kill(envoy, signal.SIGKILL)
        wait_for(lambda: agent.envoys() not in ([], [envoy]), "another Envoy", 30)
        wait_for(lambda: parts(agent)["Envoy"] == "Ok", "it to serve", 30)
        assert "1 restarts" in status(agent)["Envoy"]
        assert metrics(agent, "envoy_restarts") == {("envoy_restarts_total", "0"): 1}


def test_an_envoy_that_cannot_be_had_is_a_failure() -> None:
    with node("--envoy", "/bin/false") as agent:
        assert parts(agent)["Envoy"] == "Ok"
        agent.proxylib("policy", "import", L7)
        wait_for(lambda: parts(agent)["Envoy"] == "Failure", "the failure", 30)
        assert status(agent, 1)["Envoy"].startswith("Failure   ")


def test_what_goes_past_the_stack_is_counted() -> None:
    with node(options=["--sockmap"]) as agent:
        before = metrics(agent, "sockmap")
        assert before["sockmap_messages_total", "past"] == 0
        for _ in range(3):
            assert code(agent) == "200"
        after = metrics(agent, "sockmap")
        # The first messages of a connection go by the wire; all are counted, under some way.
        assert sum(after.values()) > sum(before.values())
        assert after.keys() == before.keys()
        assert status(agent)["Sockmap"].startswith("Ok   2 endpoints take part, self-test: ")


def test_whoever_is_not_of_this_node_is_zero() -> None:
    """As the client of the source document is, that is on another node."""
    with node(outside=True) as agent, agent.monitor("l7") as said, agent.monitor("drop") as dropped:
        agent.proxylib("policy", "import", "--wait", "-", stdin=WORLD)
        outside, nginx_ = agent.lab.outside, agent.lab["nginx"]
        assert outside is not None
        assert outside.http_code(f"http://{nginx_.ipv4}/") == "403"
        assert outside.http_code(f"http://[{nginx_.ipv6}]:81/") == "000"
        request = said.next(lambda entry: True)
        assert request is not None
        assert line(request, 1) == (
            "<- Request http from 0 ([reserved:world]) to 1 ([k8s:app=nginx]), identity 2->256, "
            f"verdict Denied GET http://{nginx_.ipv4}/ => 403"
        )
        drop = dropped.next(lambda entry: ":81" in entry["summary"])
        assert drop is not None
        assert re.fullmatch(
            r"xx drop \(Policy denied\) flow 0x[0-9a-f]+ to endpoint 1, identity 2->256, "
            r"from 0 \(\[reserved:world\]\) to 1 \(\[k8s:app=nginx\]\): "
            rf"\[{outside.ipv6}\]:[0-9]+ -> \[{nginx_.ipv6}\]:81 tcp SYN",
            line(drop, 1),
        )


def test_every_packet_is_told_and_counted_if_asked_for() -> None:
    with node("--monitor-aggregation", "none", "--bpf-conntrack-accounting", "true") as agent:
        with agent.monitor("trace") as monitor:
            assert code(agent) == "200"
            ended = monitor.next(lambda entry: entry["state"] == "closed")
            assert ended is not None
        (row,) = json.loads(agent.proxylib("bpf", "ct", "list", 2, "--json"))
        told = [entry for entry in monitor.entries if entry.get("endpoint") == 2]
        assert {"new", "established", "reply"} <= {entry["state"] for entry in told}
        assert len(told) <= row["rx_packets"] + row["tx_packets"]
        assert row["tx_bytes"] > 100
        assert f"TxPackets={row['tx_packets']} " in agent.proxylib("bpf", "ct", "list", 2)


def test_a_full_map_is_told() -> None:
    cidrs = ", ".join(f"198.{n >> 8}.{n & 255}.0/24" for n in range(1100))
    with node("--bpf-ipcache-max", "1024") as agent:
        agent.proxylib("policy", "import", "-", stdin=CIDRS.format(cidrs=cidrs))
        wait_for(lambda: parts(agent)["BPF maps"] == "Warning", "the warning", 30)
        assert re.match(
            r"Warning   fullest: ipcache \d+\.\d\d%, ipcache was full", (status(agent)["BPF maps"])
        )
        assert metrics(agent, "bpf_map_full")["bpf_map_full_total", "ipcache"] >= 1


def test_without_the_agent_the_maps_are_still_read() -> None:
    with node() as agent:
        agent.proxylib("policy", "import", "--wait", L7)
        assert code(agent) == "200"
        with agent.monitor("drop") as monitor:
            agent.kill()
            gone = monitor.next(lambda entry: entry["type"] == "end")
            assert gone is not None
            assert "the agent has gone" in gone["reason"]
            root = ("--bpf-root", agent.bpf_root)
            rows = agent.proxylib("bpf", "policy", "list", 1, *root).splitlines()
            assert rows[1].split() == ["1", "redirect", "ingress", "257", "80/TCP", "10000"]
            listed = json.loads(agent.proxylib("bpf", "proxy", "list", "--json", *root))
            assert {row["destination"]["address"] for row in listed} == {agent.lab["nginx"].ipv4}
            assert code(agent) == "200"
            again = json.loads(agent.proxylib("bpf", "proxy", "list", "--json", *root))
            assert len(again) == len(listed) + 1
            assert code(agent, port=81) == "000"

            # The next agent is watched too; of what was dropped in between it says nothing.
            agent.start()
            wait_for(lambda: monitor.entries[-1] is gone, "the monitor")
            wait_for(lambda: "1 of 16 watch" in status(agent)["NodeMonitor"], "the monitor", 30)
            assert code(agent, port=82) == "000"
            drop = monitor.next(lambda entry: entry["type"] == "drop")
            assert drop is not None
            assert drop["destination"]["address"] == f"{agent.lab['nginx'].ipv4}:82"
            assert drop["source"]["labels"] == ["k8s:app=alpine"]
        # Where the maps are is known by the agent.
        assert "k8s:app=alpine" in agent.proxylib("bpf", "policy", "list", 1)


def test_a_flood_of_drops_is_bounded_for_everybody() -> None:
    """Somebody watches, and does not read; somebody else does, and is told what was lost."""
    packets = 10_000
    flood = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"for n in range({packets}): s.sendto(b'x', ('{{}}', 1000 + n % 5000))"
    )
    with node() as agent:
        agent.proxylib("policy", "import", "--wait", L7)
        with agent.monitor("drop") as monitor:
            sleeper = agent.lab.node.popen(
                *("env", f"PROXYLIB_SOCKET={agent.socket}", *PROXYLIB, "monitor", "--type", "drop"),
                cwd=ROOT,
                stdout=subprocess.PIPE,
            )
            wait_for(lambda: "2 of 16 watch" in status(agent)["NodeMonitor"], "both", 30)
            sleeper.send_signal(signal.SIGSTOP)
            agent.lab["alpine"].run("python3", "-c", flood.format(agent.lab["nginx"].ipv4))

            def told() -> int:
                return sum(
                    1 if entry["type"] == "drop" else entry.get("count", 0)
                    for entry in list(monitor.entries)
                )

            wait_for(lambda: told() >= packets, "every packet to be told of", 60)
            # The agent answers all the while, and nothing else is lost.
            assert parts(agent)["Datapath"] == "Ok"
            assert code(agent) == "200"
            denied = metrics(agent, "datapath_packets")
            assert denied["datapath_packets_total", "ingress", "1", "Policy denied"] == packets
            assert told() == packets
            sleeper.kill()
            sleeper.communicate()
