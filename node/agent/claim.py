"""One data path per network namespace.

The claim is a name in the abstract namespace of Unix sockets, which is another one in each
network namespace; it ends with the process that made it, however that ends.  (The
folder of pinned maps is locked by who opens it, bpf/datapath.py.)
"""

from __future__ import annotations

import socket
import struct
from contextlib import AbstractContextManager

from bpf.errors import BpfError

NAME = b"\0proxylib/datapath"


def claim_namespace() -> AbstractContextManager[object]:
    """Claim the caller's network namespace; closing what is returned gives it back.

    Raises BpfError if another agent has it.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held.bind(NAME)
        held.listen(1)
    except OSError as error:
        held.close()
        raise BpfError(
            f"another agent{_owner()} redirects in this network namespace, and a node has one "
            "data path: stop that agent, or give this one datapath: none"
        ) from error
    return held


def _owner() -> str:
    """`` (pid N)`` of who has the name; nothing if it is not known."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(NAME)
            credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except OSError:
            return ""
    pid, _, _ = struct.unpack("3i", credentials)
    return f" (pid {pid})" if pid else ""
