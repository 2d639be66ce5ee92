"""Header values that a policy names and does not hold: a folder of files.

Secret ``namespace/name`` is the file of that path in the folder, or the only file
of a folder of that path, as Kubernetes mounts a secret with one key.  A file is
read again when it has changed.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

MAX_SECRET = 8192
"""Longest secret, bytes: servers take no longer header."""

RECHECK_NS = 1_000_000_000
"""How long a value is used before its file is looked at again."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}/[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_VALUE = re.compile(rb"[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?")


def is_secret_name(name: str) -> bool:
    """Whether `name` is ``namespace/name``; it then cannot lead out of the folder."""
    return _NAME.fullmatch(name) is not None


@dataclass(eq=False)
class Secrets:
    """The secrets in `folder`; without one there are none."""

    folder: Path | None = None
    _known: dict[str, tuple[int, bytes | None]] = field(default_factory=dict)

    def value(self, name: str) -> bytes | None:
        """The value of secret `name`; None if there is none that a header could have.

        A line end at the end of the file is not part of it.
        """
        now = time.monotonic_ns()
        known = self._known.get(name)
        if known is not None and now - known[0] < RECHECK_NS:
            return known[1]
        value = self._read(name)
        if value is None and (known is None or known[1] is not None):
            log.warning("secret %s: no usable value; rules that need it do not match", name)
        self._known[name] = (now, value)
        return value

    def _read(self, name: str) -> bytes | None:
        if self.folder is None or not is_secret_name(name):
            return None
        path = self.folder / name
        try:
            if path.is_dir():
                files = [f for f in path.iterdir() if f.is_file() and not f.name.startswith(".")]
                if len(files) != 1:
                    return None
                path = files[0]
            with path.open("rb") as file:
                value = file.read(MAX_SECRET + 3)
        except OSError:
            return None
        value = value.removesuffix(b"\n").removesuffix(b"\r")
        return value if len(value) <= MAX_SECRET and _VALUE.fullmatch(value) else None


NO_SECRETS = Secrets()
