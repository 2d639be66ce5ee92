"""What the trace foretells is what a real Envoy does with real traffic.

One Envoy; random policies, each served by the very engine that is then asked; clients
with addresses of their own send real requests through the proxy.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demos.stage import line_server
from node.address import Address
from node.parsers import choose_parser
from node.run import Proxy, ProxyConfig
from tests.xds.test_trace import specs, text_of
from xds.trace import End, Question, trace
from xds.trace_request import Request

SERVER = "127.20.0.1"
CLIENTS = {"127.20.0.2": "a", "127.20.0.3": "b", "127.20.0.4": ""}
"""Clients by address; the last one has no labels."""
LINES = ("HALT", "READ x", "READ y")
EXAMPLES = 30
PATIENCE = 10


def endpoints(port: int) -> str:
    items: list[dict[str, Any]] = [
        {"address": ip, "labels": {"app": app}} for ip, app in CLIENTS.items() if app
    ]
    items.append({"address": SERVER, "labels": {"app": "c"}, "ports": {"droid": port}})
    return json.dumps({"endpoints": items})


@pytest.mark.timeout(240)
@pytest.mark.parametrize("egress", [False, True], ids=["ingress", "egress"])
def test_the_trace_foretells_envoy(egress: bool, tmp_path: Path) -> None:
    seen: dict[str, int] = {}
    # Nobody redirects the egress of what is no endpoint: this proxy would refuse it.
    who = [client for client, app in CLIENTS.items() if app or not egress]
    with line_server(Address(SERVER, 0), lambda line: line) as upstream:
        config = ProxyConfig(
            choose_parser("r2d2"), Address("127.0.0.1", 0), upstream, egress=egress, watch=False
        )
        with Proxy(config) as proxy:
            control = proxy.policy.control

            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            @given(st.lists(st.tuples(specs(), st.just(False)), min_size=1, max_size=3))
            def check(policies: list[tuple[dict[str, Any], bool]]) -> None:
                text = with_port(text_of(policies), upstream.port)
                control.set_documents({"policies": text}, endpoints(upstream.port))
                assert control.wait_acked(PATIENCE)
                for client in who:
                    for line in LINES:
                        found = trace(control.engine, question(client, upstream, line, egress))
                        expected = "allowed" if passes(proxy.address, client, line) else "denied"
                        assert found.agrees, found
                        assert found.verdict == expected, (client, line, text, found)
                        seen[expected] = seen.get(expected, 0) + 1

            check()
    # Both were seen, and often: the policies say something.
    assert min(seen["allowed"], seen["denied"]) >= 10


def question(client: str, server: Address, line: str, egress: bool) -> Question:
    cmd, _, file = line.partition(" ")
    return Question(
        End(address=client),
        End(address=server.host),
        server.port,
        ingress=not egress,
        egress=egress,
        request=Request("r2d2", {"cmd": (cmd,), "file": (file,)}),
    )


def passes(proxy: Address, client: str, line: str) -> bool:
    """Whether a request from `client` is answered by the server."""
    request = f"{line}\r\n".encode()
    with socket.create_connection(
        (proxy.host, proxy.port), PATIENCE, source_address=(client, 0)
    ) as connection:
        try:
            connection.sendall(request)
            reply = connection.makefile("rb").readline()
        except ConnectionError:
            return False
    assert reply in (request, b"ERROR\r\n", b"")
    return reply == request


def with_port(text: str, port: int) -> str:
    """The policies, for the server's port in place of 80."""
    return text.replace('"port": 80', f'"port": {port}').replace(
        '"endPort": 81', f'"endPort": {port + 1}'
    )
