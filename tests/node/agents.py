"""Agents for tests: in this process, or as a process of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from click.testing import CliRunner, Result

from node.agent.config import AgentConfig, load_config
from node.agent.daemon import run
from node.agent.node import Node
from node.cli import cli

R2D2 = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: {name}}}
spec:
  endpointSelector: {{matchLabels: {{app: {app}}}}}
  labels: [{{key: team, value: {team}}}]
  ingress:
  - fromEndpoints: [{{matchLabels: {{role: {role}}}}}]
    toPorts:
    - ports: [{{port: "4040", protocol: TCP}}]
      rules: {{l7proto: r2d2, l7: [{{cmd: {cmd}}}]}}
"""


def r2d2(
    name: str = "droids",
    *,
    app: str = "r2d2",
    role: str = "jedi",
    cmd: str = "READ",
    team: str = "a",
) -> str:
    """A policy document: `role` may say `cmd` to `app`."""
    return R2D2.format(name=name, app=app, role=role, cmd=cmd, team=team)


@dataclass(frozen=True)
class Agent:
    """A running agent: its API by HTTP, and by the command line."""

    config: AgentConfig
    http: httpx.Client
    node: Node | None = None

    def get(self, path: str, **params: Any) -> Any:
        response = self.http.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    def put_policy(self, text: str, **params: Any) -> httpx.Response:
        return self.http.put(
            "/policy", content=text, params=params, headers={"Content-Type": "application/yaml"}
        )

    def add_endpoint(self, address: str, *labels: str, **more: Any) -> httpx.Response:
        body = {"addresses": [address], "labels": list(labels), **more}
        return self.http.post("/endpoint", json=body)

    def cli(self, *arguments: object, stdin: str | None = None) -> Result:
        environment = {"PROXYLIB_SOCKET": str(self.config.api_path)}
        texts = [str(argument) for argument in arguments]
        return CliRunner().invoke(cli, texts, env=environment, input=stdin)


def settings(folder: Path, **more: Any) -> AgentConfig:
    """A configuration with everything in `folder`."""
    flags = {
        "state_dir": folder / "state",
        "run_dir": folder / "run",
        "node_name": "node-1",
        "node_ip": "127.0.0.1",
        # In the machine's own namespace: nothing that a test says may change that.
        "datapath": "none",
        **more,
    }
    return load_config(flags, environment={})


@contextlib.contextmanager
def running(folder: Path, **more: Any) -> Iterator[Agent]:
    """An agent in this process, with everything in `folder`."""
    config = settings(folder, **more)
    with run(config) as node, http_client(config.api_path) as http:
        yield Agent(config, http, node)


@contextlib.contextmanager
def http_client(path: Path) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://agent/v1", timeout=30) as client:
        yield client
