"""What a generation is started from: the binary, the library, the bootstrap, the options.

Files are told apart by their content, and read again only when a look at them says
that they changed: a hundred sidecars share one look.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap

from node.envoy import LOG_LEVELS, check_release, command_line, find_envoy, find_library
from node.errors import SetupError, UsageError
from node.proxy.places import Places
from node.proxy.state import Fingerprint
from xds.ads.bootstrap import NodeBootstrap, build, to_json

DRAIN_TIME, PARENT_SHUTDOWN_TIME = 600, 900
"""Seconds, as Envoy has them by default."""

LOG_LIMIT = 16 << 20
"""Bytes of log that an Envoy may leave behind while nobody looks after it."""

Signature = tuple[tuple[str, int, int, int], ...]
"""Path, inode, size and time of change of files."""


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """One Envoy.

    folder: of its state, its bootstrap and its log, for it alone; it survives us.
    run_dir: of its sockets, for it alone. bootstrap: its admin_path is ours to choose.
    binary: None finds it. netns: path of the network namespace that it lives in; None
    is ours. drain_time, parent_shutdown_time: seconds from a take-over until the old
    generation has asked all its connections to end, and until it ends itself with those
    that are left; Envoy counts them from when the new one began to load its listeners, which
    may be some seconds before it takes over (proxylib.embed.ENVOY_POLICY_WAIT), so they
    are to be much longer than that where nothing may be lost. log_limit: bytes of its log,
    twice that with the one before.
    """

    folder: Path
    run_dir: Path
    bootstrap: NodeBootstrap
    binary: Path | None = None
    netns: Path | None = None
    concurrency: int = 1
    log_level: str = "warning"
    drain_time: int = DRAIN_TIME
    parent_shutdown_time: int = PARENT_SHUTDOWN_TIME
    log_limit: int = LOG_LIMIT

    def __post_init__(self) -> None:
        _ = self.places  # raises for what cannot be
        if self.log_level not in LOG_LEVELS:
            raise UsageError(f"log level {self.log_level!r}: one of {', '.join(LOG_LEVELS)}")
        if not 0 < self.drain_time <= self.parent_shutdown_time <= 24 * 3600:
            raise UsageError(
                f"a drain time of {self.drain_time} s with a parent-shutdown time of "
                f"{self.parent_shutdown_time} s: the first is at least 1 s and not longer than "
                "the second, which is a day at most"
            )

    @property
    def places(self) -> Places:
        return Places(self.folder.absolute(), self.run_dir.absolute())


@dataclass(frozen=True, slots=True)
class Plan:
    """A generation that could be started."""

    config: ProxyConfig
    binary: Path
    library: Path
    release: str
    fingerprint: Fingerprint

    def bootstrap(self, base: int, epoch: int) -> str:
        """The document for one generation."""
        return to_json(self.message(self.config.places.admin(base, epoch)))

    def message(self, admin: Path) -> Bootstrap:
        """The document with its admin interface at `admin`."""
        return build(replace(self.config.bootstrap, admin_path=admin))

    def command(self, base: int, epoch: int) -> list[str]:
        config, places = self.config, self.config.places
        return [
            *command_line(
                self.binary,
                places.bootstrap(base, epoch),
                concurrency=config.concurrency,
                log_level=config.log_level,
            ),
            *("--base-id", str(base)),
            *("--restart-epoch", str(epoch)),
            # Not the abstract names of its default: everybody in the namespace may use those.
            *("--socket-path", os.fspath(places.hot_restart)),
            *("--socket-mode", "600"),
            *("--drain-time-s", str(config.drain_time)),
            *("--parent-shutdown-time-s", str(config.parent_shutdown_time)),
            # It would end as soon as it found that the one before it had died.
            "--skip-hot-restart-parent-stats",
        ]


def make(config: ProxyConfig) -> Plan:
    """What would be started now. Raises SetupError."""
    binary, library = find_envoy(config.binary), find_library()
    release = _release(binary, _signature([binary]))
    try:
        fingerprint = Fingerprint(
            _digest(_signature([binary])),
            _digest(_signature(_module_files(library))),
            _text_digest(config, library),
        )
    except OSError as error:
        raise SetupError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return Plan(config, binary, library, release, fingerprint)


def signature(config: ProxyConfig) -> Signature | None:
    """Tells whether `make` would find other files than before; None: something is missing.

    It is a second old at most: all proxies look at the same files.
    """
    try:
        return _look(find_envoy(config.binary), int(time.monotonic()))
    except (SetupError, OSError):
        return None


@lru_cache(maxsize=8)
def _look(binary: Path, _second: int) -> Signature:
    return _signature([binary, *_module_files(find_library())])


def _module_files(library: Path) -> list[Path]:
    """The library, and the Python code that runs in it."""
    return [library, *sorted(library.parent.rglob("*.py"))]


def _signature(files: Iterable[Path]) -> Signature:
    return tuple(
        (os.fspath(path), known.st_ino, known.st_size, known.st_mtime_ns)
        for path in files
        for known in (path.stat(),)
    )


@lru_cache(maxsize=8)
def _digest(files: Signature) -> str:
    total = hashlib.sha256()
    for path, *_ in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


@lru_cache(maxsize=8)
def _release(binary: Path, _signature: Signature) -> str:
    return check_release(binary)


def _text_digest(config: ProxyConfig, library: Path) -> str:
    plan = Plan(config, Path(), library, "", Fingerprint())
    text = "\0".join([*plan.command(0, 0), plan.bootstrap(0, 0), str(config.netns)])
    return hashlib.sha256(text.encode()).hexdigest()
