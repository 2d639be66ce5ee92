"""Network namespaces: which one a name, a path or a process means, and work inside one.

A path or a process id may mean another namespace tomorrow.  So may an inode number: the kernel
gives that of a namespace which is gone to the very next one.  A namespace's *cookie*
(SO_NETNS_COOKIE, Linux 5.14) is given once between two boots, so the cookie and the boot's own id
are who a namespace is.  A file descriptor would be as good, but it would keep a namespace whose
container has ended alive, with its interfaces and addresses.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NAMED = (Path("/run/netns"), Path("/run/docker/netns"))
"""Where namespaces have names: iproute2's folder (and CNI's runtimes'), and Docker's."""

MAX_PATH = 4096
"""Longest path, bytes (PATH_MAX of Linux)."""

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703
_SO_NETNS_COOKIE = 71

_libc = ctypes.CDLL(None, use_errno=True)


class LinkError(ValueError):
    """An endpoint cannot be attached as asked for; the text says why, and what would do."""


def path_of(netns: str) -> str:
    """The path of a namespace given by name (``ip netns``) or by absolute path.

    Raises LinkError for what is neither. Whether there is such a one is open_namespace's.
    """
    if not netns.isprintable() or len(os.fsencode(netns)) > MAX_PATH or netns in ("", ".", ".."):
        raise LinkError(f"{netns[:80]!r} is no name of a network namespace")
    if "/" not in netns:
        return str(NAMED[0] / netns)
    if not netns.startswith("/"):
        raise LinkError(f"{netns!r}: a namespace is given by its name, or by an absolute path")
    return netns


@contextmanager
def open_namespace(path: str) -> Iterator[int]:
    """A descriptor of the namespace at `path`, as long as the block lasts. Raises LinkError."""
    try:
        # Namespaces are regular files; to open something else might block, or set it going.
        regular = stat.S_ISREG(os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) if regular else -1
    except OSError as error:
        raise LinkError(_missing(path, error)) from error
    try:
        if descriptor < 0 or not _is_network(descriptor):
            raise LinkError(
                f"{path!r} is no network namespace (a file that is left of one, if it is in "
                f"{NAMED[0]})"
            )
        yield descriptor
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _missing(path: str, error: OSError) -> str:
    parts = Path(path).parts
    if parts[:2] == ("/", "proc") and parts[3:] == ("ns", "net"):
        return f"there is no process {parts[2]} here, or it has ended ({error.strerror})"
    if Path(path).parent == NAMED[0]:
        there = sorted(name for name in _names(NAMED[0]) if name.isprintable())[:10]
        known = f"there are: {', '.join(there)}" if there else f"{NAMED[0]} has none"
        return f"there is no network namespace {Path(path).name!r} ({known})"
    return f"{path!r}: there is no such network namespace ({error.strerror})"


def _is_network(descriptor: int) -> bool:
    try:
        return fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False


def inside(descriptor: int, work: Callable[[], T]) -> T:
    """What `work` returns in the namespace of `descriptor`.

    It runs in a thread of its own, which ends there: nobody else's namespace changes. Sockets
    that it makes belong to that namespace for good. Raises LinkError without the right to enter.
    """

    def entered() -> T:
        if _libc.setns(descriptor, _CLONE_NEWNET):
            reason = os.strerror(ctypes.get_errno())
            raise LinkError(f"a network namespace cannot be entered ({reason}): this needs root")
        return work()

    with ThreadPoolExecutor(1, "netns") as thread:
        return thread.submit(entered).result()


def cookie() -> int:
    """Who the calling thread's namespace is, until the machine boots again."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as probe:
        value = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    return int.from_bytes(value, sys.byteorder)


def boot_id() -> str:
    """Which boot of the machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def path_of_process(pid: int) -> str:
    """The path of the namespace that a process is in: the one with a name, if it has one.

    A name outlives the process. Raises LinkError if there is no such process.
    """
    path = f"/proc/{pid}/ns/net"
    with open_namespace(path) as descriptor:
        wanted = _identity(os.fstat(descriptor))
        return next((p for p in named_paths() if _identity_at(p) == wanted), path)


def named_paths() -> Iterator[str]:
    """Every path that may be a namespace's and outlives processes."""
    for folder in NAMED:
        yield from (str(folder / name) for name in sorted(_names(folder)))


def all_paths() -> Iterator[str]:
    """A path for each namespace that can be seen from here, those with names first."""
    seen: set[tuple[int, int]] = set()
    processes = (f"/proc/{name}/ns/net" for name in _names(Path("/proc")) if name.isdigit())
    for path in (*named_paths(), *processes):
        found = _identity_at(path)
        if found is not None and found not in seen:
            seen.add(found)
            yield path


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _identity_at(path: str) -> tuple[int, int] | None:
    try:
        return _identity(os.stat(path))
    except OSError:
        return None
