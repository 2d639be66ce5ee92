"""The processes of isolated parsers: started, started again, replaced by new code.

A `Worker` is the processes of one filter configuration: the present one, which new
connections go to, and after a reload those that are left until their last connection has
ended.  Each has a thread that waits for its end and tells all who wait for it
(native/isolate.c); if the present one ends, the next one is started after a pause that
grows while they die young.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

from proxylib import limits
from proxylib.errors import ConfigError, RegistrationError

if TYPE_CHECKING:
    from proxylib_native import Remote

log = logging.getLogger(__name__)

START_TIMEOUT = 10.0
"""Seconds that a worker has to start Python, import its parser and hear of its policy."""

LEAVE_TIMEOUT = 1.0
"""Seconds that connections have to end when their drain time is over."""

_LOOK_EVERY = 0.1
"""Seconds between looks whether a process has connections left."""


class Process:
    """One process of a parser.

    config: what it is told, a JSON line. log: the AccessLog (proxylib_native) of the host,
    to which its entries go. ended: called when it has ended, with how. anew: it takes the
    place of another, so its code is checked as that of a reload.
    """

    def __init__(
        self,
        config: bytes,
        log: object | None,
        ended: Callable[[Process, str], None],
        *,
        generation: int,
        anew: bool = False,
    ) -> None:
        self.generation = generation
        self.remote: Remote | None = None
        """None while it starts, and when it has ended."""
        self.budget = limits.TIME_BUDGET
        """Seconds that one call may take."""
        self.refused: str | None = None
        """Why it does not run with this configuration, or this code."""
        self.pid = 0
        self.began = time.monotonic()
        self.until = inf
        """When its connections have had their time (monotonic)."""
        self._config = config
        self._log = log
        self._tell = ended
        self._anew = anew
        self._process: subprocess.Popen[bytes] | None = None
        self._decided = threading.Event()
        self._ended = threading.Event()
        # Not a thread of the pool's: the process dies with the thread that started it.
        self.thread = threading.Thread(target=self._run, name="proxylib-isolation", daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Until it serves or has ended, but no longer than START_TIMEOUT."""
        self._decided.wait(START_TIMEOUT)

    @property
    def overdue(self) -> bool:
        """Whether its connections have had their time."""
        return time.monotonic() >= self.until

    @property
    def connections(self) -> int:
        """How many it has."""
        remote = self.remote
        return 0 if remote is None else remote.connections

    def leave(self) -> None:
        """End it when its connections have ended; when they have had their time, with them."""
        # Looks once a while has passed: a connection may just be on its way.
        while not self._ended.wait(_LOOK_EVERY):
            if not self.connections or time.monotonic() > self.until + LEAVE_TIMEOUT:
                self.close()
                return

    def close(self) -> None:
        """End it; connections that are left are closed."""
        process = self._process
        if process is not None and process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
            if not self._ended.wait(LEAVE_TIMEOUT):
                process.kill()

    def _run(self) -> None:
        try:
            why = self._live()
        except OSError as error:
            why = f"could not be started: {error}"
        self.remote = None
        self._ended.set()
        self._decided.set()
        self._tell(self, why)

    def _live(self) -> str:
        """Run it; returns how it ended."""
        import proxylib_native

        memory = os.memfd_create("proxylib")
        pidfd = -1
        try:
            os.ftruncate(memory, proxylib_native.SHARED_BYTES)
            command = [sys.executable, "-I", "-m", "proxylib.sandbox.worker", str(memory)]
            process = self._process = subprocess.Popen(
                command + ["anew"] * self._anew,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[memory],
            )
            self.pid = process.pid
            pidfd = os.pidfd_open(process.pid)
            remote = proxylib_native.Remote(memory, process.pid, pidfd, self._log)
        finally:
            os.close(memory)
            if pidfd >= 0:
                os.close(pidfd)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(self._config)
            process.stdin.flush()
            said = json.loads(process.stdout.readline() or b"{}")
        except (OSError, ValueError):
            said = {}
        if "error" in said:
            self.refused = said["error"]
        elif "budget" in said:
            self.budget = float(said["budget"])
            self.remote = remote
            self._decided.set()
        status = process.wait()
        process.stdout.close()
        self.remote = None
        why = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        remote.died(why)
        return why


class Worker:
    """The processes of a parser under one filter configuration.

    config, log: as for `Process`. Raises ConfigError if a process refuses the configuration;
    one that merely does not start is tried again.
    """

    def __init__(self, config: Mapping[str, Any], log: object | None) -> None:
        self._config = json.dumps(config).encode() + b"\n"
        self._parser = str(config.get("parser", ""))
        self._log = log
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._pause = limits.WORKER_PAUSE
        self._leaving: list[Process] = []
        self._accepted = False
        with self._lock:
            self.present = self._start(1)
        self.present.wait()
        if self.present.refused is not None:
            raise ConfigError(self.present.refused)
        self._accepted = True

    @property
    def processes(self) -> list[Process]:
        """The present one, and those before it that have connections left; newest first."""
        with self._lock:
            return [self.present, *reversed(self._leaving)]

    def prepare(self) -> Process:
        """A process with the code as it is now, to `replace` the present one, or to close.

        Raises RegistrationError with the author's traceback if it does not run with it,
        or if too many are left from reloads before.
        """
        if len(self.processes) > limits.MAX_LEAVING:
            raise RegistrationError(
                f"{limits.MAX_LEAVING} older processes of parser {self._parser!r} still have"
                " connections: reload with a drain time, which ends them (parser status"
                " shows the processes; one that is killed makes room)"
            )
        process = self._start(self.present.generation + 1, anew=True)
        process.wait()
        if process.remote is None:
            process.close()
            raise RegistrationError(process.refused or "the new process does not start")
        return process

    def replace(self, fresh: Process, drain: float | None) -> None:
        """Have `fresh` take the new connections; the old one stays until its have ended.

        drain: seconds that they have, and those of processes before; None: as long as they
        like.
        """
        until = inf if drain is None else time.monotonic() + drain
        with self._lock:
            if self._stopping.is_set():
                # The listener has been removed meanwhile.
                fresh.close()
                return
            old, self.present = self.present, fresh
            # One that is not alive has nothing to leave.
            if old.remote is not None:
                self._leaving.append(old)
            for process in self._leaving:
                process.until = min(process.until, until)
            self._pause = limits.WORKER_PAUSE
            if fresh.remote is None:
                # It has ended since it was prepared, and nobody looked after it.
                self.present = self._start(fresh.generation)
        threading.Thread(target=old.leave, name="proxylib-leaving", daemon=True).start()

    def close(self) -> None:
        """End all processes; connections that are left are closed."""
        self._stopping.set()
        processes = self.processes
        for process in processes:
            process.close()
        for process in processes:
            process.thread.join(START_TIMEOUT)

    def _start(self, generation: int, *, anew: bool = False) -> Process:
        return Process(self._config, self._log, self._ended, generation=generation, anew=anew)

    def _ended(self, process: Process, why: str) -> None:
        """In the thread of a process that has ended."""
        with self._lock:
            if process in self._leaving:
                self._leaving.remove(process)
            refused = process.refused is not None and not self._accepted
            if process is not self.present or refused or self._stopping.is_set():
                return
        log.error("the process of parser %r %s", self._parser, process.refused or why)
        if time.monotonic() - process.began > limits.MAX_WORKER_PAUSE:
            self._pause = limits.WORKER_PAUSE
        self._stopping.wait(self._pause)
        self._pause = min(2 * self._pause, limits.MAX_WORKER_PAUSE)
        with self._lock:
            if self.present is process and not self._stopping.is_set():
                self.present = self._start(process.generation)
