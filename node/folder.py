"""The private folder of a running proxy: its sockets, and Envoy's bootstrap document.

Whoever made a folder holds a lock (flock) on it for as long as it lives, however it
ends.  So a folder whose lock can be had belongs to nobody any more: what a killed
command left behind is removed at the next start.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "proxylib-run-"

_UNLOCKED = ".proxylib-new-"
"""Prefix until the folder is locked: those are nobody's business."""

MAX_FOLDER = 80
"""Longest path of the folder, so that the sockets in it stay below 108 bytes."""

_TRIES = 5
"""How often a folder is removed that is not empty at once."""

_RANDOM = 8
"""Characters that mkdtemp adds."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """A temporary folder that only we can enter, short enough for sockets' paths.

    It is in the system's temporary folder, or in /tmp if the path is too long there.
    """
    parent = Path(tempfile.gettempdir())
    if len(os.fsencode(parent / PREFIX)) + _RANDOM > MAX_FOLDER:
        parent = Path("/tmp")
    remove_dead(parent)
    made = Path(tempfile.mkdtemp(prefix=_UNLOCKED, dir=parent))
    lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Without locks (some network file systems) nobody can have ours either.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder = made.rename(parent / made.name.replace(_UNLOCKED, PREFIX, 1))
        try:
            yield folder
        finally:
            _remove(folder)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    # A program that is just ending may still put something into it.
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def remove_dead(parent: Path) -> None:
    """Remove the folders in `parent` that commands of ours left when they were killed."""
    with suppress(OSError):
        for folder in parent.glob(f"{PREFIX}*"):
            with suppress(OSError):
                _remove_if_dead(folder)


def _remove_if_dead(folder: Path) -> None:
    # A link to elsewhere, or another user's folder, is not opened or not removed.
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
