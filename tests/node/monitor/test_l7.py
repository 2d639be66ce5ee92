"""Access-log entries as the monitor's: by a real agent, whose log they are written to."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from node.monitor.hub import MAX_QUEUED, Filter
from proxylib.proto.accesslog_pb2 import EntryType, HttpLogEntry, L7LogEntry, LogEntry
from tests.native.services import wait_for
from tests.node.agents import Agent, running

WAIT = 30


@contextmanager
def proxy(agent: Agent) -> Iterator[socket.socket]:
    """Whoever writes to the access log."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(agent.config.access_log_path))
        yield connection


@contextmanager
def watching(agent: Agent, **params: Any) -> Iterator[queue.Queue[dict[str, Any]]]:
    """What a subscriber gets."""
    lines: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        with agent.http.stream("GET", "/monitor", params=params) as response:
            assert response.status_code == 200
            assert response.headers["content-type"] == "application/x-ndjson"
            for line in response.iter_lines():
                lines.put(json.loads(line))

    assert agent.node is not None
    thread = threading.Thread(target=read)
    thread.start()
    assert lines.get(timeout=WAIT) == {"type": "start", "node": "node-1"}
    yield lines
    agent.node.monitor.hub.close()
    thread.join(WAIT)
    assert not thread.is_alive()


def http(kind: int, status: int) -> LogEntry:
    return LogEntry(
        timestamp=1_700_000_000_123_456_789,
        entry_type=kind,  # type: ignore[arg-type]
        is_ingress=True,
        source_address="10.0.0.2:4242",
        source_security_id=257,
        destination_address="10.0.0.1:80",
        destination_security_id=256,
        http=HttpLogEntry(method="GET", scheme="http", host="web", path="/", status=status),
    )


def r2d2(kind: int, *, audit: bool = False, **fields: str) -> LogEntry:
    return LogEntry(
        entry_type=kind, audit=audit, generic_l7=L7LogEntry(proto="r2d2", fields=fields)
    )  # type: ignore[arg-type]


def test_both_ends_are_named(short_path: Path) -> None:
    with running(short_path) as agent:
        agent.add_endpoint("10.0.0.1", "k8s:app=web", "k8s:zone=a", id=931)
        with watching(agent) as lines, proxy(agent) as writer:
            writer.send(http(EntryType.Response, 200).SerializeToString())
            entry = lines.get(timeout=WAIT)
            assert entry["fields"].pop("headers") == []
            assert entry == {
                "type": "l7",
                "time": "2023-11-14T22:13:20.123456789Z",
                "kind": "response",
                "verdict": "Forwarded",
                "direction": "ingress",
                "source": {
                    "address": "10.0.0.2:4242",
                    "endpoint": 0,
                    "identity": 257,
                    "labels": ["reserved:unknown"],
                },
                "destination": {
                    "address": "10.0.0.1:80",
                    "endpoint": 931,
                    "identity": 256,
                    "labels": ["k8s:app=web", "k8s:zone=a"],
                },
                "proto": "http",
                "fields": {
                    "protocol": "HTTP/1.0",
                    "method": "GET",
                    "scheme": "http",
                    "host": "web",
                    "path": "/",
                    "status": 200,
                    "missing_headers": [],
                    "rejected_headers": [],
                },
                "latency_ns": None,
                "policy": "",
                "rule": "",
            }


def test_verdicts(short_path: Path) -> None:
    entries = [
        (r2d2(EntryType.Request), "request", "Forwarded"),
        (r2d2(EntryType.Request, audit=True), "request", "Audit"),
        (r2d2(EntryType.Response), "response", "Forwarded"),
        (r2d2(EntryType.Denied, cmd="HALT"), "request", "Denied"),
        (r2d2(EntryType.Denied, status="Connection closed: no policy"), "request", "Denied"),
        (r2d2(EntryType.Denied, status="Panic: boom"), "request", "Error"),
        (r2d2(EntryType.Denied, status="Parser error: what"), "request", "Error"),
    ]
    with running(short_path) as agent, watching(agent) as lines, proxy(agent) as writer:
        for entry, kind, verdict in entries:
            writer.send(entry.SerializeToString())
            shown = lines.get(timeout=WAIT)
            assert (shown["kind"], shown["verdict"]) == (kind, verdict)


def test_what_a_proxy_lost_is_told(short_path: Path) -> None:
    lost = {"status": "lost", "count": "12"}
    report = LogEntry(generic_l7=L7LogEntry(proto="proxylib.accesslog", fields=lost))
    with running(short_path) as agent, watching(agent, type="drop") as lines:
        with proxy(agent) as writer:
            writer.send(report.SerializeToString())
            writer.send(b"\xff no entry")
            assert lines.get(timeout=WAIT) == {"type": "lost", "from": "proxy", "count": 12}
            undecodable = lines.get(timeout=WAIT)
        assert undecodable["count"] == 1
        assert "not a cilium.LogEntry" in undecodable["reason"]


def test_a_subscriber_that_does_not_read_holds_nobody_up(short_path: Path) -> None:
    many = 3 * MAX_QUEUED
    with running(short_path) as agent, socket.socket(socket.AF_UNIX) as sleeper:
        assert agent.node is not None
        hub, decisions = agent.node.monitor.hub, agent.node.decisions
        sleeper.settimeout(WAIT)
        sleeper.connect(str(agent.config.api_path))
        sleeper.sendall(b"GET /v1/monitor HTTP/1.0\r\n\r\n")
        wait_for(lambda: hub.subscribers == 1, "the subscriber")
        alert = hub.subscribe(Filter(), lambda: None)
        seen = 0
        with proxy(agent) as writer:
            packet = r2d2(EntryType.Request, file="x" * 2000).SerializeToString()
            for number in range(many):
                writer.send(packet)
                if number % 100 == 0:
                    seen += len(alert.take()[0])
            wait_for(lambda: decisions.entries == many, "the log to be read")
        assert seen + len(alert.take()[0]) == many
        hub.close()
        with sleeper.makefile("rb") as stream:
            _, _, body = stream.read().partition(b"\r\n\r\n")
        entries = [json.loads(line) for line in body.splitlines()]
        assert entries[-1] == {"type": "end", "reason": "the agent ends"}
        got = sum(entry["type"] == "l7" for entry in entries)
        lost = sum(entry.get("count", 0) for entry in entries if entry["type"] == "lost")
        assert lost > 0
        assert got + lost == many
