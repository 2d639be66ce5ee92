"""A Unix socket at a path, that never has a wider mode than asked for.

Not by the umask: that is the whole process's, and the process is a host's with other
threads.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def bind(path: Path, kind: socket.SocketKind, mode: int) -> socket.socket:
    """A socket of `kind` bound at `path`, with permission bits `mode`. Raises OSError."""
    bound = socket.socket(socket.AF_UNIX, kind)
    try:
        # Linux gives the file the mode of the socket, less the umask.
        os.fchmod(bound.fileno(), mode)
        bound.bind(os.fspath(path))
        path.chmod(mode)
    except OSError:
        bound.close()
        raise
    return bound
