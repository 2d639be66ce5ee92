"""docs/endpoints.md, followed in a node of its own; its CNI configuration in a runtime's hands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from demos.namespaces import Lab
from demos.node.agent import NodeAgent
from node.cni.protocol import VERSIONS
from tests.conftest import MakeLab
from tests.docs.pages import DOCS, Reader
from tests.node.agent.nodes import programs
from tests.node.cni.runtime import Runtime

PAGE = DOCS / "endpoints.md"
EXAMPLE = DOCS.parent / "envoy_configs/10-proxylib.conflist"


def test_the_page(make_lab: MakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = make_lab()
    name = f"{lab.node.netns}-blue"
    for folder in ("opt/cni/bin", "etc/cni/net.d", "etc/systemd/system"):
        (tmp_path / folder).mkdir(parents=True)
    places = {
        f" /{place}/": f" {tmp_path}/{place}/" for place in ("opt/cni/bin", "etc/systemd/system")
    }
    names = {
        "add blue": f"add {name}",
        "del blue": f"del {name}",
        "netns blue": f"netns {name}",
        "-n blue": f"-n {name}",
        "=/etc/cni": f"={tmp_path}/etc/cni",
    }
    reader = Reader(tmp_path, Path(sys.prefix), {**names, **places})
    with NodeAgent(lab, "--envoy", "none", "--bpf-cache", programs().name) as agent:
        monkeypatch.setenv("PROXYLIB_SOCKET", str(agent.socket))
        monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
        try:
            with lab.node.entered():
                reader.follow(PAGE)
            network = json.loads((tmp_path / "etc/cni/net.d/10-proxylib.conflist").read_text())
            assert network == json.loads(EXAMPLE.read_text())
            a_container_comes_and_goes(lab, agent, network, tmp_path)
        finally:
            for path in Path("/run/netns").glob(f"{lab.node.netns}-*"):
                subprocess.run(["ip", "netns", "del", path.name], check=True)
    assert (tmp_path / "etc/systemd/system/proxylib.service").read_text().startswith("# The agent")
    assert reader.seen.count("sh") == 6


def a_container_comes_and_goes(
    lab: Lab, agent: NodeAgent, network: dict[str, Any], folder: Path
) -> None:
    ptp, ours = network["plugins"]
    ptp["ipam"]["dataDir"], ours["socket"] = str(folder / "ipam"), str(agent.socket)
    runtime = Runtime(lab.node, network)
    netns = Path("/run/netns", f"{lab.node.netns}-red")
    subprocess.run(["ip", "netns", "add", netns.name], check=True)
    runtime.add("red", netns, labels=["k8s:app=red"])
    listed = agent.proxylib("endpoint", "list", "--label", "k8s:app=red")
    assert "ready" in listed
    runtime.check("red", netns)
    runtime.delete("red", netns)


def test_versions_are_told() -> None:
    assert f"{VERSIONS[0]} to {VERSIONS[-1]}" in PAGE.read_text()
