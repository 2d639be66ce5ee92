"""Envoy's log file: its last lines, and its rotation while Envoy appends to it.

Envoy keeps the file open, and may be alone with it.  What it writes beyond its limit is
lost then; we see to it that this is rare.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

TAIL = 40
"""Lines that are shown of a log."""

_TAIL_SIZE = 64 << 10
"""Bytes in which these are looked for."""


def position(path: Path) -> int:
    """Where the log ends now."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def tail(path: Path, start: int = 0) -> list[str]:
    """The last lines of what was written from `start` on."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - _TAIL_SIZE, start if start <= end else 0))
            data = file.read(_TAIL_SIZE)
    except OSError:
        return []
    lines = (line.rstrip() for line in data.decode(errors="replace").splitlines())
    return [line for line in lines if line][-TAIL:]


def obituary(what: str, lines: list[str]) -> str:
    """`what`, followed by the last lines of Envoy's log."""
    text = "".join(f"\n  envoy: {line}" for line in lines)
    return f"{what}; the last lines of its log:{text}" if text else f"{what}; it logged nothing"


def rotate(path: Path, before: Path, limit: int) -> None:
    """Keep what a log that has grown over half its limit has at `before`, and empty it.

    Lines that are written in between are lost. Whatever cannot be done is left.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_size <= limit // 2:
            return
        new = before.with_name(f".{before.name}")
        try:
            shutil.copyfile(path, new)
            new.rename(before)
        except OSError:
            new.unlink(missing_ok=True)  # The disk is full: then the one before is not kept.
        os.truncate(path, 0)
