"""Envoys change hands while connections are redirected to them, unknown to both ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from demos.node.agent import NodeAgent
from tests.conftest import MakeLab
from tests.node.agent.nodes import ask, connect, eventually, ingress, programs, say, serve
from tests.node.agents import Agent, http_client, settings

CLIENT = b"::ffff:10.1.0.2 "


@pytest.mark.timeout(200)
def test_redirected_connections_do_not_notice(make_lab: MakeLab) -> None:
    """One in the node; tests/node/proxy/test_launch.py has one in another namespace."""
    lab = make_lab("client", "server")
    serve(lab["server"])
    client, server = lab["client"], lab["server"].ipv4
    times = ("--envoy-drain-time", "1", "--envoy-parent-shutdown-time", "8")
    agent = NodeAgent(lab, "--bpf-cache", programs().name, *times)
    agent.start()
    with http_client(agent.socket) as http:
        api = Agent(settings(Path(lab.folder)), http)
        for name in ("client", "server"):
            body = {"netns": lab[name].netns, "labels": [f"app={name}"]}
            assert api.http.post("/endpoint", json=body).status_code == 201
        agent.proxylib("policy", "import", "-", "--wait", stdin=ingress("READ"))
        assert ask(client, server, b"READ x") == CLIENT + b"READ x"
        (before,) = agent.envoys()

        stopping = threading.Event()
        answers: list[bytes | str] = []

        def traffic() -> None:
            while not stopping.is_set():
                for line in (b"READ x", b"HALT"):
                    began = time.monotonic()
                    try:
                        with connect(client, server, timeout=20) as connection:
                            answers.append(say(connection, line))
                        stopping.wait(0.01)
                    except OSError as error:
                        answers.append(f"{line!r}: {error!r} after {time.monotonic() - began} s")

        thread = threading.Thread(target=traffic)
        with connect(client, server) as running:
            assert say(running, b"READ 1") == CLIENT + b"READ 1"
            thread.start()
            try:
                agent.proxylib("agent", "reload-envoy")
                eventually(lambda: "has taken over" in agent.log)
                assert say(running, b"READ 2") == CLIENT + b"READ 2"
                assert say(running, b"HALT") == b"ERROR"
                eventually(lambda: f"process {before}, has ended" in agent.log)
            finally:
                stopping.set()
                thread.join()
    assert set(answers) == {CLIENT + b"READ x", b"ERROR"}
    assert len(answers) > 20
