"""Where the control server listens: a Unix socket with the right permissions, and TCP."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote

import grpc
import grpc.aio

from proxylib.errors import ConfigError

_MAX_SOCKET_PATH = 107
"""Longest path of a Unix socket, bytes (sockaddr_un)."""


def check_socket(path: Path) -> None:
    """Raise ConfigError, saying what to do, unless a socket can be put at `path`.

    One that nobody listens on may be replaced; anything else that is there not.
    """
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise ConfigError(f"{path}: a socket's path is at most {_MAX_SOCKET_PATH} bytes long")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the directory {path.parent} does not exist")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path}: is there already, and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise ConfigError(f"{path}: cannot be taken over: {error.strerror}") from error
        else:
            raise ConfigError(f"{path}: another server listens there; stop it or use another path")


def inode(path: Path) -> tuple[int, int] | None:
    """What tells the file at `path` from any other; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def bind_unix(server: grpc.aio.Server, path: Path, *, mode: int, group: int | None) -> None:
    """Listen at `path`, which `check_socket` has found free. Raises as `check_socket` does,
    OSError and RuntimeError."""
    # Bound out of others' sight, and moved into place when its permissions are right.
    # gRPC removes the name that it has bound, whoever's that is by then: not ours.
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as private:
        bound = Path(private) / "s"
        if len(os.fsencode(bound)) > _MAX_SOCKET_PATH:
            raise ConfigError(f"{path}: the path of its directory is too long")
        server.add_insecure_port("unix:" + quote(str(bound)))
        if group is not None:
            os.chown(bound, -1, group)
        bound.chmod(mode)
        bound.rename(path)


def bind_tcp(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None
) -> int:
    """Listen at ``host:port``, a numeric address; the port. Raises ConfigError for one that
    is not, or that others can reach if there are no credentials; RuntimeError if it is taken."""
    if credentials is not None:
        return server.add_secure_port(address, credentials)
    host = address.rpartition(":")[0].strip("[]")
    try:
        safe = ip_address(host).is_loopback
    except ValueError as error:
        raise ConfigError(f"{address}: not a numeric address and a port") from error
    if not safe:
        raise ConfigError(
            f"{address}: anybody could connect there; "
            "give credentials, or listen on a loopback address"
        )
    return server.add_insecure_port(address)
