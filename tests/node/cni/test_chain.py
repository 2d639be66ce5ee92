"""Behind the reference plugins ptp and host-local, in real namespaces, with a real agent."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import CliRunner, Result

from demos.namespaces import Lab, Namespace
from node.cli import cli
from node.cni.protocol import VALID_ATTACHMENTS
from tests.node.agent.nodes import programs
from tests.node.agents import http_client
from tests.node.cni.runtime import Failed, Runtime

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "envoy_configs/10-proxylib.conflist"


class Rig:
    """A node with an agent, and a runtime."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.network = json.loads(EXAMPLE.read_text())
        ptp, ours = self.network["plugins"]
        ptp["ipam"]["dataDir"] = str(folder / "ipam")
        ours["socket"] = str(folder / "proxylib.sock")
        self.runtime = Runtime(lab.node, self.network)
        self.start()

    def start(self) -> None:
        self.agent = self.lab.node.popen(
            *(sys.executable, "-m", "node", "agent", "--json"),
            *("--state-dir", self.folder / "state", "--run-dir", self.folder),
            *("--bpf-root", self.lab.bpffs() / "proxylib", "--bpf-cache", programs().name),
            *("--envoy", "none", "--bpf-policy-map-max", "256"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert self.agent.stdout is not None
        for line in self.agent.stdout:
            if json.loads(line).get("event") == "ready":
                return
        raise AssertionError("the agent ended")

    def stop(self, *, kill: bool = False) -> None:
        assert self.agent.stdout is not None
        (self.agent.kill if kill else self.agent.terminate)()
        self.agent.wait(30)
        self.agent.stdout.close()

    def container(self, name: str) -> Path:
        """A namespace that is empty, as a runtime makes it."""
        path = Path("/run/netns", f"{self.lab.node.netns}-{name}")
        subprocess.run(["ip", "netns", "add", path.name], check=True)
        return path

    def cli(self, *words: str, stdin: str | None = None) -> Result:
        environment = {"PROXYLIB_SOCKET": str(self.folder / "proxylib.sock")}
        return CliRunner().invoke(cli, words, env=environment, input=stdin)

    def endpoints(self) -> Any:
        with http_client(self.folder / "proxylib.sock") as http:
            return http.get("/endpoint").json()

    def check_ours(self, container: str, netns: Path) -> None:
        """CHECK, without the plugins that would see it first. Raises Failed."""
        alone = Runtime(self.lab.node, {**self.network, "plugins": self.network["plugins"][1:]})
        alone.results = self.runtime.results
        alone.check(container, netns)

    def until(self, left: int) -> list[Any]:
        """The endpoints, when there are no more than that."""
        return self._until(lambda found: len(found) <= left)

    def until_all(self, wanted: Callable[[Any], bool]) -> list[Any]:
        """The endpoints, when each is as wanted."""
        return self._until(lambda found: all(map(wanted, found)))

    def _until(self, wanted: Callable[[list[Any]], bool]) -> list[Any]:
        deadline = time.monotonic() + 30
        while not wanted(found := self.endpoints()):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return list(found)

    def clear(self) -> None:
        """Have the next test begin with nothing, whatever this one left."""
        shutil.rmtree(self.folder / "ipam", ignore_errors=True)
        for path in Path("/run/netns").glob(f"{self.lab.node.netns}-*"):
            subprocess.run(["ip", "netns", "del", path.name], check=True)
        self.until(0)


@pytest.fixture(scope="module")
def node() -> Iterator[Rig]:
    with Lab() as lab, TemporaryDirectory(prefix="cni") as folder:
        made = Rig(lab, Path(folder))
        yield made
        made.stop()


@pytest.fixture
def rig(node: Rig) -> Iterator[Rig]:
    yield node
    node.clear()


def test_a_container_comes_and_goes(rig: Rig) -> None:
    netns = rig.container("a")
    result = rig.runtime.add(
        "a1",
        netns,
        args="IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx-0",
        labels=[{"key": "k8s:app", "value": "nginx"}],
    )
    veth, inside = result["interfaces"]
    addresses = [ip["address"].partition("/")[0] for ip in result["ips"]]
    (endpoint,) = rig.endpoints()
    assert endpoint["state"] == "ready", endpoint
    assert endpoint["attachment"]["interface"] == veth["name"]
    assert endpoint["attachment"]["inner"] == inside["name"] == "eth0"
    assert endpoint["attachment"]["netns"] == inside["sandbox"] == str(netns)
    assert list(endpoint["networking"]["addressing"][0].values()) == addresses
    assert sorted(endpoint["identity"]["labels"]) == [
        "container:network=proxylib",
        "k8s:app=nginx",
        "k8s:io.kubernetes.pod.namespace=default",
    ]
    assert endpoint["external-identifiers"] == {
        "cni-attachment-id": "proxylib:a1:eth0",
        "container-id": "a1",
        "k8s-namespace": "default",
        "k8s-pod-name": "nginx-0",
    }
    rig.runtime.check("a1", netns)
    rig.runtime.delete("a1", netns)
    assert rig.endpoints() == []
    rig.runtime.delete("a1", netns)
    rig.runtime.delete("a1", "")


def test_containers_speak_to_each_other(rig: Rig) -> None:
    """What ptp has made works with our programs on it, over IPv4 and IPv6."""
    a, b = rig.container("a"), rig.container("b")
    rig.runtime.add("a1", a)
    result = rig.runtime.add("b1", b)
    client, server = (Namespace(path.name, path.name, "", "") for path in (a, b))
    for ip in result["ips"]:
        address = ip["address"].partition("/")[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with server.entered():
            listening = socket.create_server((address, 7), family=family)
        with listening, client.entered():
            connection = socket.create_connection((address, 7), timeout=10)
            with connection, listening.accept()[0] as accepted:
                accepted.sendall(b"hello")
                assert connection.recv(10) == b"hello"


def test_add_again_takes_over(rig: Rig) -> None:
    netns = rig.container("a")
    result = rig.runtime.add("a1", netns)
    (before,) = rig.endpoints()
    plugin = {**rig.network["plugins"][1], "labels": ["k8s:app=other"]}
    given = rig.runtime._environment("ADD", "a1", netns, "eth0", "")
    assert rig.runtime._call(plugin, given, {}, result) == result
    (after,) = rig.endpoints()
    assert after["id"] == before["id"]
    assert after["identity"]["labels"] == ["k8s:app=other"]


def test_a_container_with_a_sidecar(rig: Rig) -> None:
    network = deepcopy(rig.network)
    network["plugins"][1] |= {"sidecar": True}
    runtime = Runtime(rig.lab.node, network)
    netns = rig.container("a")
    result = runtime.add("a1", netns)
    (endpoint,) = rig.endpoints()
    assert (endpoint["state"], endpoint["attachment"]["mode"]) == ("ready", "sidecar")
    tc = ("tc", "filter", "show", "dev")
    inside = Namespace("a", netns.name, "", "")
    assert "proxylib" in inside.run(*tc, "eth0", "ingress").stdout
    assert (
        "proxylib" not in rig.lab.node.run(*tc, result["interfaces"][0]["name"], "ingress").stdout
    )
    runtime.check("a1", netns)
    runtime.delete("a1", netns)
    assert rig.endpoints() == []


def test_two_interfaces_of_one_container(rig: Rig) -> None:
    network = deepcopy(rig.network)
    network["name"] = "second"
    network["plugins"][0]["ipam"] |= {"routes": [], "ranges": [[{"subnet": "10.23.0.0/16"}]]}
    second = Runtime(rig.lab.node, network)
    netns = rig.container("a")
    rig.runtime.add("a1", netns)
    second.add("a1", netns, "net1")
    names = [e["external-identifiers"]["cni-attachment-id"] for e in rig.endpoints()]
    assert names == ["proxylib:a1:eth0", "second:a1:net1"]
    assert [e["attachment"]["inner"] for e in rig.endpoints()] == ["eth0", "net1"]
    second.delete("a1", netns, "net1")
    assert len(rig.endpoints()) == 1
    rig.runtime.check("a1", netns)


def test_check_sees_what_is_wrong(rig: Rig) -> None:
    netns = rig.container("a")
    rig.runtime.add("a1", netns)
    (endpoint,) = rig.endpoints()
    inside = Namespace("a", netns.name, "", "")
    ours = endpoint["networking"]["addressing"][0]["ipv4"]
    inside.ip("addr add 10.22.255.9/16 dev eth0", f"addr del {ours}/16 dev eth0")
    rig.until_all(lambda e: e["state"] == "not-ready")
    with pytest.raises(Failed, match=f"eth0 does not have {ours} any more"):
        rig.check_ours("a1", netns)
    with http_client(rig.folder / "proxylib.sock") as http:
        assert http.delete(f"/endpoint/{endpoint['id']}").status_code == 204
    with pytest.raises(Failed, match="there is no endpoint proxylib:a1:eth0") as failed:
        rig.check_ours("a1", netns)
    assert failed.value.error["code"] == 3


def test_garbage_is_collected(rig: Rig) -> None:
    for name in ("a", "b", "c"):
        rig.runtime.add(f"{name}1", rig.container(name))
    valid = [{"containerID": "b1", "ifname": "eth0"}]
    rig.runtime.alone("GC", **{VALID_ATTACHMENTS: valid, "cniVersion": "1.1.0"})
    left = [e["external-identifiers"]["container-id"] for e in rig.endpoints()]
    assert left == ["b1"]
    rig.runtime.alone("GC", **{VALID_ATTACHMENTS: [], "name": "other", "cniVersion": "1.1.0"})
    assert len(rig.endpoints()) == 1
    assert rig.runtime.alone("STATUS", cniVersion="1.1.0") is None


def test_a_bridge_is_refused(rig: Rig) -> None:
    network = deepcopy(rig.network)
    network["plugins"][0] |= {"type": "bridge", "bridge": "br0"}
    runtime = Runtime(rig.lab.node, network)
    with pytest.raises(Failed, match="is a port of the bridge br0") as failed:
        runtime.add("a1", rig.container("a"))
    assert (failed.value.plugin, failed.value.error["code"]) == ("proxylib-cni", 100)
    assert rig.endpoints() == []


def test_labels_that_are_none_are_refused(rig: Rig) -> None:
    with pytest.raises(Failed, match="control character") as failed:
        rig.runtime.add("a1", rig.container("a"), labels=["k8s:app=\x1b[2J"])
    assert failed.value.error["code"] == 100
    assert rig.endpoints() == []


def test_what_cannot_be_judged_does_not_start(rig: Rig) -> None:
    """A policy that is too large is no policy."""
    cidrs = ", ".join(f"192.0.2.{n}/32" for n in range(1, 254))
    policy = f"""
kind: CiliumNetworkPolicy
metadata: {{name: large}}
spec:
  endpointSelector: {{matchLabels: {{app: large}}}}
  ingress:
  - fromCIDR: [{cidrs}]
    toPorts: [{{ports: [{{port: "1", protocol: TCP}}, {{port: "2", protocol: TCP}}]}}]
"""
    netns = rig.container("a")
    assert rig.cli("policy", "import", "-", stdin=policy).exit_code == 0
    with pytest.raises(Failed, match="the endpoint is not-ready") as failed:
        rig.runtime.add("a1", netns, labels=["app=large"])
    assert failed.value.error["code"] == 11
    assert "policy" in failed.value.error["details"]
    assert rig.endpoints() == []
    # A person is told, and may make room.
    added = rig.cli("endpoint", "add", "--netns", netns.name, "--label", "app=large")
    assert added.exit_code == 0
    assert "is not-ready: " in added.stderr
    assert "bpf-policy-map-max" in added.stderr
    assert rig.cli("policy", "delete", "large").exit_code == 0
    assert [e["state"] for e in rig.endpoints()] == ["ready"]
    assert rig.cli("endpoint", "delete", added.stdout.strip()).exit_code == 0


def test_a_container_ends_while_there_is_no_agent(rig: Rig) -> None:
    a, b = rig.container("a"), rig.container("b")
    rig.runtime.add("a1", a)
    first = rig.runtime.add("b1", b)
    rig.stop(kill=True)
    with pytest.raises(Failed) as failed:
        rig.runtime.add("c1", rig.container("c"))
    assert failed.value.error["code"] == 11
    rig.runtime.delete("a1", a)
    rig.start()
    (kept,) = rig.until(1)
    assert kept["external-identifiers"]["container-id"] == "b1"
    assert kept["state"] == "ready"
    assert first == rig.runtime.results["b1", "eth0"]
    rig.runtime.check("b1", b)


def test_a_namespace_that_vanishes(rig: Rig) -> None:
    """No DEL comes: nothing of the container is there, and so no endpoint."""
    netns = rig.container("a")
    rig.runtime.add("a1", netns)
    subprocess.run(["ip", "netns", "del", netns.name], check=True)
    rig.until(0)
    rig.runtime.delete("a1", netns)
