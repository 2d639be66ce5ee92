"""A server to stand behind the proxy, and the command line as a real process."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demos.stage import line_server
from node.address import Address

ROOT = Path(__file__).parents[2]

READY_TIMEOUT = 60


class Command:
    """``proxylib ...`` as a process; its stdout lines are parsed as JSON.

    read: take its lines as they come; else the test reads its stdout.
    """

    def __init__(
        self, *arguments: object, env: dict[str, str] | None = None, read: bool = True
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "node", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.seen: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        if read:
            self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next object on stdout for which `wanted` is true."""
        while True:
            line = self.lines.get(timeout=READY_TIMEOUT)
            if line is None:
                raise AssertionError(f"ended; saw {self.seen}; stderr: {self.stderr()}")
            self.seen.append(json.loads(line))
            if wanted(self.seen[-1]):
                return self.seen[-1]

    def event(self, kind: str) -> dict[str, Any]:
        return self.until(lambda item: item.get("event") == kind)

    def decision(self) -> dict[str, Any]:
        return self.until(lambda item: item.get("type") in ("request", "denied"))

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def end(self, number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._reader.ident is not None:
            self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*arguments: object, **options: Any) -> Command:
        started.append(Command(*arguments, **options))
        return started[-1]

    yield start
    for item in started:
        item.close()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for a folder of sockets."""
    with tempfile.TemporaryDirectory(prefix="node") as path:
        yield Path(path)


@pytest.fixture
def echo() -> Iterator[Address]:
    """A server that answers each line with itself."""
    with line_server(Address("127.0.0.1", 0), lambda line: line) as address:
        yield address
