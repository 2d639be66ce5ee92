"""A process that is not our child: known by its number and its start time, held by a pidfd.

A process number is given to somebody else some time after its process has ended.  So
nothing is signalled by number: a pidfd is opened first, and what it stands for is
looked at then; from there on it stands for that process or for none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")

_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
"""ioctl PIDFD_GET_INFO with the first version of its structure, 64 bytes (linux/pidfd.h)."""

_INFO_EXIT = 1 << 3
"""PIDFD_INFO_EXIT: how it ended. Since Linux 6.15, and only when its parent has reaped it."""

_MASK, _EXIT_CODE = 0, 60
"""Offsets in that structure."""

_KILL_TIMEOUT = 10.0
"""Seconds until a killed process has ended: the kernel frees its memory first."""

_STATE, _STARTED, _EXIT = 0, 19, 49
"""Fields 3, 22 and 52 of /proc/PID/stat, counted from field 3."""


class Process:
    """A process that runs, or did when this was made.

    pid, started: its number, and its start time in clock ticks since boot, which
    together name a process as long as the machine is up.
    """

    def __init__(self, pid: int, started: int, descriptor: int) -> None:
        self.pid = pid
        self.started = started
        self._descriptor = descriptor

    @classmethod
    def open(cls, pid: int, started: int | None = None) -> Process | None:
        """The process with number `pid`; None if there is none, or none that started then."""
        try:
            descriptor = os.pidfd_open(pid)
        except (OSError, OverflowError, ValueError):
            return None
        found = _start_time(pid)
        process = cls(pid, found or 0, descriptor)
        if found is None or started not in (None, found) or process.ended:
            process.close()
            return None
        return process

    def fileno(self) -> int:
        """Becomes readable when it has ended."""
        return self._descriptor

    @property
    def ended(self) -> bool:
        return self.wait(0)

    def wait(self, timeout: float) -> bool:
        """True as soon as it has ended; False if it runs after `timeout` seconds."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(max(timeout, 0) * 1000))

    def send(self, number: int) -> None:
        """Signal it; nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def end(self, grace: float) -> None:
        """SIGTERM, and SIGKILL if it runs `grace` seconds later."""
        self.send(signal.SIGTERM)
        if not self.wait(grace):
            self.send(signal.SIGKILL)
            self.wait(_KILL_TIMEOUT)

    def arguments(self) -> list[str]:
        """Its command line; empty if it has ended."""
        return _words(self.pid, "cmdline")

    def environment(self) -> dict[str, str]:
        """What it was started with; empty if it has ended, or is not ours to look into."""
        pairs = (word.partition("=") for word in _words(self.pid, "environ"))
        return {name: value for name, _, value in pairs}

    def status(self) -> int | None:
        """How it ended: an exit status, negative for a signal. None if nobody can tell."""
        fields = _fields(self.pid)
        if fields is not None and (int(fields[_STARTED]), fields[_STATE]) == (self.started, b"Z"):
            return os.waitstatus_to_exitcode(int(fields[_EXIT]))
        structure = bytearray(64)
        struct.pack_into("=Q", structure, _MASK, _INFO_EXIT)
        try:
            # Its parent has reaped it. Whose child it was does not matter here.
            fcntl.ioctl(self._descriptor, _GET_INFO, structure)
        except OSError:
            return None
        (mask,) = struct.unpack_from("=Q", structure, _MASK)
        (code,) = struct.unpack_from("=i", structure, _EXIT_CODE)
        return os.waitstatus_to_exitcode(code) if mask & _INFO_EXIT else None

    def reap(self) -> None:
        """Where we are the machine's (or the container's) first process, it is ours to bury."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._descriptor, os.WEXITED | os.WNOHANG)

    def close(self) -> None:
        """Let go of it; it goes on."""
        os.close(self._descriptor)


def with_argument(prefix: str) -> Iterator[Process]:
    """Every process that has an argument with this beginning."""
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        pid = int(entry.name)
        if any(argument.startswith(prefix) for argument in _words(pid, "cmdline")):
            process = Process.open(pid)
            if process is not None:
                yield process


def _words(pid: int, name: str) -> list[str]:
    """What a file of /proc/PID has, ended by zeros."""
    try:
        data = (_PROC / str(pid) / name).read_bytes()
    except OSError:
        return []
    return os.fsdecode(data).split("\0")


def _start_time(pid: int) -> int | None:
    fields = _fields(pid)
    return None if fields is None else int(fields[_STARTED])


def _fields(pid: int) -> list[bytes] | None:
    """/proc/PID/stat (proc(5)) from field 3 on; None for a process that is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # Its name may have anything in it, but is in the last parentheses.
    return text.rpartition(b")")[2].split()
