"""A netlink socket in the caller's network namespace, by pyroute2: imported when it is needed."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bpf.errors import BpfError


class InterfaceGone(BpfError):
    """There is no such interface (any more)."""


@contextmanager
def netlink(doing: str) -> Iterator[Any]:
    """The socket. doing: how errors begin; they are `InterfaceGone` and `BpfError`."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        kind = InterfaceGone if error.code == errno.ENODEV else BpfError
        raise kind(f"{doing}: {error.args[-1]}") from error
    except OSError as error:
        raise BpfError(f"{doing}: {error.strerror}") from error
