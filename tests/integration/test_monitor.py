"""A stock Envoy, a real HTTP server, and the monitor's lines as the source document has them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from benchmarks.tools import free_port
from node import bootstrap
from node.address import Address
from node.envoy import EnvoyProcess, find_envoy
from tests.integration.http_servers import application
from tests.native.services import wait_for
from tests.node.agents import Agent, running
from tests.node.conftest import ROOT

SERVER, ALPINE = "127.33.0.1", "127.33.0.2"

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: rule1}}
spec:
  endpointSelector: {{matchLabels: {{app: nginx}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: alpine}}}}]
    toPorts:
    - ports: [{{port: "{port}", protocol: TCP}}]
      rules: {{http: [{{method: GET, path: /public}}]}}
"""

COMMON = (
    "k8s:io.cilium.k8s.policy.cluster=default",
    "k8s:io.cilium.k8s.policy.serviceaccount=default",
    "k8s:io.kubernetes.pod.namespace=default",
)

ENDS = (
    r"{} 2 \(\[k8s:app=alpine( k8s:[a-z0-9.]+=default){{3}}\]\) "
    r"{} 1 \(\[k8s:app=nginx( k8s:[a-z0-9.]+=default){{3}}\]\), identity {}->{}, verdict "
)
URL = "http://nginx/public"


@contextmanager
def envoy(agent: Agent, folder: Path, upstream: Address) -> Iterator[Address]:
    """An Envoy whose parser is http."""
    filter_config = bootstrap.FilterConfig(
        parser="http",
        xds_path=agent.config.xds_path,
        access_log_path=agent.config.access_log_path,
        node_id="envoy-1",
        destination=str(upstream),
    )
    document, admin = folder / "envoy.json", folder / "admin.sock"
    built = bootstrap.build(
        bootstrap.BootstrapConfig(filter_config, Address("127.0.0.1", 0), upstream, admin)
    )
    document.write_text(bootstrap.to_json(built))
    with EnvoyProcess(find_envoy(None), document, admin) as process:
        process.wait_ready()
        yield process.listeners()[bootstrap.LISTENER]


def ask(proxy: Address, method: str) -> int:
    connection = HTTPConnection(proxy.host, proxy.port, timeout=10, source_address=(ALPINE, 0))
    connection.request(method, "/public", headers={"Host": "nginx"})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.timeout(200)
def test_lines_are_as_in_the_source_document(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("m")
    server = Address(SERVER, free_port(SERVER))
    with application(server), running(folder) as agent, envoy(agent, folder, server) as proxy:
        assert agent.node is not None
        hub = agent.node.monitor.hub
        agent.add_endpoint(SERVER, "k8s:app=nginx", *COMMON)
        agent.add_endpoint(ALPINE, "k8s:app=alpine", *COMMON)
        policy = POLICY.format(port=server.port)
        imported = agent.cli("policy", "import", "-", "--wait", stdin=policy)
        assert imported.exit_code == 0, imported.output
        arguments = ["monitor", "-v", "--type", "l7", "--count", "3"]
        with subprocess.Popen(
            [sys.executable, "-m", "node", *arguments, "--socket", str(agent.config.api_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as monitor:
            wait_for(lambda: hub.subscribers == 1, "the monitor", 60)
            assert ask(proxy, "HEAD") == 403
            assert ask(proxy, "GET") == 200
            output, _ = monitor.communicate(timeout=60)
        source, destination = (agent.get(f"/endpoint/{n}")["identity"]["id"] for n in (2, 1))
    request = "<- Request http " + ENDS.format("from", "to", source, destination)
    response = "<- Response http " + ENDS.format("to", "from", source, destination)
    patterns = (
        f"{request}Denied HEAD {URL} => 403",
        f"{request}Forwarded GET {URL} => 0",
        f"{response}Forwarded GET {URL} => 200",
    )
    for line, pattern in zip(output.splitlines(), patterns, strict=True):
        assert re.fullmatch(pattern, line), line
        assert all(label in line for label in COMMON)
