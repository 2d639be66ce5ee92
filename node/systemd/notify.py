"""What the agent tells its service manager: that it is ready, how it is, that it ends.

The protocol of sd_notify(3) is text in datagrams to the socket that ``NOTIFY_SOCKET`` names.
Nobody has to listen: without the variable, or with a manager that has gone, nothing is said.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress

_OFTEN = 3
"""How many times a watchdog's time the manager hears of us: systemd asks for twice."""


class Notifier:
    """Speaks to the service manager of this process, if it has one.

    Takes its variables out of `environment`: what the agent starts is not the service.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        path = environment.pop("NOTIFY_SOCKET", "")
        # An abstract socket is written with an @ for its zero.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._pause = _watchdog(environment) / _OFTEN
        self._alive = 0.0

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The agent is ready when the block begins, and ends with it."""
        self._send("READY=1")
        try:
            yield
        finally:
            self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """How it is, in one line for a person (``systemctl status``)."""
        self._send(f"STATUS={' '.join(text.split())}")

    def alive(self) -> None:
        """To be called often, by what would stand still if anything did."""
        now = time.monotonic()
        if self._pause and now - self._alive >= self._pause:
            self._alive = now
            self._send("WATCHDOG=1")

    def _send(self, line: str) -> None:
        if not self._address:
            return
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender,
        ):
            sender.connect(self._address)
            sender.send(line.encode("utf-8", "replace"))


def _watchdog(environment: MutableMapping[str, str]) -> float:
    """Seconds after which the manager takes silence for death; 0: it does not."""
    text, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    if pid not in ("", str(os.getpid())) or not (text.isascii() and text.isdigit()):
        return 0.0
    return int(text) / 1e6
