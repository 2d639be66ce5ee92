"""The API's socket: whose it is, and whose place it takes."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from node.errors import SetupError
from proxylib.errors import ConfigError
from tests.node.agents import Agent, running

OTHER_GROUP = 12345


def test_only_owner_and_group(agent: Agent) -> None:
    mode = agent.config.api_path.stat().st_mode
    assert stat.S_IMODE(mode) == 0o660
    assert agent.config.api_path.stat().st_uid == os.geteuid()
    assert stat.S_IMODE(agent.config.xds_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(agent.config.access_log_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(agent.config.state_dir.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a socket to a group")
def test_a_group_of_ones_choice(short_path: Path) -> None:
    with running(short_path, socket_group=str(OTHER_GROUP)) as agent:
        for path in (agent.config.api_path, agent.config.xds_path, agent.config.access_log_path):
            assert path.stat().st_gid == OTHER_GROUP
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
        # Nobody else can connect: proved by another user, in a process of its own.
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setgid(54321)
            os.setuid(54321)
            with socket.socket(socket.AF_UNIX) as client:
                os._exit(0 if client.connect_ex(str(agent.config.api_path)) == 13 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("name", ["proxylib.sock", "xds.sock", "access_log.sock"])
def test_a_stale_socket_is_replaced(short_path: Path, name: str) -> None:
    (short_path / "run").mkdir()
    with socket.socket(
        socket.AF_UNIX, socket.SOCK_SEQPACKET if "log" in name else socket.SOCK_STREAM
    ) as dead:
        dead.bind(str(short_path / "run" / name))
    with running(short_path) as agent:
        assert agent.get("/healthz")["state"] == "Ok"
    assert not (short_path / "run" / name).exists()


@pytest.mark.parametrize("name", ["proxylib.sock", "xds.sock", "access_log.sock"])
def test_what_is_no_socket_is_refused(short_path: Path, name: str) -> None:
    path = short_path / "run" / name
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"), running(short_path):
        pass
    assert path.read_text() == "precious"


def test_a_live_socket_is_refused(short_path: Path) -> None:
    with running(short_path) as agent:
        other = short_path / "other"
        with (
            pytest.raises(ConfigError, match="another server listens"),
            running(other, socket=agent.config.api_path),
        ):
            pass
        assert agent.get("/healthz")["state"] == "Ok"


def test_one_agent_for_a_state_directory(short_path: Path) -> None:
    with running(short_path) as agent:
        with (
            pytest.raises(SetupError, match=f"pid {os.getpid()}"),
            running(short_path, run_dir=short_path / "other"),
        ):
            pass
        assert agent.get("/healthz")["state"] == "Ok"
    with running(short_path) as agent:
        assert agent.get("/policy")["revision"] == 0
