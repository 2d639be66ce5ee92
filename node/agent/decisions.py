"""Reads the access log of every proxy of this node: counts what was decided, and shows it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from prometheus_client import CollectorRegistry

from proxylib.accesslog import AccessLogServer
from proxylib.accesslog.metrics import Metrics
from proxylib.proto.accesslog_pb2 import LogEntry

_WAIT = 0.2
"""Longest wait for entries at a time, seconds: how long stopping takes."""


class Decisions:
    """Listens at `path` while its block lasts; `group` may connect too.

    show: is given the entries, on the thread that reads them.
    """

    def __init__(
        self,
        path: Path,
        registry: CollectorRegistry,
        *,
        group: int | None,
        show: Callable[[Sequence[LogEntry]], None],
    ) -> None:
        self._path = path
        self._show = show
        self._group = group
        self._metrics = Metrics(registry)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)

    def __enter__(self) -> Self:
        self._server = AccessLogServer(self._path)
        if self._group is not None:
            os.chown(self._path, -1, self._group)
            self._path.chmod(0o660)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._server.close()

    @property
    def working(self) -> bool:
        """False if reading has ended by itself, which is a fault of ours."""
        return self._stopping.is_set() or self._thread.is_alive()

    @property
    def clients(self) -> int:
        """How many library instances are connected."""
        return self._server.clients

    @property
    def entries(self) -> int:
        """How many entries were read."""
        return self._server.entries

    def _run(self) -> None:
        while not self._stopping.is_set():
            entries = self._server.read(timeout=_WAIT)
            self._metrics.observe(entries)
            self._show(entries)
