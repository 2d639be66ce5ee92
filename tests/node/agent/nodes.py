"""Agents in the node of a lab, and connections between its endpoints."""

from __future__ import annotations

import contextlib
import functools
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from demos.namespaces import Endpoint, Lab, Namespace
from tests.node.agents import Agent, running

PORT = 4040

LINES = """
import socketserver
class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"%s %s" % (self.client_address[0].encode(), line))
            self.wfile.flush()
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address, daemon_threads = 10, True, True
Server(("::", 4040), Lines).serve_forever()
"""
"""A server that answers each line with who said it, and the line."""

POLICY = """
kind: CiliumNetworkPolicy
metadata: {{name: {name}}}
spec:
  endpointSelector: {{matchLabels: {{app: {app}}}}}
  {direction}:
  - {peers}toPorts:
    - ports: [{{port: "4040", protocol: TCP}}]
      {rules}
"""


def ingress(*commands: str, name: str = "in", app: str = "server", peer: str = "client") -> str:
    """`peer` may connect to `app`, and say `commands` (none: everything)."""
    peers = f"fromEndpoints: [{{matchLabels: {{app: {peer}}}}}]\n    "
    return _policy(name, app, "ingress", peers, commands)


def egress(*commands: str, name: str = "out", app: str = "client") -> str:
    """`app` may connect to the port, and say `commands` (none: everything)."""
    return _policy(name, app, "egress", "", commands)


def _policy(name: str, app: str, direction: str, peers: str, commands: tuple[str, ...]) -> str:
    said = ", ".join(f"{{cmd: {command}}}" for command in commands)
    rules = f"rules: {{l7proto: r2d2, l7: [{said}]}}" if commands else ""
    return POLICY.format(name=name, app=app, direction=direction, peers=peers, rules=rules)


def serve(endpoint: Endpoint) -> None:
    """Start the server, and wait until it listens."""
    endpoint.popen(sys.executable, "-c", LINES)
    eventually(lambda: ask(endpoint, "127.0.0.1", b"x").startswith(b"::ffff:127.0.0.1"))


def connect(client: Namespace, address: str, timeout: float = 5) -> socket.socket:
    """A connection to the server. Raises OSError."""
    with client.entered():
        return socket.create_connection((address, PORT), timeout=timeout)


def say(connection: socket.socket, line: bytes) -> bytes:
    """The answer to a line; empty if the connection ends."""
    connection.sendall(line + b"\r\n")
    return connection.recv(1000).rstrip()


def ask(client: Namespace, address: str, line: bytes, timeout: float = 5) -> bytes:
    """The answer to a line on a connection of its own; empty if there is none."""
    try:
        with connect(client, address, timeout) as connection:
            return say(connection, line)
    except OSError:
        return b""


def eventually(check: Callable[[], object], timeout: float = 30) -> None:
    """Wait until `check` gives something true."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.02)


def add(agent: Agent, endpoint: Endpoint, *labels: str, **more: Any) -> int:
    """Make it an endpoint; its number."""
    body = {"netns": endpoint.netns, "labels": list(labels), **more}
    answer = agent.http.post("/endpoint", json=body)
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


def put(agent: Agent, text: str) -> None:
    """Put a policy in force everywhere."""
    answer = agent.put_policy(text)
    assert answer.status_code == 200, answer.text
    revision = answer.json()["revision"]
    waited = agent.get(f"/policy/revisions/{revision}", timeout=30)
    assert waited["reached"], waited


@functools.cache
def programs() -> TemporaryDirectory[str]:
    """Where compiled programs are kept as long as the tests run."""
    return TemporaryDirectory(prefix="proxylib-programs-")


@contextlib.contextmanager
def agent_in(lab: Lab, **more: Any) -> Iterator[Agent]:
    """An agent of this process in the lab's node; its Envoys end with the lab."""
    folder = Path(lab.folder)
    settings = {
        "datapath": "veth",
        "bpf_root": lab.bpffs() / "proxylib",
        "bpf_cache": Path(programs().name),
        **more,
    }
    with lab.node.entered(), running(folder, **settings) as agent:
        yield agent
