"""A node of its own for a test of the loader: a namespace, and endpoints with routed veths."""

from __future__ import annotations

import socket
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from bpf.datapath import Datapath, DatapathConfig, Link
from bpf.netns import within
from bpf.policies import PolicyEntry

ALLOW_ALL = [PolicyEntry(0, ingress, 0, 0, 0, 1, 1) for ingress in (True, False)]
SMALL = {"conntrack": 1024, "events": 65536}


def run(*command: str) -> str:
    """What a command prints; it must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace of the test's own."""

    name: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def ip(self, *arguments: str) -> str:
        """What `ip -n NAME …` prints."""
        return run("ip", "-n", self.name, *arguments)

    def tc(self, *arguments: str) -> str:
        """What `tc -n NAME …` prints."""
        return run("tc", "-n", self.name, *arguments)

    def ifindex(self, interface: str) -> int:
        """The number of an interface."""
        text = within(self.path, lambda: run("ip", "-o", "link", "show", "dev", interface))
        return int(text.split(":")[0])

    def veth(self, name: str, peer: str) -> int:
        """A new pair with both ends in here, up; the first one's number."""
        self.ip("link", "add", name, "type", "veth", "peer", "name", peer)
        for end in (name, peer):
            self.ip("link", "set", end, "up")
        return self.ifindex(name)


@dataclass(frozen=True, slots=True)
class Node:
    """The node's namespace and what its data path is opened with."""

    namespace: Namespace
    config: DatapathConfig

    def open(self, **changes: object) -> Datapath:
        return Datapath.open(replace(self.config, **changes))  # type: ignore[arg-type]

    def endpoint(self, number: int, inside: Namespace) -> Link:
        """A new endpoint: 10.0.0.NUMBER and fd00::NUMBER, in the namespace `inside`."""
        name, address = f"lxc{number}", f"10.0.0.{number}"
        self.namespace.ip(*f"link add {name} type veth peer name eth0 netns {inside.name}".split())
        self.namespace.ip(*f"link set {name} up".split())
        inside.ip(*["link", "set", "eth0", "up"])
        inside.ip(*f"addr add {address}/32 dev eth0".split())
        inside.ip(*f"addr add fd00::{number}/128 dev eth0 nodad".split())
        inside.ip(*["route", "add", "10.0.0.254", "dev", "eth0"])
        inside.ip(*["route", "add", "default", "via", "10.0.0.254"])
        self.namespace.ip(*f"route add {address} dev {name}".split())
        self.namespace.ip(*f"route add fd00::{number} dev {name}".split())
        index = self.namespace.ifindex(name)
        return Link(number, index, address, f"fd00::{number}", 300 + number)

    def sysctl(self, name: str) -> str:
        path = Path("/proc/sys/net") / name
        return within(self.namespace.path, path.read_text).strip()

    def set_sysctl(self, name: str, value: str) -> None:
        path = Path("/proc/sys/net") / name
        within(self.namespace.path, lambda: path.write_text(value))

    def reaches(self, address: str) -> bool:
        """True if the address answers the node, be it by refusing a connection."""

        def connect() -> bool:
            try:
                socket.create_connection((address, 9), timeout=0.3).close()
            except ConnectionRefusedError:
                return True
            except TimeoutError:
                return False
            raise AssertionError(f"somebody listens at {address}")

        return within(self.namespace.path, connect)
