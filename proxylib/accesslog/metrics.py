"""Prometheus metrics, counted from access-log entries.

Whoever reads the log can count it::

    metrics = Metrics()
    with AccessLogServer(path) as log, metrics.serve("127.0.0.1", 9964):
        while True:
            metrics.observe(log.read(timeout=-1))

A client chooses what stands in a log entry, so a label has a bounded number of values:
what comes beyond `MAX_VALUES` of them is counted under ``other``.
"""

from __future__ import annotations

import string
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import start_http_server

from proxylib.accesslog.listening import AccessLogError
from proxylib.accesslog.view import entry_to_json, is_report
from proxylib.proto.accesslog_pb2 import EntryType, LogEntry

OPERATIONS = ("method", "api", "query_action", "command", "opcode", "cmd")
"""Fields that say what a request does: the first that an entry has is its operation."""

STATUSES = ("status", "error_code")
"""Fields that say how a request ended."""

MAX_VALUES = 128
"""Most values of a label, per parser. Kafka has 93 APIs; a client can make up any number."""

MAX_LENGTH = 48
"""Longest value of a label, characters."""

OTHER = "other"

FAILURES = {
    "Panic: ": "panic",
    "Parser error: ": "parser-error",
    "Circuit breaker: ": "breaker",
    "Connection closed: ": "closed",
}
"""How an entry begins that tells what happened to a connection, and what it is called."""

PASSED = "Passed unparsed from here on: "
"""Stands in front of those if the connection goes on without its parser."""

BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of the latency histogram, seconds."""

_PLAIN = frozenset(string.ascii_letters + string.digits + " ._-/:")


class Metrics:
    """Counts entries. For one thread that observes; scraping is safe from others.

    registry: where the metrics are registered; one of their own unless given.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._requests = Counter(
            "proxylib_requests",
            "Requests, by what was decided about them.",
            ("parser", "direction", "operation", "verdict"),
            registry=self.registry,
        )
        self._responses = Counter(
            "proxylib_responses",
            "Replies of servers, by how they say that the request ended.",
            ("parser", "direction", "operation", "status"),
            registry=self.registry,
        )
        self._latency = Histogram(
            "proxylib_latency_seconds",
            "From a request to its reply.",
            ("parser", "direction"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._failures = Counter(
            "proxylib_failures",
            "Connections whose parser failed or was taken out, and what became of them.",
            ("parser", "direction", "failure", "outcome"),
            registry=self.registry,
        )
        self._lost = Counter(
            "proxylib_log_lost",
            "Entries that this consumer missed, being away or too slow.",
            registry=self.registry,
        )
        self._undecodable = Counter(
            "proxylib_log_undecodable",
            "Packets of the log that were no entries.",
            registry=self.registry,
        )
        self._values: dict[tuple[str, str], set[str]] = {}

    def observe(self, entries: Iterable[LogEntry]) -> None:
        """Count `entries`."""
        requests: Tally[tuple[str, ...]] = Tally()
        responses: Tally[tuple[str, ...]] = Tally()
        for entry in entries:
            shown = entry_to_json(entry)
            fields = shown["fields"]
            if is_report(entry):
                self._report(fields)
                continue
            parser = self._bounded("", "parser", shown["proto"])
            where = (parser, shown["direction"])
            if entry.entry_type != EntryType.Response and (failed := failure(fields)):
                self._failures.labels(*where, *failed).inc()
                continue
            operation = self._bounded(parser, "operation", _first(fields, OPERATIONS))
            if entry.entry_type != EntryType.Response:
                requests[*where, operation, shown["verdict"]] += 1
                continue
            status = self._bounded(parser, "status", _first(fields, STATUSES))
            responses[*where, operation, status] += 1
            if entry.latency:
                self._latency.labels(*where).observe(entry.latency / 1e9)
        for labels, count in requests.items():
            self._requests.labels(*labels).inc(count)
        for labels, count in responses.items():
            self._responses.labels(*labels).inc(count)

    def _report(self, fields: dict[str, str]) -> None:
        if fields.get("status") == "undecodable":
            self._undecodable.inc()
        elif fields.get("count", "").isdecimal():
            self._lost.inc(int(fields["count"]))

    def _bounded(self, parser: str, label: str, value: str) -> str:
        """`value`, or OTHER if there are too many or it is none that we would show."""
        known = self._values.setdefault((parser, label), set())
        if value in known:
            return value
        if len(value) > MAX_LENGTH or len(known) >= MAX_VALUES or not _PLAIN.issuperset(value):
            return OTHER
        known.add(value)
        return value

    @contextmanager
    def serve(self, host: str, port: int) -> Iterator[int]:
        """Serve the metrics over HTTP; yields the port (0: a free one).

        Raises AccessLogError if the address cannot be had.
        """
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            reason = error.strerror or error
            raise AccessLogError(f"metrics at {host}:{port}: {reason}; name another") from error
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _first(fields: dict[str, object], names: Iterable[str]) -> str:
    return next((str(fields[name]) for name in names if name in fields), "")


def failure(fields: dict[str, object]) -> tuple[str, str] | None:
    """What failed and what came of it, if an entry tells of a connection and not of a message."""
    status = str(fields.get("status", ""))
    outcome = "passed" if status.startswith(PASSED) else "ended"
    status = status.removeprefix(PASSED)
    return next(
        (((name, outcome)) for text, name in FAILURES.items() if status.startswith(text)), None
    )
