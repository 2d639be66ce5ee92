"""Access-log entries for programs and for people.

`entry_to_json` is the stable form: the same keys for every protocol.
`entry_to_text` is one line; whatever bytes a client sent, it stays one line and
holds no control characters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from proxylib.proto.accesslog_pb2 import (
    EntryType,
    HttpLogEntry,
    HttpProtocol,
    KafkaLogEntry,
    KeyValue,
    LogEntry,
)

REPORT_PROTO = "proxylib.accesslog"
"""The proto of entries about the log itself: entries lost, packets undecodable."""

_NS = 1_000_000_000

_TYPES: dict[int, str] = {
    EntryType.Request: "request",
    EntryType.Response: "response",
    EntryType.Denied: "denied",
}
_HTTP_VERSIONS: dict[int, str] = {
    HttpProtocol.HTTP10: "HTTP/1.0",
    HttpProtocol.HTTP11: "HTTP/1.1",
    HttpProtocol.HTTP2: "HTTP/2",
}

Paint = Callable[[str, str], str]
"""``paint(text, role)``: the text with the colour of its role (denied, allowed, report, dim)."""


def is_report(entry: LogEntry) -> bool:
    """True for an entry about the log itself, not about traffic."""
    return entry.generic_l7.proto == REPORT_PROTO


def entry_to_json(entry: LogEntry) -> dict[str, Any]:
    """The entry as plain JSON values; every key is always there.

    time: ISO 8601, UTC, nanoseconds. type: request, response, denied, report.
    verdict: allowed or denied; null in a report. audit: it would be denied, but for
    audit mode. fields: of the protocol, all
    text but HTTP's headers and Kafka's topics, which are lists, and numbers.
    latency_ns: of a response, since its request; null if unknown.
    """
    report = is_report(entry)
    kind = _TYPES.get(entry.entry_type, str(entry.entry_type))
    proto, fields = _l7(entry)
    return {
        "time": _time(entry.timestamp),
        "type": "report" if report else kind,
        "verdict": None if report else _verdict(entry),
        "audit": entry.audit,
        "direction": "ingress" if entry.is_ingress else "egress",
        "policy": entry.policy_name,
        "rule": entry.cilium_rule_ref,
        "source": {"address": entry.source_address, "identity": entry.source_security_id},
        "destination": {
            "address": entry.destination_address,
            "identity": entry.destination_security_id,
        },
        "proxy_id": entry.proxy_id,
        "proto": proto,
        "fields": fields,
        "latency_ns": entry.latency or None,
    }


def entry_to_text(entry: LogEntry, paint: Paint = lambda text, role: text) -> str:
    """The entry as one line for people."""
    clock = paint(_time(entry.timestamp)[11:26], "dim")
    proto, fields = _l7(entry)
    if is_report(entry):
        return f"{clock} {paint(f'LOG      {_report(fields)}', 'report')}"
    kind = _TYPES.get(entry.entry_type, str(entry.entry_type))
    verdict = _verdict(entry)
    source = _peer(entry.source_address, entry.source_security_id)
    destination = _peer(entry.destination_address, entry.destination_security_id)
    details = " ".join(f"{_safe(key)}={_quoted(value)}" for key, value in _told(entry, fields))
    if entry.latency:
        details += f" latency={entry.latency / 1e6:.3f}ms"
    head = paint(f"{'AUDIT' if entry.audit else kind.upper():8}", verdict)
    return f"{clock} {head} {source} -> {destination} {_safe(proto)} {details}".rstrip()


def _told(entry: LogEntry, fields: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """The fields for people: of HTTP and Kafka not those that say nothing, nor all headers."""
    generic = entry.WhichOneof("l7") == "generic_l7"
    for key, value in fields.items():
        if generic:
            yield key, value
        elif key == "headers" or value in ("", []) or (key == "status" and not value):
            continue
        elif isinstance(value, list):
            yield key, ", ".join(_item(item) for item in value)
        else:
            yield key, value


def _item(item: object) -> str:
    return f"{item['name']}: {item['value']}" if isinstance(item, dict) else str(item)


def _verdict(entry: LogEntry) -> str:
    return "denied" if entry.entry_type == EntryType.Denied else "allowed"


def _report(fields: dict[str, Any]) -> str:
    match fields.get("status"):
        case "lost":
            count = _safe(fields.get("count", "?"))
            return f"{count} entries were lost before this one: the consumer was away or too slow"
        case "undecodable":
            return f"undecodable: {_safe(fields.get('reason', ''))}"
        case _:
            return " ".join(f"{_safe(key)}={_quoted(value)}" for key, value in fields.items())


def _l7(entry: LogEntry) -> tuple[str, dict[str, Any]]:
    match entry.WhichOneof("l7"):
        case "http":
            return "http", _http(entry.http)
        case "kafka":
            return "kafka", _kafka(entry.kafka)
        case "generic_l7":
            # Sorted, because a protobuf map has no order of its own.
            return entry.generic_l7.proto, dict(sorted(entry.generic_l7.fields.items()))
        case _:
            return "", {}


def _http(http: HttpLogEntry) -> dict[str, Any]:
    return {
        "protocol": _HTTP_VERSIONS.get(http.http_protocol, str(http.http_protocol)),
        "method": http.method,
        "scheme": http.scheme,
        "host": http.host,
        "path": http.path,
        "status": http.status,
        "headers": _pairs(http.headers),
        "missing_headers": _pairs(http.missing_headers),
        "rejected_headers": _pairs(http.rejected_headers),
        **dict(sorted(http.fields.items())),
    }


def _pairs(headers: Iterable[KeyValue]) -> list[dict[str, str]]:
    return [{"name": header.key, "value": header.value} for header in headers]


def _kafka(kafka: KafkaLogEntry) -> dict[str, Any]:
    return {
        "api_key": kafka.api_key,
        "api_version": kafka.api_version,
        "correlation_id": kafka.correlation_id,
        "error_code": kafka.error_code,
        "topics": list(kafka.topics),
        **dict(sorted(kafka.fields.items())),
    }


def _time(timestamp: int) -> str:
    """Nanoseconds since 1970 as ISO 8601, all nine digits kept."""
    seconds, fraction = divmod(timestamp, _NS)
    try:
        whole = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        # 64 bits hold years that a datetime does not.
        return f"+{seconds}.{fraction:09}s"
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{fraction:09}Z"


def _peer(address: str, identity: int) -> str:
    return f"{_safe(address) or '?'}" + (f" ({identity})" if identity else "")


def _quoted(value: object) -> str:
    text = _safe(value)
    return f'"{text}"' if not text or " " in text else text


def _safe(value: object) -> str:
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
