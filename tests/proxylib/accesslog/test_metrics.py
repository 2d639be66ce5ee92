"""What the metrics say of a log."""

from __future__ import annotations

import urllib.request

import pytest

from proxylib.accesslog import AccessLogError
from proxylib.accesslog.metrics import MAX_VALUES, Metrics
from proxylib.accesslog.view import REPORT_PROTO
from proxylib.proto.accesslog_pb2 import EntryType, HttpLogEntry, L7LogEntry, LogEntry

REQUEST, RESPONSE, DENIED = EntryType.Request, EntryType.Response, EntryType.Denied


def entry(kind: EntryType, proto: str, latency: int = 0, **fields: str) -> LogEntry:
    l7 = L7LogEntry(proto=proto, fields=fields)
    return LogEntry(entry_type=kind, is_ingress=True, generic_l7=l7, latency=latency)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_requests_by_what_was_decided() -> None:
    metrics = Metrics()
    allowed = entry(REQUEST, "r2d2", cmd="READ", file="x")
    metrics.observe([allowed, entry(DENIED, "r2d2", cmd="HALT"), allowed])
    metrics.observe([allowed, entry(REQUEST, "cassandra", query_action="select")])
    http = HttpLogEntry(method="GET", path="/x", status=200)
    metrics.observe([LogEntry(entry_type=REQUEST, http=http)])

    def requests(parser: str, operation: str, verdict: str, direction: str = "ingress") -> object:
        labels = {"parser": parser, "operation": operation, "verdict": verdict}
        return value(metrics, "proxylib_requests_total", direction=direction, **labels)

    assert requests("r2d2", "READ", "allowed") == 3
    assert requests("r2d2", "HALT", "denied") == 1
    assert requests("cassandra", "select", "allowed") == 1
    assert requests("http", "GET", "allowed", "egress") == 1


def test_replies_by_status_and_latency() -> None:
    metrics = Metrics()
    metrics.observe(
        [
            entry(RESPONSE, "memcache", 200_000, command="get", status="END"),
            entry(RESPONSE, "memcache", 3_000_000_000, command="get", status="END"),
            entry(RESPONSE, "memcache", command="get", status="SERVER_ERROR"),
        ]
    )
    labels = {"parser": "memcache", "direction": "ingress"}
    total = {**labels, "operation": "get"}
    assert value(metrics, "proxylib_responses_total", status="END", **total) == 2
    assert value(metrics, "proxylib_responses_total", status="SERVER_ERROR", **total) == 1
    assert value(metrics, "proxylib_latency_seconds_count", **labels) == 2
    assert value(metrics, "proxylib_latency_seconds_bucket", le="0.00025", **labels) == 1
    assert value(metrics, "proxylib_latency_seconds_sum", **labels) == pytest.approx(3.0002)


def test_what_was_lost() -> None:
    metrics = Metrics()
    metrics.observe(
        [
            entry(DENIED, REPORT_PROTO, status="lost", count="17"),
            entry(DENIED, REPORT_PROTO, status="lost", count="3"),
            entry(DENIED, REPORT_PROTO, status="undecodable", reason="x"),
            entry(DENIED, REPORT_PROTO, status="lost", count="nonsense"),
        ]
    )
    assert value(metrics, "proxylib_log_lost_total") == 20
    assert value(metrics, "proxylib_log_undecodable_total") == 1


def test_a_client_cannot_make_up_labels_without_end() -> None:
    metrics = Metrics()
    for number in range(10 * MAX_VALUES):
        metrics.observe([entry(REQUEST, "r2d2", cmd=f"CMD{number}")])
        metrics.observe([entry(RESPONSE, "r2d2", cmd="READ", status=f"S{number}")])
        metrics.observe([entry(REQUEST, f"proto-{number}", cmd="x")])
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    assert len(samples) < 3 * 2 * (MAX_VALUES + 3) + 20
    common = {"direction": "ingress", "verdict": "allowed"}
    others = value(metrics, "proxylib_requests_total", parser="r2d2", operation="other", **common)
    assert others == 9 * MAX_VALUES + 1, "READ has a place too"


def test_labels_are_short_and_plain() -> None:
    metrics = Metrics()
    metrics.observe([entry(REQUEST, "memcache", command='get"\n} 1'), LogEntry()])
    metrics.observe([entry(REQUEST, "memcache", command="x" * 1000)])
    labels = {"direction": "ingress", "operation": "other", "verdict": "allowed"}
    assert value(metrics, "proxylib_requests_total", parser="memcache", **labels) == 2


def test_served_over_http() -> None:
    metrics = Metrics()
    metrics.observe([entry(REQUEST, "r2d2", cmd="READ")])
    with metrics.serve("127.0.0.1", 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert 'proxylib_requests_total{direction="ingress",operation="READ",' in text
        with (
            pytest.raises(AccessLogError, match="name another"),
            metrics.serve("127.0.0.1", port),
        ):
            pass


def test_failures_of_parsers() -> None:
    metrics = Metrics()
    metrics.observe(
        [
            entry(DENIED, "r2d2", status="Panic: ValueError: x (at droid.py:1)"),
            entry(DENIED, "r2d2", status="Panic: BudgetExceeded: a call ran longer"),
            entry(REQUEST, "r2d2", status="Passed unparsed from here on: Parser error: x"),
            entry(DENIED, "r2d2", status="Circuit breaker: parser 'r2d2' is taken out for 5 s"),
            entry(DENIED, "r2d2", cmd="HALT"),
        ]
    )
    where = {"parser": "r2d2", "direction": "ingress"}

    def failures(failure: str, outcome: str) -> float | None:
        name = "proxylib_failures_total"
        return value(metrics, name, failure=failure, outcome=outcome, **where)

    assert failures("panic", "ended") == 2
    assert failures("parser-error", "passed") == 1
    assert failures("breaker", "ended") == 1
    requests = {**where, "verdict": "denied"}
    assert value(metrics, "proxylib_requests_total", operation="HALT", **requests) == 1
    assert value(metrics, "proxylib_requests_total", operation="", **requests) is None
