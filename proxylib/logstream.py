"""The access log as a connection sees it: a callable, and what stands in for it."""

from __future__ import annotations

from typing import Protocol

from proxylib.message import Properties
from proxylib.ops import EntryType
from proxylib.rules import Matcher


class LogStream(Protocol):
    """The access log of one connection.

    proto: the protocol's name in the entry; empty for the parser's own. Given as "http" or
    "kafka" it makes an HttpLogEntry or KafkaLogEntry of the fields that these have
    (docs/http.md). latency: of a response, nanoseconds since its request; 0 if unknown.
    """

    def __call__(
        self, entry_type: int, fields: Properties, proto: str = "", latency: int = 0, /
    ) -> None: ...


def no_log(entry_type: int, fields: Properties, proto: str = "", latency: int = 0, /) -> None:
    """The log of an instance without an access-log path."""


def audited(
    matcher: Matcher, would: Matcher, log: LogStream, audit_log: LogStream
) -> tuple[Matcher, LogStream]:
    """A matcher and a log of audit mode: both do what `matcher` and `log` do, but the
    entry of a request that `would` denies goes to `audit_log`."""
    marked = False

    def judge(message: Properties) -> bool:
        nonlocal marked
        verdict = matcher(message)
        if verdict and not would(message):
            marked = True
        return verdict

    def write(entry_type: int, fields: Properties, proto: str = "", latency: int = 0, /) -> None:
        nonlocal marked
        chosen = audit_log if marked and entry_type == EntryType.Request else log
        marked = False
        chosen(entry_type, fields, proto, latency)

    return judge, write
