"""What must be known to put everything back: a small file, written before anything is changed.

It holds sysctls' values from before us, by namespace, and where sidecars are attached. A namespace
is told by its path and by the kernel's number for it, so that another one, which has the same
process number years later, is left alone. After a reboot nothing of it is true any more.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpf.errors import BpfError

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class Namespace:
    """What was changed in one. path: empty for the agent's own."""

    path: str
    sysctls: dict[str, str] = field(default_factory=dict)
    sidecars: dict[int, int] = field(default_factory=dict)
    """Endpoint number to ifindex."""


@dataclass(slots=True)
class Memory:
    """The file's content; by the kernel's number of each namespace."""

    file: Path
    namespaces: dict[int, Namespace] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path) -> Memory:
        """What was remembered since the machine started; a file that is cut short is told of."""
        memory = cls(file)
        try:
            told = json.loads(file.read_text())
            if told["boot"] == _boot():
                memory.namespaces = {int(n): _namespace(at) for n, at in told["namespaces"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read, and sysctls not be put back by it: %r", file, error)
        return memory

    def namespace(self, cookie: int, path: str) -> Namespace:
        """What is remembered of a namespace, to be changed and saved."""
        found = self.namespaces.setdefault(cookie, Namespace(path))
        found.path = path
        return found

    def save(self) -> None:
        """Write the file, whole or not at all. Raises `BpfError`."""
        told = {
            "boot": _boot(),
            "namespaces": {
                n: {"path": at.path, "sysctls": at.sysctls, "sidecars": at.sidecars}
                for n, at in self.namespaces.items()
            },
        }
        fresh = self.file.with_suffix(f".{os.getpid()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh.write_text(json.dumps(told, indent=1))
            fresh.rename(self.file)
        except OSError as error:
            raise BpfError(
                f"{self.file} cannot be written, so nothing is changed that it is to put back: "
                f"{error.strerror}"
            ) from error

    def forget(self) -> None:
        """Take the file away."""
        self.namespaces.clear()
        self.file.unlink(missing_ok=True)


def _boot() -> str:
    return BOOT_ID.read_text().strip()


def _namespace(told: dict[str, Any]) -> Namespace:
    sidecars = {int(number): int(index) for number, index in told["sidecars"].items()}
    sysctls = {str(name): str(value) for name, value in told["sysctls"].items()}
    return Namespace(str(told["path"]), sysctls, sidecars)
