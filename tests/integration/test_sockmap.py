"""Acceleration under a whole node: a real memcached, its policy, an agent that comes and goes."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from demos.memcached import memcached
from demos.namespaces import Lab
from demos.node.agent import NodeAgent
from node.address import Address
from tests.conftest import MakeLab

PORT = 11211
PUBLIC = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: memcached}
spec:
  endpointSelector: {matchLabels: {app: memcached}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: "11211", protocol: TCP}]
      rules:
        l7proto: memcache
        l7:
        - {command: get, keyRegex: ^public}
        - {command: set, keyRegex: ^public}
"""
NOBODY = PUBLIC.replace("app: client", "app: nobody")
LARGE = os.urandom(200_000).hex().encode()

pytestmark = pytest.mark.timeout(240)


class Client:
    """A program that is driven by events: its socket never blocks."""

    def __init__(self, lab: Lab) -> None:
        with lab["client"].entered():
            self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex((lab["memcached"].ipv4, PORT))
        self._ready(write=True)

    def _ready(self, write: bool = False, timeout: float = 10) -> bool:
        watched = [self.socket]
        return select.select([] if write else watched, watched if write else [], [], timeout) != (
            [],
            [],
            [],
        )

    def ask(self, request: bytes, end: bytes, timeout: float = 10) -> bytes:
        """The answer, which ends in `end`; empty if none comes."""
        while request:
            assert self._ready(write=True)
            request = request[self.socket.send(request) :]
        answer = b""
        while not answer.endswith(end):
            if not self._ready(timeout=timeout):
                return answer
            answer += self.socket.recv(1 << 18)
        return answer

    def store(self) -> None:
        line = b"set public 0 0 %d\r\n" % len(LARGE)
        assert self.ask(line + LARGE + b"\r\n", b"\r\n") == b"STORED\r\n"

    def fetch(self, timeout: float = 10) -> bool:
        """True if the value comes, as it was stored."""
        line = b"VALUE public 0 %d\r\n" % len(LARGE)
        return self.ask(b"get public\r\n", b"END\r\n", timeout) == line + LARGE + b"\r\nEND\r\n"


@contextmanager
def node(lab: Lab, *options: str) -> Iterator[NodeAgent]:
    """memcached, which was there first, and the agent. options: of both endpoints."""
    address = Address(lab["memcached"].ipv4, PORT)
    with lab["memcached"].entered(), memcached(address), NodeAgent(lab) as agent:
        for endpoint in lab:
            agent.add(endpoint, f"k8s:app={endpoint.name}", options=["--sockmap", *options])
        agent.proxylib("policy", "import", "--wait", "-", stdin=PUBLIC)
        yield agent


def counted(agent: NodeAgent, way: str = "past") -> float:
    """Messages, by the way that they went."""
    text = agent.proxylib("metrics", "list", "--match", "sockmap", "--json")
    (found,) = (item["value"] for item in json.loads(text) if item["labels"] == {"way": way})
    return float(found)


def test_sidecars(make_lab: MakeLab) -> None:
    lab = make_lab("client", "memcached")
    with node(lab, "--sidecar") as agent:
        client = Client(lab)
        client.store()
        before = counted(agent)
        for _ in range(20):
            assert client.fetch()
            assert client.ask(b"get secret\r\n", b"\r\n").startswith(b"CLIENT_ERROR")
        assert counted(agent) - before > 60
        client.socket.close()


def test_policy_judges_what_goes_past_tcp(make_lab: MakeLab) -> None:
    lab = make_lab("client", "memcached")
    with node(lab) as agent:
        client = Client(lab)
        client.store()
        before = counted(agent)
        for _ in range(20):
            assert client.fetch()
            assert client.ask(b"get secret\r\n", b"\r\n").startswith(b"CLIENT_ERROR")
        assert counted(agent) - before > 60, "both legs, both ways"
        (line,) = (x for x in agent.proxylib("status").splitlines() if x.startswith("Sockmap"))
        assert "2 endpoints take part" in line

        agent.kill()
        assert client.fetch(), "nobody needs the agent"
        agent.start()
        before = counted(agent)
        assert all(client.fetch() for _ in range(10))
        assert counted(agent) - before > 10, "the next one takes over what is there"

        agent.proxylib("policy", "import", "--wait", "-", stdin=NOBODY)
        assert not client.fetch(timeout=1), "a connection that policy has cut"
        client.socket.close()

        agent.proxylib("policy", "import", "--wait", "-", stdin=PUBLIC)
        client = Client(lab)
        assert client.fetch()
        agent.stop()
        agent.cleanup()
        assert agent.left() == []
        client.socket.close()
