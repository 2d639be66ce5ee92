"""Containers that a runtime starts: judged by Envoy, by policies that were there before them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from demos.namespaces import Lab, Namespace
from demos.node.agent import NodeAgent
from tests.conftest import MakeLab
from tests.node.agent.nodes import LINES, ask, eventually, ingress, programs
from tests.node.cni.runtime import Runtime

EXAMPLE = Path(__file__).parents[2] / "envoy_configs/10-proxylib.conflist"


@contextmanager
def container(runtime: Runtime, name: str, *labels: str) -> Iterator[Namespace]:
    """A container with two addresses, from its start to its end."""
    netns = f"{runtime.node.netns}-{name}"
    subprocess.run(["ip", "netns", "add", netns], check=True)
    made = Namespace(name, netns, "", "")
    try:
        result = runtime.add(name, made.path, labels=list(labels))
        ipv4, ipv6 = (ip["address"].partition("/")[0] for ip in result["ips"])
        made = Namespace(name, netns, ipv4, ipv6)
        yield made
        runtime.delete(name, made.path)
    finally:
        made.end()
        subprocess.run(["ip", "netns", "del", netns], check=True)


def runtime_of(lab: Lab, agent: NodeAgent, **ours: Any) -> Runtime:
    network = json.loads(EXAMPLE.read_text())
    network["plugins"][0]["ipam"]["dataDir"] = str(lab.folder / "ipam")
    network["plugins"][1] |= {"socket": str(agent.socket), **ours}
    return Runtime(lab.node, network)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("sidecar", [False, True], ids=["node", "sidecar"])
def test_containers_are_judged_from_their_start(make_lab: MakeLab, sidecar: bool) -> None:
    lab = make_lab()
    with ExitStack() as stack:
        agent = stack.enter_context(NodeAgent(lab, "--bpf-cache", programs().name))
        agent.proxylib("policy", "import", "-", stdin=ingress("READ"))
        runtime = runtime_of(lab, agent, sidecar=sidecar)
        server = stack.enter_context(container(runtime, "server", "app=server"))
        client = stack.enter_context(container(runtime, "client", "app=client"))
        other = stack.enter_context(container(runtime, "other", "app=other"))
        server.popen(sys.executable, "-c", LINES)
        runtime.check("server", server.path)
        for address, name in ((server.ipv4, f"::ffff:{client.ipv4}"), (server.ipv6, client.ipv6)):
            eventually(lambda: ask(client, address, b"READ x") == f"{name} READ x".encode())  # noqa: B023
            assert ask(client, address, b"HALT") == b"ERROR"
            assert ask(other, address, b"READ x", timeout=0.5) == b""
