"""Proxy ports: which redirect's listener is where, across restarts.

A port belongs to a name (a redirect's).  It is on disk before anybody is told, and a
released one is kept for its name for a while: what redirects to it in the kernel may
lag behind, and a redirect that comes back finds its connections' port.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from proxylib.errors import ConfigError
from proxylib.replacing import replace_file

FIRST, LAST = 10_000, 20_000
"""Proxy ports, both included."""

RELEASE_DELAY = 300.0
"""Seconds that a released port is kept for its name."""

MAX_STATE = 4 << 20
"""Largest state file, bytes; all ports with long names fit."""

MAX_NAME = 255
"""Longest name that a port belongs to, characters."""


@dataclass(frozen=True, slots=True)
class Port:
    """A port and since when it is released, in seconds since 1970; None: it is in use."""

    number: int
    released: float | None = None


def is_free(number: int, hosts: Sequence[str]) -> bool:
    """True if nobody listens at `number` on any of `hosts` (numeric addresses)."""
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # As Envoy does: connections that are ending do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, number))
                probe.listen(1)
        except OSError:
            return False
    return True


class ProxyPorts:
    """Ports by name. Safe for threads.

    state_file: where they are remembered; None forgets them. free: whether nobody
    else has a port. clock: seconds since 1970.  Raises ConfigError if the state file
    cannot be read, or holds something else.
    """

    def __init__(
        self,
        state_file: Path | None = None,
        *,
        first: int = FIRST,
        last: int = LAST,
        free: Callable[[int], bool] = lambda number: is_free(number, ("127.0.0.1", "::1")),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = state_file
        self._first, self._last = first, last
        self._free = free
        self._clock = clock
        self._lock = threading.Lock()
        self._ports = {} if state_file is None else _read(state_file, first, last)

    def assigned(self) -> Mapping[str, int]:
        """The port of every name that has one in use."""
        with self._lock:
            return {n: p.number for n, p in sorted(self._ports.items()) if p.released is None}

    def allocate(self, name: str) -> int:
        """The port of `name`: what it had, or the lowest that nobody has.

        Raises ConfigError if all are taken, or the state file cannot be written; then
        nothing has changed.
        """
        with self._lock:
            had = self._ports.get(name)
            if had is None:
                return self._keep(self._current() | {name: Port(self._another())}, name)
            if had.released is not None:
                return self._keep(self._current() | {name: Port(had.number)}, name)
            return had.number

    def release(self, name: str) -> None:
        """Give the port of `name` up, if it has one. Raises as `allocate` does."""
        with self._lock:
            had = self._ports.get(name)
            if had is not None and had.released is None:
                self._keep(self._current() | {name: Port(had.number, self._clock())}, name)

    def move(self, name: str) -> int:
        """Another port for `name`, because somebody else has the one that it has.

        Raises as `allocate` does.
        """
        with self._lock:
            return self._keep(self._current() | {name: Port(self._another())}, name)

    def _another(self) -> int:
        now = self._clock()
        kept = {p.number for p in self._ports.values() if not _is_over(p, now)}
        for number in range(self._first, self._last + 1):
            if number not in kept and self._free(number):
                return number
        raise ConfigError(f"no proxy port is left between {self._first} and {self._last}")

    def _current(self) -> dict[str, Port]:
        now = self._clock()
        return {name: port for name, port in self._ports.items() if not _is_over(port, now)}

    def _keep(self, ports: dict[str, Port], name: str) -> int:
        if len(name) > MAX_NAME:
            raise ConfigError(f"redirect {name[:64]!r}...: longer than {MAX_NAME} characters")
        if self._path is not None:
            _write(self._path, ports)
        self._ports = ports
        return ports[name].number


def _is_over(port: Port, now: float) -> bool:
    # A clock that was set back must not keep a port for ever.
    return port.released is not None and not 0 <= now - port.released < RELEASE_DELAY


def _read(path: Path, first: int, last: int) -> dict[str, Port]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_STATE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        if len(data) > MAX_STATE:
            raise ValueError(f"larger than {MAX_STATE} bytes")
        ports = {name: _port(value, first, last) for name, value in json.loads(data).items()}
        if len({port.number for port in ports.values()}) < len(ports):
            raise ValueError("two names have one port")
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ConfigError(
            # Not by ourselves: an Envoy in a sidecar, whose ports cannot be seen from here, would
            # have another redirect's listener at a port until it has heard of the new ones.
            f"{path}: not a file of proxy ports ({error}); put a copy back; or end the node's "
            "Envoys, with the connections that they judge, and move it away to start anew: "
            "redirects get other ports, and where Envoys still run, connections could for a "
            "moment come to the listener of another redirect"
        ) from error
    return ports


def _port(value: Any, first: int, last: int) -> Port:
    port = Port(**value)
    if type(port.number) is not int or not first <= port.number <= last:
        raise ValueError(f"{port.number!r} is no port between {first} and {last}")
    if port.released is not None and type(port.released) not in (int, float):
        raise ValueError(f"{port.released!r} is no time")
    return port


def _write(path: Path, ports: Mapping[str, Port]) -> None:
    text = json.dumps({name: asdict(port) for name, port in sorted(ports.items())}, indent=1)
    try:
        replace_file(path, text + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
