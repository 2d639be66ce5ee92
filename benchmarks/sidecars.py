"""One Envoy for the node against one for each endpoint: memory and latency, ten servers.

Two nodes, each with an agent and the same policy; what differs is how endpoints are added.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.node import REPLY, SERVERS, Sample, run, serve, take_turns
from benchmarks.tools import START_TIMEOUT, compile_tool
from demos.namespaces import Lab
from demos.node.agent import NodeAgent

SERVING = 10
MODES: dict[str, tuple[str, ...]] = {"one for the node": (), "sidecars": ("--sidecar",)}
PORT = SERVERS["redirected"]
POLICY = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumNetworkPolicy",
    "metadata": {"name": "judged"},
    "spec": {
        "endpointSelector": {"matchLabels": {"app": "server"}},
        "ingress": [
            {
                "toPorts": [
                    {
                        "ports": [{"port": str(PORT), "protocol": "TCP"}],
                        "rules": {"l7proto": "test.passer", "l7": [{}]},
                    }
                ]
            }
        ],
    },
}


@dataclass(frozen=True)
class Row:
    """One mode. envoys: processes; memory_mib: theirs together, shared pages counted once."""

    mode: str
    endpoints: int
    envoys: int
    memory_mib: float
    p50_us: float
    p99_us: float
    cpu_us: float


def measure(folder: Path, rounds: int, scale: float, serving: int = SERVING) -> list[Row]:
    """Both modes, with so many servers. Needs root."""
    tool = compile_tool("load", folder)
    with ExitStack() as stack:
        nodes: dict[str, tuple[Lab, NodeAgent, list[int]]] = {}
        for mode, options in MODES.items():
            servers = [f"server-{number}" for number in range(serving)]
            lab = stack.enter_context(Lab("client", *servers))
            agent = stack.enter_context(NodeAgent(lab))
            agent.add(lab["client"], "k8s:app=client")
            for name in servers:
                agent.add(lab[name], "k8s:app=server", options=options)
                serve(tool, folder, lab[name], PORT)
            agent.proxylib("policy", "import", "--wait", "-", stdin=json.dumps(POLICY))
            nodes[mode] = lab, agent, envoys(agent, serving if options else 1)

        def turn(mode: str) -> Sample:
            lab, _, pids = nodes[mode]
            client, server = lab["client"], lab["server-0"]
            numbers = (1, 1, int(scale * 20_000), len(REPLY))
            return run(tool, client, pids, "client", server.ipv4, PORT, numbers)

        samples = take_turns([*MODES], turn, rounds)
        return [
            Row(
                mode,
                serving,
                len(nodes[mode][2]),
                sum(map(pss_kib, nodes[mode][2])) / 1024,
                *(_median(found, what) for what in ("p50_us", "p99_us", "cpu_us")),
            )
            for mode, found in samples.items()
        ]


def envoys(agent: NodeAgent, count: int) -> list[int]:
    """The Envoys of a node, once there are as many. Raises RuntimeError if there never are."""
    deadline = time.monotonic() + START_TIMEOUT
    while len(found := agent.envoys()) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(found)} Envoys instead of {count}:\n{agent.log[-3000:]}")
        time.sleep(0.1)
    return found


def pss_kib(pid: int) -> int:
    """A process' memory, KiB; pages that several have are shared among them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} is gone")


def _median(samples: Sequence[Sample], what: str) -> float:
    return sorted(float(getattr(sample, what)) for sample in samples)[len(samples) // 2]


def show(rows: Sequence[Row]) -> str:
    """The table."""
    head = f"{'Envoys':20}{'endpoints':>10}{'processes':>10}{'MiB':>9}"
    lines = [f"{head}{'p50 us':>10}{'p99 us':>10}{'Envoy us':>10}"]
    lines += [
        f"{row.mode:20}{row.endpoints:10}{row.envoys:10}{row.memory_mib:9.1f}"
        f"{row.p50_us:10.1f}{row.p99_us:10.1f}{row.cpu_us:10.1f}"
        for row in rows
    ]
    return "\n".join(lines)
