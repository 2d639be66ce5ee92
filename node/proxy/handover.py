"""What hot restart needs beyond its options: names, leftovers, and two of its traps.

Two generations share a base id, under which they find each other's sockets in our run
directory and a piece of shared memory in /dev/shm.

A generation that ends while it starts leaves the mark "initializing" in the shared
memory, and every later one is refused.  And one whose predecessor died early fails when
the time comes to tell it to end: somebody has to be at the predecessor's socket.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from pathlib import Path

from node.proxy.places import Places

SHARED_MEMORY = Path("/dev/shm")

MAX_BASE = (1 << 31) // 10 - 1
"""Largest base id. Envoy multiplies it by ten and adds the epoch; from 2**31 on it has
another name for its sockets than this number."""

_CONCURRENT = 3
"""Envoy's names of sockets repeat after so many epochs."""

_LAYOUT = struct.Struct("=QQ40x40xQ")
"""Envoy's shared memory, version 11: size, version, two mutexes, flags."""

_VERSION = 11

_FLAGS = _LAYOUT.size - 8


def new_base() -> int:
    """A base id that nobody on this machine has."""
    while True:
        base = random.randint(1, MAX_BASE)
        if not shared_memory(base).exists():
            return base


def shared_memory(base: int) -> Path:
    """What generations with this base id share."""
    return SHARED_MEMORY / f"envoy_shared_memory_{base * 10}"


def taken_over(base: int) -> bool:
    """True if the generation that attached last has the one before drain."""
    return _flags(base) == 0


def clear_initializing(base: int) -> None:
    """Take the mark away that one leaves which ended before it had taken over.

    Only while none with this base id starts.
    """
    if _flags(base):
        with shared_memory(base).open("r+b") as file:
            os.pwrite(file.fileno(), bytes(8), _FLAGS)


def parent_socket(places: Places, base: int, epoch: int) -> Path:
    """Where a generation hears what the next one tells it."""
    return _socket(places, "parent", base, epoch)


def stand_in(places: Places, base: int, epoch: int) -> socket.socket | None:
    """Take the place of a generation that died early; None if that cannot be done.

    As long as the socket is open, the next one's farewell to it arrives.
    """
    path = parent_socket(places, base, epoch)
    place = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        path.unlink(missing_ok=True)
        place.bind(os.fspath(path))
    except OSError:
        place.close()
        return None
    return place


def tidy(places: Places, base: int) -> None:
    """Take away what generations with this base id leave behind. None of them runs."""
    shared_memory(base).unlink(missing_ok=True)
    for kind in ("parent", "child", "udp_parent", "udp_child"):
        for epoch in range(_CONCURRENT):
            _socket(places, kind, base, epoch).unlink(missing_ok=True)


def _socket(places: Places, kind: str, base: int, epoch: int) -> Path:
    begin = places.hot_restart
    return begin.with_name(f"{begin.name}_{kind}_{base * 10 + epoch % _CONCURRENT}")


def _flags(base: int) -> int | None:
    """What the shared memory says; None if it is not there, or not as we know it."""
    try:
        size, version, flags = _LAYOUT.unpack(shared_memory(base).read_bytes())
    except (OSError, struct.error):
        return None
    return int(flags) if (size, version) == (_LAYOUT.size, _VERSION) else None
