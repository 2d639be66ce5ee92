"""The module that libproxylib adds to the Python it embeds (native/accesslog.c, guard.c)."""

from collections.abc import Callable
from typing import Any

from proxylib.connection import Connection
from proxylib.logstream import LogStream

class AccessLog:
    """A client of the access-log socket at a path."""

    def __init__(self, path: str, /) -> None: ...
    def stream(self, prefix: bytes, proto: str, /) -> LogStream:
        """The log of one connection; prefix holds the fields that its entries share."""

    def close(self) -> None:
        """Send what is queued, for a bounded time, and end the sender."""

class BudgetExceeded(BaseException):
    """A call into a parser has used up its time budget."""

    frames: list[tuple[str, int]]

def guarded(budget: int, call: Callable[..., Any], /, *args: Any) -> Any:
    """call(*args), interrupted after `budget` nanoseconds."""

SHARED_BYTES: int
"""Size of the memory that a worker and its host share."""

class Remote:
    """A worker process, seen from its host (native/isolate.c)."""

    connections: int
    """How many it has."""

    def __init__(self, memory: int, pid: int, pidfd: int, log: object | None, /) -> None: ...
    def open(self, request: bytes, budget: int, /) -> tuple[int, bool, bytes] | None:
        """Have the worker open a connection: what it is called there, whether its parser
        answers in batches, and what the worker says of it; None if it refuses.

        budget: nanoseconds to wait. Raises ConnectionError if the worker is gone.
        """

    def died(self, why: str, /) -> None:
        """The process has ended: wake who waits, tell all connections."""

def serve(memory: int, open: Callable[[bytes], tuple[Connection, bytes] | None], /) -> None:
    """Serve a host's requests, until the process ends."""

def collect_log() -> None:
    """Have log entries go with the answers to the host."""

def reloaded() -> None:
    """Parsers have new code: every connection looks at it, idle ones too."""

def held(object: object, limit: int, /) -> int:
    """Bytes that can be reached from `object`; counts no further than `limit`."""

def guard_ns(count: int, /) -> float:
    """Nanoseconds that a time budget adds to a call, the mean of `count`."""
