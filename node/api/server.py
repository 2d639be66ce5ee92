"""An ASGI application on a Unix socket, served by uvicorn in a thread.

The socket is made out of others' sight, given its group and mode, and then moved
into place: nobody unauthorised can connect, not even for a moment.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any, Self

import uvicorn

from node.errors import SetupError
from xds.listening import check_socket

MODE = 0o660

MAX_CONNECTIONS = 128
"""Connections at a time; further requests are answered 503."""

BACKLOG = 64
KEEP_ALIVE = 30
"""Seconds that a connection may be idle."""

_STOP_TIMEOUT = 10.0
_GRACE = 2
"""Seconds that requests may take to end when the server stops."""


def listen(path: Path, group: int | None) -> socket.socket:
    """A listening socket at `path`, for its owner and `group`.

    Raises ConfigError for a path that is taken, SetupError if it cannot be made.
    """
    check_socket(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as private:
            bound = Path(private) / "s"
            listener.bind(str(bound))
            if group is not None:
                os.chown(bound, -1, group)
            bound.chmod(MODE)
            listener.listen(BACKLOG)
            bound.rename(path)
    except OSError as error:
        listener.close()
        raise SetupError(f"{path}: cannot listen there: {error.strerror or error}") from error
    return listener


class ApiServer:
    """Serves `app` at `path` while its block lasts."""

    def __init__(self, app: Any, path: Path, *, group: int | None = None) -> None:
        self._path = path
        self._group = group
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=_GRACE,
                server_header=False,
                date_header=False,
                ws="none",
            )
        )

    def __enter__(self) -> Self:
        listener = listen(self._path, self._group)
        self._inode = self._path.lstat().st_ino
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="api", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Not if another agent has replaced it in the meantime.
        if self._path.exists() and self._path.lstat().st_ino == self._inode:
            self._path.unlink()
        self._server.should_exit = True
        self._thread.join(_STOP_TIMEOUT)
