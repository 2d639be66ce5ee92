"""What a service manager hears: from the real agent, and from a Notifier by itself."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.systemd.notify import Notifier
from tests.node.conftest import Command


class Manager:
    """The manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)

    def hears(self) -> str:
        self._socket.settimeout(60)
        return self._socket.recv(4096).decode()

    def hears_nothing(self) -> bool:
        self._socket.setblocking(False)
        try:
            self._socket.recv(4096)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(short_path: Path) -> Iterator[Manager]:
    made = Manager(str(short_path / "notify"))
    yield made
    made.close()


def test_the_agent_says_how_it_is(
    short_path: Path, manager: Manager, command: Callable[..., Command]
) -> None:
    agent = command(
        *("agent", "--json", "--state-dir", short_path / "state", "--run-dir", short_path),
        env={"NOTIFY_SOCKET": str(short_path / "notify"), "WATCHDOG_USEC": "1500000"},
    )
    assert manager.hears() == "READY=1"
    api = short_path / "proxylib.sock"
    assert api.is_socket()
    assert manager.hears() == f"STATUS=ready at {api}, revision 0"
    assert [manager.hears() for _ in range(3)] == ["WATCHDOG=1"] * 3
    assert agent.end(signal.SIGTERM) == 0
    while (said := manager.hears()) == "WATCHDOG=1":
        pass
    assert said == "STOPPING=1"


def test_one_that_cannot_start_is_not_ready(
    short_path: Path, manager: Manager, command: Callable[..., Command]
) -> None:
    (short_path / "proxylib.sock").touch()
    agent = command(
        *("agent", "--state-dir", short_path / "state", "--run-dir", short_path),
        env={"NOTIFY_SOCKET": str(short_path / "notify")},
        read=False,
    )
    assert agent.process.wait(timeout=60) != 0
    assert "proxylib.sock" in agent.stderr()
    assert manager.hears_nothing()


def test_abstract_sockets() -> None:
    name = f"proxylib-test-{os.getpid()}"
    manager = Manager(f"\0{name}")
    try:
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).status("well,\nand ready\x00")
        assert manager.hears() == "STATUS=well, and ready\x00"
    finally:
        manager.close()


def test_nobody_hears(short_path: Path) -> None:
    with Notifier({}).serving():
        pass
    gone = Notifier({"NOTIFY_SOCKET": str(short_path / "gone")})
    with gone.serving():
        gone.status("well")
        gone.alive()


def test_the_watchdog_is_asked_for(short_path: Path, manager: Manager) -> None:
    address = str(short_path / "notify")
    ours = {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}
    asked = Notifier({"NOTIFY_SOCKET": address, **ours})
    asked.alive()
    assert manager.hears() == "WATCHDOG=1"
    asked.alive()
    assert manager.hears_nothing()
    for other in ({**ours, "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {}):
        Notifier({"NOTIFY_SOCKET": address, **other}).alive()
    assert manager.hears_nothing()


def test_what_the_agent_starts_is_not_the_service() -> None:
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Notifier(environment)
    assert environment == {"HOME": "/"}
