"""Replaces a file as a whole: after a crash it is the old one or the new one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, text: str, mode: int = 0o666) -> None:
    """Have `path` hold `text`, on the disk when this returns.

    mode: permissions, less what the umask takes. Raises OSError, and has then changed
    nothing and left nothing behind.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        with open(new, "w", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
