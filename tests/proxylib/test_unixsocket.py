"""A socket has the mode that was asked for, and takes nothing from anybody."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from proxylib.unixsocket import bind


@pytest.mark.parametrize("umask", [0, 0o77, 0o777])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_its_mode_whatever_the_umask(tmp_path: Path, kind: socket.SocketKind, umask: int) -> None:
    before = os.umask(umask)
    try:
        with bind(tmp_path / "s", kind, 0o620):
            assert (tmp_path / "s").stat().st_mode & 0o777 == 0o620
    finally:
        os.umask(before)


def test_what_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("x")
    with pytest.raises(OSError, match="in use"):
        bind(path, socket.SOCK_STREAM, 0o600)
    assert path.read_text() == "x"
