"""The module that libproxylib adds to the Python it embeds (native/accesslog.c, guard.c)."""

from collections.abc import Callable
from typing import Any

from proxylib.connection import LogStream

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
