"""Where the files and sockets of one proxy are."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from node.errors import SetupError, UsageError

MAX_SOCKET_PATH = 107
"""Longest path of a Unix socket, bytes (unix(7))."""

_LONGEST_SOCKET = "hot_udp_parent_2147483647"


@dataclass(frozen=True, slots=True)
class Places:
    """folder: of its state, its bootstraps and its log. run_dir: of its sockets. Both are
    for one proxy alone, and absolute."""

    folder: Path
    run_dir: Path

    def __post_init__(self) -> None:
        excess = len(os.fsencode(self.run_dir / _LONGEST_SOCKET)) - MAX_SOCKET_PATH
        if excess > 0:
            raise UsageError(f"{self.run_dir}: {excess} bytes too long for sockets in it")

    @property
    def state(self) -> Path:
        return self.folder / "state.json"

    @property
    def log(self) -> Path:
        return self.folder / "envoy.log"

    @property
    def log_before(self) -> Path:
        """What the log was rotated to."""
        return self.folder / "envoy.log.1"

    @property
    def hot_restart(self) -> Path:
        """How the sockets begin by which generations speak to each other."""
        return self.run_dir / "hot"

    def bootstrap(self, base: int, epoch: int) -> Path:
        """The bootstrap of a generation; by this argument its process is known."""
        return self.folder / f"bootstrap-{base}-{epoch}.json"

    def admin(self, base: int, epoch: int) -> Path:
        """The admin socket of a generation."""
        return self.run_dir / f"admin-{base}-{epoch}"

    @property
    def admin_link(self) -> Path:
        """Leads to the admin socket of the generation that serves."""
        return self.run_dir / "admin.sock"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    def clear(self) -> None:
        """Take away what is left when there is no generation any more."""
        ours = [self.state, self.log, self.log_before, self.lock, self.admin_link]
        for path in ours:
            path.unlink(missing_ok=True)
        for folder in (self.folder, self.run_dir):
            with contextlib.suppress(OSError):  # somebody else has something there
                folder.rmdir()

    def take(self) -> int:
        """Make the folders, and lock them: a descriptor to close.

        Raises SetupError if somebody else has them.
        """
        for path in (self.folder, self.run_dir):
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise SetupError(f"{path}: cannot be made: {error.strerror}") from error
        lock = os.open(self.lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise SetupError(f"{self.folder}: an agent looks after the Envoy there") from error
        return lock
