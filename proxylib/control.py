"""The control socket of a running library: reload a parser, see what runs.

A Unix stream socket that only its owner can open.  A request is one JSON object on a
line, and so is the answer; then the connection ends::

    {"command": "reload", "parser": "droid", "drain": 60}
    {"ok": true, "parsers": ["droid"]}

An answer that is not ok has the reason as ``error``.  A thread answers one request
after the other; the data path knows nothing of it.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from proxylib.errors import ProxylibError
from proxylib.unixsocket import bind

log = logging.getLogger(__name__)

MAX_REQUEST = 1 << 16
"""Bytes of a request."""

MAX_ANSWER = 16 << 20
"""Bytes of an answer."""

PATIENCE = 5.0
"""Seconds that a client has to say what it wants, and to take the answer."""

Command = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Takes a request and gives the answer; raises ProxylibError with a reason not to."""


class ControlSocket:
    """Serves `commands` at `path` until `close`. Raises OSError if it cannot listen there."""

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self.path = path
        self._commands = commands
        _make_room(path)
        self._listener = bind(path, socket.SOCK_STREAM, 0o600)
        self._listener.listen(16)
        threading.Thread(target=self._run, name="proxylib-control", daemon=True).start()

    def close(self) -> None:
        """Stop listening, and take the socket away."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with suppress(OSError):
            self.path.unlink()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, suppress(OSError):
                client.settimeout(PATIENCE)
                client.sendall(json.dumps(self._answer(client)).encode() + b"\n")

    def _answer(self, client: socket.socket) -> Mapping[str, Any]:
        try:
            request = json.loads(_read_line(client, MAX_REQUEST))
            command = self._commands.get(request.pop("command", None))
        except (ValueError, AttributeError, TypeError, RecursionError):
            return {"ok": False, "error": "a request is a JSON object on a line"}
        if command is None:
            return {"ok": False, "error": f"commands are {', '.join(self._commands)}"}
        try:
            return {"ok": True, **command(request)}
        except ProxylibError as error:
            return {"ok": False, "error": str(error)}
        except Exception as error:
            log.exception("a command of the control socket")
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}


def ask(path: Path, request: Mapping[str, Any], timeout: float = 60.0) -> dict[str, Any]:
    """The answer to `request` of the library whose control socket is at `path`.

    Raises ProxylibError with the reason if it is not ok, OSError if nobody is there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.settimeout(timeout)
        server.connect(str(path))
        server.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(_read_line(server, MAX_ANSWER))
    if not answer.pop("ok", False):
        raise ProxylibError(str(answer.get("error", "no reason was given")))
    return dict(answer)


def _read_line(peer: socket.socket, limit: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        chunk = peer.recv(1 << 16)
        if not chunk or len(line) + len(chunk) > limit:
            raise ValueError("not a line")
        line += chunk
    return line


def _make_room(path: Path) -> None:
    """Take away the socket of somebody who is gone; nobody else's, and nothing else."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
