"""What is told about a proxy: how it is, and what happens to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class ProxyState(StrEnum):
    """STOPPED: nobody asked for it. RELOADING: it serves, and its successor starts.
    WAITING: it died, and has to wait until it is started again."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    RELOADING = "reloading"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Draining:
    """An old generation, and when it ends at the latest, in seconds since 1970."""

    pid: int
    epoch: int
    ends: float


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """How it is with an Envoy.

    pid, epoch, release, since, admin: of the generation that serves; pid 0: none does.
    Times are in seconds since 1970. restarts: starts after a death. failures: deaths in
    a row, 0 again when it has run well. reload_waits: a hot restart is asked for, and
    waits for an old generation to end. last_error: why it last died, or why a hot
    restart was given up; empty since one was well. next_start: the end of WAITING.
    """

    state: ProxyState = ProxyState.STOPPED
    pid: int = 0
    epoch: int = 0
    release: str = ""
    since: float = 0.0
    admin: Path | None = None
    restarts: int = 0
    failures: int = 0
    draining: tuple[Draining, ...] = ()
    reload_waits: bool = False
    last_error: str = ""
    next_start: float = 0.0


@dataclass(frozen=True, slots=True)
class ProxyEvent:
    """Something that happened, in words and for programs; `role` as in node.console."""

    kind: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)
    role: str = "dim"
