"""Health, configuration, metrics, and what holds for every path."""

from __future__ import annotations

import re
import socket

import pytest

from node.api.app import MAX_BODIES, MAX_BODY
from tests.native.services import wait_for
from tests.node.agents import Agent, r2d2


def test_health(agent: Agent) -> None:
    agent.put_policy(r2d2())
    agent.add_endpoint("10.0.0.1", "app=r2d2")
    health = agent.get("/healthz")
    assert health["state"] == "Ok"
    assert health["node"] == "node-1"
    components = {c["name"]: c for c in health["components"]}
    assert components["Proxy Status"]["message"] == (
        "ip 127.0.0.1, 1 redirects active on ports 10000-20000"
    )


def test_config(agent: Agent) -> None:
    config = agent.get("/config")
    assert config["socket"] == str(agent.config.api_path)
    assert config["proxy-ports"] == "10000-20000"


def test_metrics(agent: Agent) -> None:
    agent.put_policy(r2d2())
    agent.put_policy("nonsense")
    answer = agent.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert "proxylib_policy_revision 1.0" in lines
    assert "proxylib_policies 1.0" in lines
    assert 'proxylib_api_requests_total{method="PUT",status="422"} 1.0' in lines


def test_unknown_paths_and_methods_are_problems(agent: Agent) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("POST", "/policy", 405),
        ("BREW", "/policy", 405),
        ("GET", "/endpoint/x", 422),
        ("GET", "/endpoint/-1", 422),
        ("GET", "/policy/revisions/" + "9" * 400, 422),
        ("GET", "/policy/revisions/1?timeout=nan", 422),
    ):
        answer = agent.http.request(method, path)
        assert answer.status_code == status, (path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status


def test_garbage_on_the_socket_hurts_nobody(agent: Agent) -> None:
    for garbage in (b"\0" * 4096, b"GET / HTTP/9\r\n\r\n", b"GET /" + b"x" * 200_000):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(agent.config.api_path))
            try:
                client.sendall(garbage)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except OSError:
                pass
    assert agent.get("/healthz")["state"] == "Ok"


def test_bodies_together_are_bounded(agent: Agent) -> None:
    """Some clients that send much and never end do not keep the agent from others for ever."""
    held = []
    chunk = b"x" * (MAX_BODY - 1)
    try:
        for _ in range(MAX_BODIES // MAX_BODY):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(agent.config.api_path))
            head = f"PUT /v1/policy HTTP/1.1\r\nHost: a\r\nContent-Length: {MAX_BODY}\r\n\r\n"
            client.sendall(head.encode() + chunk)
            held.append(client)
        wait_for(lambda: agent.put_policy("x" * 4096).status_code == 503, "no room", 30)
        assert agent.get("/healthz")["state"] == "Ok"
    finally:
        for client in held:
            client.close()
    wait_for(lambda: agent.put_policy("x" * 4096).status_code == 422, "room again", 30)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_part_that_has_failed_is_told(agent: Agent) -> None:
    assert agent.node is not None
    agent.node.decisions._server.close()
    wait_for(lambda: agent.get("/healthz")["state"] == "Failure", "the failure")
    result = agent.cli("status", "--brief")
    assert result.exit_code == 1
    assert result.stdout.startswith("Access log:             Failure")
    text = agent.cli("status").stdout
    found = re.search("Controller Status:      ([0-9]+)/([0-9]+) healthy", text)
    assert found is not None
    assert int(found[1]) == int(found[2]) - 1
