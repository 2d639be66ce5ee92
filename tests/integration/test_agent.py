"""The agent as a process, and a stock Envoy that it tells what may pass.

Policies come over the REST API and from the policy directory; the agent is killed under
traffic, and the next one takes over what is there.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from demos.stage import line_server
from node import bootstrap
from node.address import Address
from node.envoy import EnvoyProcess, find_envoy
from tests.native.services import wait_for
from tests.node.agents import Agent, http_client, r2d2, settings
from tests.node.conftest import Command

SERVER, JEDI, OTHER = "127.30.0.1", "127.30.0.2", "127.30.0.3"


@contextmanager
def envoy(folder: Path, upstream: Address) -> Iterator[Address]:
    """An Envoy whose parser gets its policies from the agent in `folder`."""
    config = settings(folder)
    document, admin = folder / "envoy.json", folder / "admin.sock"
    filter_config = bootstrap.FilterConfig(
        parser="r2d2",
        xds_path=config.xds_path,
        access_log_path=config.access_log_path,
        node_id="envoy-1",
        destination=str(upstream),
    )
    built = bootstrap.build(
        bootstrap.BootstrapConfig(filter_config, Address("127.0.0.1", 0), upstream, admin)
    )
    document.write_text(bootstrap.to_json(built))
    with EnvoyProcess(find_envoy(None), document, admin) as process:
        process.wait_ready()
        yield process.listeners()[bootstrap.LISTENER]


@contextmanager
def agent_in(folder: Path, *more: object) -> Iterator[Command]:
    """An agent with everything in `folder`, as a process."""
    agent = Command(
        *("agent", "--json", "--state-dir", folder / "state", "--run-dir", folder / "run"),
        # Its endpoints are on loopback, where there is nothing to redirect.
        *("--datapath", "none", *more),
    )
    with closing(agent):
        agent.event("ready")
        yield agent


def say(proxy: Address, client: str, line: bytes) -> bytes:
    """The reply to a line; empty if the connection is closed."""
    with socket.create_connection((proxy.host, proxy.port), 10, (client, 0)) as connection:
        try:
            connection.sendall(line + b"\r\n")
            return connection.makefile("rb").readline().rstrip()
        except ConnectionError:
            return b""


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a")


@pytest.mark.timeout(200)
def test_an_envoy_obeys_the_agent(short_path: Path) -> None:
    files = short_path / "policies"
    files.mkdir()
    with line_server(Address(SERVER, 0), lambda line: line) as upstream, ExitStack() as agents:
        policy = r2d2().replace("4040", str(upstream.port))
        first = agents.enter_context(agent_in(short_path, "--policy-dir", files))
        config = settings(short_path)
        with http_client(config.api_path) as http, envoy(short_path, upstream) as proxy:
            agent = Agent(config, http)
            assert agent.add_endpoint(SERVER, "app=r2d2").status_code == 201
            assert agent.add_endpoint(JEDI, "role=jedi").status_code == 201
            imported = agent.cli("policy", "import", "-", "--wait", stdin=policy)
            assert imported.exit_code == 0, imported.output
            assert say(proxy, JEDI, b"READ x") == b"READ x"
            assert say(proxy, JEDI, b"HALT") == b"ERROR"
            assert say(proxy, OTHER, b"READ x") == b""
            (stream, *_) = agent.get("/xds")["streams"]
            assert stream["node"] == "envoy-1"
            wait_for(lambda: 'verdict="denied"' in agent.http.get("/metrics").text, "the log")

            # A file that is dropped in is in force; one that goes is not.
            other = r2d2("halt", cmd="HALT").replace("4040", str(upstream.port))
            (files / ".new").write_text(other)
            (files / ".new").rename(files / "halt.yaml")
            wait_for(lambda: say(proxy, JEDI, b"HALT") == b"HALT", "the file to be in force")
            (files / "halt.yaml").unlink()
            wait_for(lambda: say(proxy, JEDI, b"HALT") == b"ERROR", "the file to be forgotten")

            # Killed under traffic: not one request is judged otherwise, nor lost.
            replies: set[bytes] = set()
            stopping = threading.Event()

            def traffic() -> None:
                while not stopping.is_set():
                    replies.add(say(proxy, JEDI, b"READ x"))

            client = threading.Thread(target=traffic)
            client.start()
            try:
                os.kill(first.process.pid, signal.SIGKILL)
                first.process.wait()
                assert say(proxy, JEDI, b"HALT") == b"ERROR"
                agents.enter_context(agent_in(short_path, "--policy-dir", files))
                with http_client(config.api_path) as anew:
                    agent = Agent(config, anew)
                    revision = agent.get("/policy")["revision"]
                    waited = agent.cli(
                        "policy", "wait", revision, "--nodes", "1", "--timeout", "60"
                    )
                    assert waited.exit_code == 0, waited.output
                    changed = agent.put_policy(policy.replace("READ", "HALT"))
                    waited = agent.cli("policy", "wait", changed.json()["revision"], "--nodes", "1")
                    assert waited.exit_code == 0, waited.output
                    assert say(proxy, JEDI, b"HALT") == b"HALT"
                    assert replies >= {b"READ x"}
            finally:
                stopping.set()
                client.join()
            # Denied only since the policy says so.
            assert replies <= {b"READ x", b"ERROR"}
