"""A Unix SEQPACKET listening socket at a path, taken without taking it from anybody.

A socket file that a dead process left behind is replaced; a live one is refused.
The file never has a wider mode than asked for, not even for a moment.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from proxylib.errors import ProxylibError
from proxylib.unixsocket import bind

MAX_PATH = 107
"""Longest path of a Unix socket, bytes (sockaddr_un has 108, one is the NUL)."""

BACKLOG = 64
"""Connections that may wait to be accepted; Envoy opens one per library instance."""


class AccessLogError(ProxylibError):
    """The access-log socket cannot be opened; the text says why and what to do."""


def listen(path: Path, mode: int) -> socket.socket:
    """A non-blocking listening socket at `path` with permission bits `mode`.

    Raises AccessLogError if the path is too long, is not a socket, or is in use.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise AccessLogError(f"{path}: longer than {MAX_PATH} bytes, the limit of a Unix socket")
    _clear(path)
    try:
        listener = bind(path, socket.SOCK_SEQPACKET, mode)
    except OSError as error:
        raise AccessLogError(f"{path}: {_reason(error, path)}") from error
    listener.setblocking(False)
    listener.listen(BACKLOG)
    return listener


def _clear(path: Path) -> None:
    """Remove a socket file that nobody listens on; raise AccessLogError for anything else."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise AccessLogError(f"{path}: {_reason(error, path)}") from error
    if not stat.S_ISSOCK(kind):
        raise AccessLogError(f"{path}: is there and is not a socket; name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(os.fspath(path))
    if code in (0, errno.EAGAIN):
        raise AccessLogError(
            f"{path}: another program is reading the access log here; "
            "end that one first, or name another path"
        )
    if code != errno.ECONNREFUSED:
        raise AccessLogError(f"{path}: in use ({os.strerror(code)}); name another path")
    path.unlink(missing_ok=True)


def _reason(error: OSError, path: Path) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"the folder {path.parent} does not exist; create it first"
        case errno.EACCES | errno.EPERM:
            return f"no permission to create a socket in {path.parent}"
        case errno.EADDRINUSE:
            return "another program took this path just now"
        case _:
            return error.strerror or str(error)
