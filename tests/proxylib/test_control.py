"""The control socket answers what it can, and survives whatever it is asked."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from proxylib.control import MAX_REQUEST, ControlSocket, ask
from proxylib.errors import ConfigError, ProxylibError


def echo(request: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"request": dict(request)}


def refuse(request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise ConfigError("not today")


def broken(request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise KeyError("oops")


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "control.sock"
    serving = ControlSocket(path, {"echo": echo, "refuse": refuse, "broken": broken})
    yield path
    serving.close()
    assert not path.exists()


def test_an_answer(control: Path) -> None:
    assert ask(control, {"command": "echo", "x": [1]}) == {"request": {"x": [1]}}


def test_only_the_owner_may_ask(control: Path) -> None:
    assert control.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("command", "why"), [("refuse", "not today"), ("broken", "KeyError"), ("x", "commands are")]
)
def test_no_is_an_error_with_its_reason(control: Path, command: str, why: str) -> None:
    with pytest.raises(ProxylibError, match=why):
        ask(control, {"command": command})


@pytest.mark.parametrize(
    "sent", [b"\n", b"[]\n", b"nonsense\n", b'{"command": []}\n', b"[" * 50_000 + b"\n", b"x" * 10]
)
def test_garbage_is_answered_and_nothing_ends(control: Path, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(control))
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert json.loads(client.recv(1000))["ok"] is False
    assert ask(control, {"command": "echo"}) == {"request": {}}


def test_a_request_without_end_is_cut(control: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(control))
        client.sendall(b"x" * (2 * MAX_REQUEST))
        answer = client.recv(1000)
        assert not answer or json.loads(answer)["ok"] is False
    assert ask(control, {"command": "echo"}) == {"request": {}}


def test_the_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    ControlSocket(path, {"echo": echo}).close()


def test_the_socket_of_somebody_else_is_not(control: Path) -> None:
    with pytest.raises(OSError, match="in use"):
        ControlSocket(control, {})
    assert ask(control, {"command": "echo"}) == {"request": {}}


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("x")
    with pytest.raises(OSError, match="in use"):
        ControlSocket(path, {})
    assert path.read_text() == "x"
