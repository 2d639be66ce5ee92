"""Starts the processes of isolated parsers, and starts them again.

A `Worker` is the processes of one filter configuration, one after the other.  A
thread waits for the present one to end, tells all who wait for it (native/isolate.c),
and starts the next one after a pause that grows while they die young.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from proxylib import limits
from proxylib.errors import ConfigError

if TYPE_CHECKING:
    from proxylib_native import Remote

log = logging.getLogger(__name__)

START_TIMEOUT = 10.0
"""Seconds that a worker has to start Python, import its parser and hear of its policy."""


class Worker:
    """The process of a parser.

    config: the filter's configuration. log: the AccessLog (proxylib_native) of the
    host, to which the parser's entries go. Raises ConfigError if the process refuses it;
    one that merely does not start is tried again.
    """

    def __init__(self, config: Mapping[str, Any], log: object | None) -> None:
        self.remote: Remote | None = None
        """The present process; None while there is none."""
        self.budget = limits.TIME_BUDGET
        """Seconds that one call may take."""
        self.starts = 0
        self._config = json.dumps(config).encode() + b"\n"
        self._parser = str(config.get("parser", ""))
        self._log = log
        self._refused: str | None = None
        self._started = threading.Event()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        # Not a thread of the pool's: the worker dies with the thread that started it.
        self._thread = threading.Thread(target=self._run, name="proxylib-isolation", daemon=True)
        self._thread.start()
        self._started.wait(START_TIMEOUT)
        if self._refused is not None:
            raise ConfigError(self._refused)

    def close(self) -> None:
        """End the process; connections that are left are closed."""
        self._stopping.set()
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
        self._thread.join(START_TIMEOUT)

    @property
    def pid(self) -> int | None:
        """The present process's; None while there is none."""
        return self._process.pid if self._process is not None and self.remote else None

    def _run(self) -> None:
        pause = limits.WORKER_PAUSE
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                why = self._live()
            except OSError as error:
                why = f"could not be started: {error}"
            self._started.set()
            if self._stopping.is_set() or self._refused is not None:
                return
            log.error("the process of parser %r %s", self._parser, why)
            if time.monotonic() - began > limits.MAX_WORKER_PAUSE:
                pause = limits.WORKER_PAUSE
            self._stopping.wait(pause)
            pause = min(2 * pause, limits.MAX_WORKER_PAUSE)

    def _live(self) -> str:
        """Run one process; returns how it ended."""
        import proxylib_native

        memory = os.memfd_create("proxylib")
        pidfd = -1
        try:
            os.ftruncate(memory, proxylib_native.SHARED_BYTES)
            self.starts += 1
            process = self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "proxylib.sandbox.worker", str(memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[memory],
            )
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
            self._refused = said["error"]
        elif "budget" in said:
            self.budget = float(said["budget"])
            self.remote = remote
            self._started.set()
        status = process.wait()
        process.stdout.close()
        self.remote = None
        why = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        remote.died(why)
        return why
