"""Which generations of Envoy run, on the disk: what the next agent takes over.

The file is replaced as a whole.  Where it is missing or cannot be read, the processes
tell the same, by their command lines and by a variable of their environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from node.errors import SetupError
from node.proxy import process
from node.proxy.places import Places
from node.proxy.process import Process
from proxylib.replacing import replace_file

FORMAT = 1
"""The format of the file; another one is not understood."""

MAX_SIZE = 1 << 20
"""Largest file that is read, bytes. It has two or three generations."""

_BOOTSTRAP = re.compile(r"bootstrap-(\d{1,9})-(\d{1,9})\.json")
"""The name of a bootstrap file (Places.bootstrap). It tells our processes from others."""

VARIABLE = "PROXYLIB_GENERATION"
"""Of an Envoy's environment: what it was started from."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Role(StrEnum):
    """What a generation does."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a generation was started from: SHA-256 of the binary, of the library with its
    Python code, and of the bootstrap with the command line. Empty: not known."""

    binary: str = ""
    module: str = ""
    bootstrap: str = ""

    def differences(self, other: Fingerprint) -> list[str]:
        """The names of what is not the same."""
        return [name for name in self.__slots__ if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True, slots=True)
class Generation:
    """One Envoy process.

    pid, started: as in Process. base: its base id, shared by the generations that take over
    from each other. epoch: its restart epoch. since: when it got its role, in seconds
    since 1970. ends: when a draining one ends.
    """

    pid: int
    started: int
    base: int
    epoch: int
    role: Role
    since: float
    ends: float = 0.0
    release: str = ""
    fingerprint: Fingerprint = Fingerprint()


def variable(generation: Generation) -> str:
    """The value of VARIABLE."""
    return json.dumps([generation.release, *asdict(generation.fingerprint).values()])


def write(path: Path, generations: Iterable[Generation]) -> None:
    """Put the state on the disk. Raises SetupError."""
    value = {
        "format": FORMAT,
        "boot": _boot(),
        "generations": [asdict(item) for item in generations],
    }
    write_file(path, json.dumps(value, indent=1) + "\n")


def write_file(path: Path, text: str) -> None:
    """A file that is the old one or the new one, and only ours. Raises SetupError."""
    try:
        replace_file(path, text, 0o600)
    except OSError as error:
        raise SetupError(f"{path}: cannot be written: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Left:
    """What somebody before us left. gone: what the file has and no longer runs. problem:
    what is wrong with the file."""

    running: list[tuple[Generation, Process]]
    gone: list[Generation]
    problem: str = ""


def left(places: Places) -> Left:
    """What runs. The processes are looked for if the file does not lead to one that serves."""
    problem, known = "", list[Generation]()
    try:
        known = _read(places.state)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        problem = f"{places.state}: not understood ({error}); the processes are looked for"
    running = [(item, p) for item in known if (p := _held(places, item)) is not None]
    pids = {item.pid for item, _ in running}
    if not any(item.role is not Role.DRAINING for item, _ in running):
        for found in process.with_argument(os.fspath(places.folder)):
            made = _from_process(places, found)
            if made is None or made.pid in pids:
                found.close()
            else:
                running.append((made, found))
    return Left(running, [item for item in known if item.pid not in pids], problem)


def with_bootstrap(places: Places) -> list[tuple[int, int]]:
    """Base id and epoch of every generation that has a bootstrap there."""
    names = (_BOOTSTRAP.fullmatch(path.name) for path in places.folder.iterdir())
    return [(int(name[1]), int(name[2])) for name in names if name is not None]


def _held(places: Places, item: Generation) -> Process | None:
    found = Process.open(item.pid, item.started)
    if found is None:
        return None
    # After a restore from a snapshot, number and time may be those of another process.
    if os.fspath(places.bootstrap(item.base, item.epoch)) in found.arguments():
        return found
    found.close()
    return None


def _from_process(places: Places, found: Process) -> Generation | None:
    for argument in map(Path, found.arguments()):
        name = _BOOTSTRAP.fullmatch(argument.name)
        if name is not None and argument.parent == places.folder:
            base, epoch = map(int, name.groups())
            # Starting: whether it serves already is soon asked.
            made = Generation(found.pid, found.started, base, epoch, Role.STARTING, 0.0)
            with contextlib.suppress(ValueError, TypeError):
                release, *rest = map(str, json.loads(found.environment().get(VARIABLE, "")))
                return replace(made, release=release, fingerprint=Fingerprint(*rest))
            return made
    return None


def _read(path: Path) -> list[Generation]:
    with path.open("rb") as file:
        data = file.read(MAX_SIZE + 1)
    if len(data) > MAX_SIZE:
        raise ValueError(f"larger than {MAX_SIZE} bytes")
    value = json.loads(data)
    if value["format"] != FORMAT:
        raise ValueError(f"format {value['format']!r}, this version writes {FORMAT}")
    if value["boot"] != _boot():
        return []  # Whatever ran then does not run now.
    return [_generation(item) for item in value["generations"]]


def _generation(value: dict[str, Any]) -> Generation:
    fingerprint = Fingerprint(**value["fingerprint"])
    found = Generation(**value | {"fingerprint": fingerprint})
    for number in (found.pid, found.started, found.base, found.epoch):
        if type(number) is not int or number < 0:
            raise ValueError(f"{number!r} is no number of a process, of a base id or of an epoch")
    return replace(found, role=Role(found.role), since=float(found.since), ends=float(found.ends))


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
