"""Entries of the access log, as the monitor shows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from node.monitor.ends import Ends
from node.monitor.hub import Hub
from proxylib.accesslog import entry_to_json, is_report
from proxylib.accesslog.metrics import failure
from proxylib.proto.accesslog_pb2 import EntryType, LogEntry


def publish(hub: Hub, ends: Ends, entries: Iterable[LogEntry]) -> None:
    """Give entries of the access log to those who want them."""
    if hub.subscribers:
        for entry in entries:
            _publish(hub, ends, entry)


def _publish(hub: Hub, ends: Ends, entry: LogEntry) -> None:
    if is_report(entry):
        hub.tell(_report(entry))
        return
    source = ends.endpoint(entry.source_address)
    destination = ends.endpoint(entry.destination_address)

    def build() -> dict[str, Any]:
        return _record(ends, entry, source, destination)

    hub.publish("l7", source, destination, build, entry.ByteSize())


def _record(ends: Ends, entry: LogEntry, source: int, destination: int) -> dict[str, Any]:
    """The stable form of the access log (proxylib/accesslog/view.py), and who the ends are."""
    shown = entry_to_json(entry)
    return {
        "type": "l7",
        "time": shown["time"],
        "kind": "response" if entry.entry_type == EntryType.Response else "request",
        "verdict": _verdict(entry, shown["fields"]),
        "direction": shown["direction"],
        "source": ends.end(entry.source_address, source, entry.source_security_id),
        "destination": ends.end(
            entry.destination_address, destination, entry.destination_security_id
        ),
        **{key: shown[key] for key in ("proto", "fields", "latency_ns", "policy", "rule")},
    }


def _verdict(entry: LogEntry, fields: dict[str, Any]) -> str:
    """In Cilium's words. Error: the parser failed, or could not read what came."""
    if entry.entry_type == EntryType.Denied:
        failed = failure(fields)
        return "Error" if failed and failed[0] != "closed" else "Denied"
    return "Audit" if entry.audit else "Forwarded"


def _report(entry: LogEntry) -> dict[str, Any]:
    fields = entry.generic_l7.fields
    if fields.get("status") == "lost":
        count = fields.get("count", "")
        return {"type": "lost", "from": "proxy", "count": int(count) if count.isdecimal() else 0}
    return {"type": "lost", "from": "proxy", "count": 1, "reason": fields.get("reason", "")}
