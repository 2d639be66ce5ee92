"""Entries as JSON and as text."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from proxylib.accesslog import REPORT_PROTO, entry_to_json, entry_to_text, is_report
from proxylib.proto.accesslog_pb2 import (
    EntryType,
    HttpLogEntry,
    HttpProtocol,
    KafkaLogEntry,
    KeyValue,
    L7LogEntry,
    LogEntry,
)

DENIED = LogEntry(
    timestamp=1_700_000_000_123_456_789,
    entry_type=EntryType.Denied,
    policy_name="127.0.0.1",
    source_security_id=1001,
    source_address="127.0.0.4:5000",
    destination_security_id=1002,
    destination_address="127.0.0.1:11211",
    is_ingress=True,
    generic_l7=L7LogEntry(proto="textmemcached", fields={"keys": "a, b", "command": "get"}),
)


def report(**fields: str) -> LogEntry:
    return LogEntry(generic_l7=L7LogEntry(proto=REPORT_PROTO, fields=fields))


def test_the_json_form() -> None:
    assert entry_to_json(DENIED) == {
        "time": "2023-11-14T22:13:20.123456789Z",
        "type": "denied",
        "verdict": "denied",
        "audit": False,
        "direction": "ingress",
        "policy": "127.0.0.1",
        "rule": "",
        "source": {"address": "127.0.0.4:5000", "identity": 1001},
        "destination": {"address": "127.0.0.1:11211", "identity": 1002},
        "proxy_id": 0,
        "proto": "textmemcached",
        "fields": {"command": "get", "keys": "a, b"},
        "latency_ns": None,
    }


def test_every_entry_has_the_same_keys() -> None:
    keys = entry_to_json(DENIED).keys()
    http = LogEntry(
        http=HttpLogEntry(
            http_protocol=HttpProtocol.HTTP11,
            method="GET",
            path="/x",
            status=403,
            headers=[KeyValue(key="a", value="b")],
        )
    )
    kafka = LogEntry(kafka=KafkaLogEntry(api_key=3, correlation_id=9, topics=["t"]))
    for other in (http, kafka, LogEntry(), report(status="lost", count="3")):
        assert entry_to_json(other).keys() == keys
        json.dumps(entry_to_json(other))
    assert entry_to_json(http)["proto"] == "http"
    assert entry_to_json(http)["fields"]["headers"] == [{"name": "a", "value": "b"}]
    assert entry_to_json(kafka)["fields"]["topics"] == ["t"]
    assert entry_to_json(LogEntry())["type"] == "request"


def test_the_text_form() -> None:
    assert entry_to_text(DENIED) == (
        "22:13:20.123456 DENIED   127.0.0.4:5000 (1001) -> 127.0.0.1:11211 (1002) "
        'textmemcached command=get keys="a, b"'
    )


def test_losses_and_bad_packets_are_said_clearly() -> None:
    lost = report(status="lost", count="12")
    assert is_report(lost)
    assert entry_to_json(lost)["type"] == "report"
    assert entry_to_json(lost)["verdict"] is None
    assert "LOG      12 entries were lost before this one" in entry_to_text(lost)
    bad = report(status="undecodable", reason="packet of 3 bytes")
    assert "LOG      undecodable: packet of 3 bytes" in entry_to_text(bad)
    assert "status=new x=1" in entry_to_text(report(status="new", x="1"))


def test_roles_are_painted() -> None:
    painted = entry_to_text(DENIED, lambda text, role: f"<{role}>{text}</>")
    assert "<denied>DENIED  </>" in painted
    assert painted.startswith("<dim>22:13:20.123456</>")


def test_a_client_cannot_write_to_the_reader_s_terminal() -> None:
    evil = LogEntry(
        generic_l7=L7LogEntry(proto="x\x1b[2J", fields={"key\n": "\x1b]0;owned\x07\r\n\u202e"})
    )
    line = entry_to_text(evil)
    assert line.isprintable()
    assert "\\x1b]0;owned\\x07\\r\\n\\u202e" in line


def test_times_beyond_the_calendar_do_not_crash() -> None:
    assert entry_to_json(LogEntry(timestamp=(1 << 64) - 1))["time"].startswith("2554-")
    assert entry_to_json(LogEntry(timestamp=0))["time"] == "1970-01-01T00:00:00.000000000Z"


@given(st.binary(max_size=300))
def test_whatever_decodes_can_be_shown(packet: bytes) -> None:
    entry = LogEntry()
    try:
        entry.ParseFromString(packet)
    except Exception:
        return
    assert entry_to_text(entry).isprintable()
    json.dumps(entry_to_json(entry))


@given(
    st.builds(
        LogEntry,
        timestamp=st.integers(0, (1 << 64) - 1),
        source_address=st.text(max_size=50),
        generic_l7=st.builds(
            L7LogEntry,
            proto=st.text(max_size=20),
            fields=st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=5),
        ),
    )
)
def test_any_text_is_one_printable_line(entry: LogEntry) -> None:
    assert entry_to_text(entry).isprintable()
    json.dumps(entry_to_json(entry))


def test_audit_mode_is_told() -> None:
    entry = LogEntry(entry_type=EntryType.Request, audit=True)
    entry.generic_l7.proto = "r2d2"
    assert entry_to_json(entry)["audit"] is True
    assert " AUDIT " in entry_to_text(entry)


def test_http_for_people() -> None:
    entry = LogEntry(
        entry_type=EntryType.Response,
        http=HttpLogEntry(
            http_protocol=HttpProtocol.HTTP2,
            method="POST",
            path="/a b",
            status=200,
            headers=[KeyValue(key="x", value="y")],
            missing_headers=[KeyValue(key="t", value="1"), KeyValue(key="u", value="2")],
            fields={"grpc_status": "7"},
        ),
        latency=1_234_567,
    )
    assert entry_to_text(entry).endswith(
        'http protocol=HTTP/2 method=POST path="/a b" status=200 '
        'missing_headers="t: 1, u: 2" grpc_status=7 latency=1.235ms'
    )
    assert entry_to_json(entry)["latency_ns"] == 1_234_567
    assert entry_to_json(entry)["fields"]["grpc_status"] == "7"
