"""Doing something in another network namespace, given by a path such as /proc/PID/ns/net.

A namespace belongs to a thread: a thread of its own goes there, and what it opens (sockets)
stays there; no other thread of the process notices.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

from bpf.errors import BpfError

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
SO_NETNS_COOKIE = 71

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceGone(BpfError):
    """The network namespace cannot be entered: mostly, it is not there any more."""


def within(path: str, action: Callable[[], T]) -> T:
    """What `action` returns in the namespace `path`; an empty path is this thread's own.

    Raises `NamespaceGone`, and what `action` raises. The action may use pyroute2, which
    cannot run in a thread that runs an event loop: from there too it has another one.
    """
    if not path and not _runs_event_loop():
        return action()
    answer: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            if path:
                _enter(path)
            answer.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=f"netns {path}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answer[0]


def _runs_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _enter(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceGone(f"network namespace {path}: {error.strerror}") from error
    try:
        if _libc.setns(fd, CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise NamespaceGone(f"network namespace {path}: {reason}")
    finally:
        os.close(fd)


def cookie() -> int:
    """The kernel's number of this thread's namespace: never used again until it reboots."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int(struct.unpack("=Q", raw)[0])
