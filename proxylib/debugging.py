"""Debugging a parser where it runs: tracebacks in full, and ``breakpoint()``.

A host's standard streams are not a terminal, so a breakpoint waits for somebody at a
Unix socket that only its owner can open (`proxylib parser debug`).  While it waits or
is stepped through, its worker thread stands still, with all of its connections: this
is for a desk, and never on by itself.
"""

from __future__ import annotations

import io
import logging
import pdb
import socket
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from proxylib.errors import ConfigError
from proxylib.unixsocket import bind

log = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds that a breakpoint waits for somebody; then the parser goes on."""

_listeners: dict[str, socket.socket] = {}


def listen(path: str) -> None:
    """Have ``breakpoint()`` wait at the socket `path`. Raises ConfigError if it cannot listen."""
    if path in _listeners:
        return
    place = Path(path)
    try:
        # A worker that takes another's place takes its socket over; nothing else goes.
        if place.is_socket():
            place.unlink(missing_ok=True)
        listener = bind(place, socket.SOCK_STREAM, 0o600)
    except OSError as error:
        raise ConfigError(f"debug: {path!r}: {error.strerror or error}") from error
    listener.listen(1)
    listener.settimeout(PATIENCE)
    _listeners[path] = listener
    sys.breakpointhook = lambda *_, **__: _break(listener, path, sys._getframe(1))
    log.warning("debug mode: tracebacks are logged, and breakpoint() waits at %s", path)


def debug_path() -> str:
    """Where breakpoints of this process wait. Raises ConfigError if they do not."""
    if not _listeners:
        raise ConfigError("the proxy does not run in debug mode (proxylib run --debug)")
    return next(iter(_listeners))


def _break(listener: socket.socket, path: str, frame: FrameType) -> None:
    # Whoever is being traced has no time budget: somebody stands in the call.
    sys.settrace(lambda *_: None)
    log.warning("breakpoint at %s:%d", frame.f_code.co_filename, frame.f_lineno)
    try:
        peer, _ = listener.accept()
    except OSError:
        log.warning("nobody came to the breakpoint within %g s: the parser goes on", PATIENCE)
        sys.settrace(None)
        return
    _Debugger(peer).set_trace(frame)


class _Keys(io.TextIOWrapper):
    """What a person types; who has gone types nothing more, be it with an error."""

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        with suppress(OSError, ValueError):
            return super().readline(size)
        return ""


class _Screen(io.TextIOWrapper):
    """What a person sees; who has gone sees nothing, and is no reason to fail."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            super().flush()


class _Debugger(pdb.Pdb):
    """pdb at a socket. Leaving it, or losing it, lets the parser go on."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        keys = _Keys(peer.makefile("rb"), encoding="utf-8", errors="replace")
        screen = _Screen(peer.makefile("wb"), encoding="utf-8", errors="replace")
        super().__init__(stdin=keys, stdout=screen, readrc=False)
        self.use_rawinput = False

    def set_continue(self) -> None:
        super().set_continue()
        if not self.breaks:
            with suppress(OSError):
                self.stdout.flush()
                self._peer.shutdown(socket.SHUT_RDWR)
                self._peer.close()

    def set_quit(self) -> None:
        # The end of a lost peer's input is taken for "quit", too.
        self.clear_all_breaks()
        self.set_continue()
