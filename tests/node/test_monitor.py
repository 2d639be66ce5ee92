"""``proxylib monitor`` as a process: what it prints, and how it ends."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from proxylib.proto.accesslog_pb2 import EntryType, L7LogEntry, LogEntry
from tests.native.services import wait_for
from tests.node.agents import Agent, running
from tests.node.conftest import ROOT, Command

Start = Callable[..., Command]

DENIED = LogEntry(
    entry_type=EntryType.Denied,
    is_ingress=True,
    source_address="10.0.0.2:4242",
    source_security_id=257,
    destination_address="10.0.0.1:4040",
    destination_security_id=256,
    generic_l7=L7LogEntry(proto="r2d2", fields={"cmd": "HALT"}),
)
LINE = "<- Request r2d2 from 0 to 1, identity 257->256, verdict Denied HALT"


def log(agent: Agent, entry: LogEntry = DENIED) -> None:
    """Have a proxy write to the access log."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as proxy:
        proxy.connect(str(agent.config.access_log_path))
        proxy.send(entry.SerializeToString())


def watched(agent: Agent, monitors: int = 1) -> None:
    assert agent.node is not None
    hub = agent.node.monitor.hub
    wait_for(lambda: hub.subscribers == monitors, "the monitor", 60)


def monitor(command: Start, agent: Agent, *arguments: object, read: bool = False) -> Command:
    return command("monitor", "--socket", agent.config.api_path, *arguments, read=read)


def test_lines_and_count(command: Start, short_path: Path) -> None:
    with running(short_path) as agent:
        agent.add_endpoint("10.0.0.1", "k8s:app=r2d2")
        plain = monitor(command, agent, "--count", 1)
        labels = monitor(command, agent, "-v", "--count", 1, "--type", "l7", "--to", 1)
        watched(agent, 2)
        log(agent)
        output, errors = plain.process.communicate(timeout=30)
        assert output == LINE + "\n"
        assert errors == "proxylib: watching node-1; Ctrl-C ends it\n"
        assert plain.process.returncode == 0
        output, _ = labels.process.communicate(timeout=30)
        assert "from 0 ([reserved:unknown]) to 1 ([k8s:app=r2d2]), identity" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(command: Start, short_path: Path, number: int) -> None:
    with running(short_path) as agent:
        watcher = monitor(command, agent)
        assert watcher.process.stderr is not None
        assert watcher.process.stderr.readline() == "proxylib: watching node-1; Ctrl-C ends it\n"
        assert watcher.end(number) == 0
        assert watcher.stderr() == ""
        watched(agent, 0)


def test_it_goes_on_with_the_next_agent(command: Start, short_path: Path) -> None:
    with running(short_path) as agent:
        watcher = monitor(command, agent, "--json", read=True)
        watched(agent)
    assert watcher.until(lambda e: e["type"] == "end")["reason"] == "the agent ends"
    with running(short_path) as agent:
        watched(agent)
        log(agent)
        assert watcher.until(lambda e: e["type"] == "l7")["fields"] == {"cmd": "HALT"}
    assert [entry["type"] for entry in watcher.seen] == ["start", "end", "start", "l7"]
    assert watcher.end() == 0


def test_an_agent_that_is_killed(command: Start, short_path: Path) -> None:
    folders = ("--state-dir", short_path / "state", "--run-dir", short_path / "run")
    first = command("agent", "--json", *folders)
    path = first.event("ready")["socket"]
    watcher = command("monitor", "--json", "--socket", path)
    watcher.until(lambda e: e["type"] == "start")
    os.kill(first.process.pid, signal.SIGKILL)
    assert "the agent has gone" in watcher.until(lambda e: e["type"] == "end")["reason"]
    command("agent", "--json", *folders).event("ready")
    watcher.until(lambda e: e["type"] == "start")
    assert watcher.end() == 0


def test_no_agent(command: Start, short_path: Path) -> None:
    watcher = command("monitor", "--socket", short_path / "none", read=False)
    assert watcher.process.wait(timeout=30) == 3
    assert "start one with 'proxylib agent'" in watcher.stderr()


def test_whoever_reads_it_may_go(short_path: Path) -> None:
    with running(short_path) as agent:
        program = f'"{sys.executable}" -m node monitor --socket "{agent.config.api_path}"'
        with subprocess.Popen(
            ["bash", "-c", f"{program} | head -n 1"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as pipe:
            watched(agent)
            for _ in range(3):
                log(agent)
            # head is gone at the first line, the monitor when it writes another.
            assert agent.node is not None
            hub = agent.node.monitor.hub
            wait_for(lambda: (log(agent), hub.subscribers == 0)[1], "the monitor to end", 30)
            output, errors = pipe.communicate(timeout=30)
        assert output.startswith("<- Request r2d2")
        assert "Traceback" not in errors


def test_colours_are_for_terminals(short_path: Path) -> None:
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        with running(short_path) as agent:
            outer, inner = pty.openpty()
            arguments = ["monitor", "--count", "1", "--socket", str(agent.config.api_path)]
            with subprocess.Popen(
                [sys.executable, "-m", "node", *arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=inner,
                stderr=subprocess.DEVNULL,
            ) as process:
                os.close(inner)
                watched(agent)
                log(agent)
                assert process.wait(timeout=30) == 0
                text = os.read(outer, 65536).decode()
                os.close(outer)
        assert ("\x1b[31m" in text) is coloured
