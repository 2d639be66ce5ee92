"""Dialogues of each request, versions 3 and 4, and what version 5 adds to a frame."""

from __future__ import annotations

import pytest

from proxylib.testing import Host
from tests.conftest import AnyHost, OpenHost, text_log
from tests.parsers.cassandra import wire
from tests.parsers.cassandra.wire import batch, execute, prepare, query

OUTPOST = [
    {"query_action": "select", "query_table": r"^system\..*"},
    {"query_action": "insert", "query_table": r"^attendance\.daily_records$"},
]
READ = "SELECT * FROM system.local"
WRITE = "INSERT INTO attendance.daily_records (a) VALUES (?)"
SPY = "SELECT * FROM attendance.daily_records"

Log = list[tuple[str, dict[str, str]]]


def outpost(open_host: OpenHost) -> AnyHost:
    return open_host("cassandra", OUTPOST)


def passes(host: AnyHost, request: bytes) -> bool:
    """Whether a request goes to the server as it is."""
    sent = host.client(request)
    assert sent in (b"", request)
    return bool(sent)


def entry(kind: str, action: str, table: str, status: str = "") -> tuple[str, dict[str, str]]:
    fields = {"query_action": action, "query_table": table}
    return kind, {**fields, "status": status} if status else fields


@pytest.mark.parametrize("version", [3, 4])
def test_allowed_and_denied(open_host: OpenHost, version: int) -> None:
    host = outpost(open_host)
    assert passes(host, query(READ, version, 7))
    assert not passes(host, query(SPY, version, 300))
    assert host.take(reply=True) == wire.unauthorized(version, 300)
    answer = wire.rows(b"x" * 50, version, 7)
    assert host.server(answer) == answer
    assert passes(host, query(READ, version, 300))
    assert text_log(host) == [
        entry("Request", "select", "system.local"),
        entry("Denied", "select", "attendance.daily_records"),
        entry("Response", "select", "system.local", "OK"),
        entry("Request", "select", "system.local"),
    ]


def test_how_long_replies_take() -> None:
    host = Host("cassandra", OUTPOST)
    for stream, moment in ((1, 100), (2, 250), (3, 400)):
        host.connection.monotonic_ns = lambda moment=moment: moment
        host.client(query(READ, 4, stream))
    host.connection.monotonic_ns = lambda: 1000
    host.server(wire.void(4, 3) + wire.void(4, 1))
    replies = [entry for entry in host.log if entry.entry_type.name == "Response"]
    assert [entry.latency for entry in replies] == [600, 900]


def test_denied_amid_pipelined(open_host: OpenHost) -> None:
    host = outpost(open_host)
    good, bad = query(READ, 4, 1), query(SPY, 4, 2)
    last = query(READ, 4, 3)
    assert host.client(good + bad + last) == good + last
    assert host.take(reply=True) == wire.unauthorized(4, 2)
    # Replies come in any order.
    for stream in (3, 1):
        assert host.server(wire.void(4, stream)) == wire.void(4, stream)


def test_denial_waits_for_the_end_of_a_reply(open_host: OpenHost) -> None:
    host = outpost(open_host)
    assert passes(host, query(READ, 4, 1))
    answer = wire.rows(b"x" * 5000, 4, 1)
    assert host.server(answer[:100]) == answer[:100]
    host.client(query(SPY, 4, 2))
    assert host.take(reply=True) == b""
    assert host.server(answer[100:]) == answer[100:] + wire.unauthorized(4, 2)


def test_what_needs_no_policy(open_host: OpenHost) -> None:
    host = open_host("cassandra", [{"query_action": "list-users"}])
    register = wire.frame(4, wire.REGISTER, wire.short(1) + wire.string("SCHEMA_CHANGE"), 2)
    for request, answer in [
        (wire.frame(4, wire.OPTIONS, b"", 0), wire.frame(0x84, wire.SUPPORTED, wire.short(0), 0)),
        (wire.startup(4, 1), wire.frame(0x84, wire.AUTHENTICATE, wire.string("auth"), 1)),
        (
            wire.frame(4, wire.AUTH_RESPONSE, wire.value(b"\0user\0secret"), 1),
            wire.frame(0x84, wire.AUTH_CHALLENGE, wire.value(b"again"), 1),
        ),
        (
            wire.frame(4, wire.AUTH_RESPONSE, wire.value(b"\0user\0secret"), 1),
            wire.frame(0x84, wire.AUTH_SUCCESS, wire.value(None), 1),
        ),
        (register, wire.ready(4, 2)),
    ]:
        assert passes(host, request)
        assert host.server(answer) == answer
    event = wire.frame(0x84, wire.EVENT, wire.string("SCHEMA_CHANGE"), -1)
    assert host.server(event) == event
    assert host.log == []


def test_errors_of_the_server_are_logged(open_host: OpenHost) -> None:
    host = outpost(open_host)
    passes(host, query(READ, 4, 1))
    answer = wire.error(0x1200, "late", 4, 1, extra=b"\0" * 11)
    assert host.server(answer[:9]) == b""
    assert host.server(answer[9:]) == answer
    assert text_log(host)[-1] == entry("Response", "select", "system.local", "Read timeout")


def test_traced_reply_with_warnings(open_host: OpenHost) -> None:
    host = outpost(open_host)
    passes(host, prepare(READ, 4, 1))
    plain = wire.prepared(b"id", 4, 1)
    extra = b"t" * 16 + wire.short(1) + wire.string("careful")
    extra += wire.short(1) + wire.string("k") + wire.value(b"v")
    answer = wire.frame(0x84, wire.RESULT, extra + plain[9:], 1, flags=0x0E)
    assert host.server(answer) == answer
    assert passes(host, execute(b"id", 4, 1))


# -- prepared statements -------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 4])
def test_prepare_and_execute(open_host: OpenHost, version: int) -> None:
    host = outpost(open_host)
    assert passes(host, prepare(WRITE, version, 1))
    answer = wire.prepared(b"i" * 16, version, 1)
    assert host.server(answer) == answer
    assert passes(host, execute(b"i" * 16, version, 2, [b"v"]))
    assert text_log(host) == [
        entry("Request", "insert", "attendance.daily_records"),
        entry("Response", "insert", "attendance.daily_records", "OK"),
        entry("Request", "insert", "attendance.daily_records"),
    ]


def test_denied_prepare(open_host: OpenHost) -> None:
    host = outpost(open_host)
    assert not passes(host, prepare(SPY, 4, 1))
    assert host.take(reply=True) == wire.unauthorized(4, 1)


def test_unknown_id(open_host: OpenHost) -> None:
    host = outpost(open_host)
    assert not passes(host, execute(b"other", 4, 9))
    assert host.take(reply=True) == wire.unprepared(b"other", 4, 9)
    assert text_log(host) == [("Denied", {"error": "unknown prepared query id"})]
    # The client prepares it here, and goes on.
    assert passes(host, prepare(WRITE, 4, 1))
    assert not passes(host, execute(b"other", 4, 2)), "not before the reply"
    host.take(reply=True)
    host.server(wire.prepared(b"other", 4, 1))
    assert passes(host, execute(b"other", 4, 2))


def test_a_failed_prepare_teaches_nothing(open_host: OpenHost) -> None:
    host = outpost(open_host)
    passes(host, prepare(READ, 4, 1))
    host.server(wire.error(0x2200, "no such table", 4, 1, extra=wire.string(b"id")))
    assert not passes(host, execute(b"id", 4, 1))


def test_execute_is_judged_by_the_policy_of_now(open_host: OpenHost) -> None:
    host = outpost(open_host)
    passes(host, prepare(WRITE, 4, 1))
    host.server(wire.prepared(b"id", 4, 1))
    host.set_policy("cassandra", [{"query_action": "select"}])
    assert not passes(host, execute(b"id", 4, 1))
    assert host.take(reply=True) == wire.unauthorized(4, 1)


def test_old_statements_are_forgotten() -> None:
    host = Host("cassandra", OUTPOST)
    for number in range(1 << 14):
        host.client(prepare(READ, 4, 1))
        host.server(wire.prepared(number.to_bytes(16), 4, 1))
    assert passes(host, execute((0).to_bytes(16), 4, 1))
    host.server(wire.void(4, 1))
    host.client(prepare(READ, 4, 1))
    host.server(wire.prepared(b"one more", 4, 1))
    assert not passes(host, execute((0).to_bytes(16), 4, 1))
    assert passes(host, execute(b"one more", 4, 1))


# -- batches -------------------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 4])
def test_batch(open_host: OpenHost, version: int) -> None:
    host = outpost(open_host)
    passes(host, prepare(WRITE, version, 1))
    host.server(wire.prepared(b"id", version, 1))
    assert passes(host, batch([WRITE, b"id", WRITE], version, 2, values=[b"v", None]))
    assert not passes(host, batch([WRITE, "UPDATE k.t SET a = 1"], version, 3))
    assert host.take(reply=True) == wire.unauthorized(version, 3)
    assert not passes(host, batch([WRITE, b"unknown"], version, 3))
    assert host.take(reply=True) == wire.unprepared(b"unknown", version, 3)
    assert text_log(host)[2:] == [
        entry("Request", "insert", "attendance.daily_records"),
        entry("Denied", "insert", "attendance.daily_records"),
        entry("Denied", "update", "k.t"),
        ("Denied", {"error": "unknown prepared query id"}),
    ]


def test_batch_in_a_query(open_host: OpenHost) -> None:
    host = outpost(open_host)
    good = f"BEGIN BATCH {WRITE.replace('?', '1')}; APPLY BATCH"
    bad = f"BEGIN BATCH {WRITE} DELETE FROM k.t WHERE a = 1 APPLY BATCH"
    assert passes(host, query(good, 4, 1))
    assert not passes(host, query(bad, 4, 2))
    assert not passes(host, prepare(bad, 4, 2))


def test_empty_batch(open_host: OpenHost) -> None:
    host = outpost(open_host)
    assert passes(host, batch([], 4, 1))
    assert host.log == []


def test_batch_of_too_many_tables() -> None:
    host = Host("cassandra", [{"query_action": "insert"}])
    many = [f"INSERT INTO k.t{i} (a) VALUES (1)" for i in range(257)]
    assert passes(host, batch(many[:256], 4, 1))
    assert not passes(host, batch(many, 4, 2))


# -- USE -----------------------------------------------------------------------------

KEYSPACES = [{"query_action": "use"}, {"query_table": r"^open\."}]


def use(host: AnyHost, keyspace: str) -> None:
    assert passes(host, query(f"USE {keyspace}", 4, 100))
    host.server(wire.keyspace_set(keyspace, 4, 100))


def test_use(open_host: OpenHost) -> None:
    host = open_host("cassandra", KEYSPACES)
    assert not passes(host, query("SELECT * FROM t", 4, 1))
    use(host, "open")
    assert passes(host, query("SELECT * FROM t", 4, 1))
    assert not passes(host, query("SELECT * FROM shut.t", 4, 2))
    assert entry("Denied", "select", ".t") in text_log(host)
    assert entry("Request", "use", "open") in text_log(host)


def test_use_is_judged(open_host: OpenHost) -> None:
    host = open_host("cassandra", [{"query_action": "use", "query_table": "^open$"}])
    assert passes(host, query("USE open", 4, 1))
    assert not passes(host, query("USE shut", 4, 2))
    assert host.take(reply=True) == wire.unauthorized(4, 2)


def test_use_takes_effect_when_the_server_says_so(open_host: OpenHost) -> None:
    host = open_host("cassandra", KEYSPACES)
    use(host, "open")
    passes(host, query("USE shut", 4, 2))
    assert not passes(host, query("SELECT * FROM t", 4, 3)), "it may be carried out there"
    host.server(wire.error(0x2200, "no keyspace shut", 4, 2))
    assert passes(host, query("SELECT * FROM t", 4, 3))
    host.server(wire.void(4, 3))
    use(host, "shut")
    assert not passes(host, query("SELECT * FROM t", 4, 3))


def test_use_behind_what_it_would_change(open_host: OpenHost) -> None:
    host = open_host("cassandra", KEYSPACES)
    use(host, "open")
    assert passes(host, query("SELECT * FROM t", 4, 1))
    assert not passes(host, query("USE shut", 4, 2)), "the server may carry it out first"
    host.server(wire.void(4, 1))
    assert passes(host, query("USE shut", 4, 2))


def test_prepare_while_the_keyspace_changes(open_host: OpenHost) -> None:
    rules = [{"query_action": "use"}, {"query_action": "select"}]
    host = open_host("cassandra", rules)
    use(host, "open")
    assert passes(host, prepare("SELECT * FROM t", 4, 1))
    assert passes(host, query("USE shut", 4, 2))
    host.server(wire.keyspace_set("shut", 4, 2))
    host.server(wire.prepared(b"id", 4, 1))
    host.set_policy("cassandra", [{"query_table": r"^open\."}])
    assert not passes(host, execute(b"id", 4, 1)), "it may be about the other keyspace"


def test_prepared_statement_keeps_its_keyspace(open_host: OpenHost) -> None:
    host = open_host("cassandra", KEYSPACES)
    use(host, "open")
    passes(host, prepare("SELECT * FROM t", 4, 1))
    host.server(wire.prepared(b"id", 4, 1))
    use(host, "shut")
    assert passes(host, execute(b"id", 4, 1))


def test_prepared_use(open_host: OpenHost) -> None:
    host = open_host("cassandra", KEYSPACES)
    passes(host, prepare("USE open", 4, 1))
    host.server(wire.prepared(b"id", 4, 1))
    assert not passes(host, query("SELECT * FROM t", 4, 1))
    assert passes(host, execute(b"id", 4, 1))
    host.server(wire.keyspace_set("open", 4, 1))
    assert passes(host, query("SELECT * FROM t", 4, 1))


def test_too_many_uses() -> None:
    host = Host("cassandra")
    for stream in range(8):
        assert passes(host, query(f"USE k{stream}", 4, stream))
    host.client(query("USE k", 4, 9))
    assert host.closed
    assert "USE statements" in str(host.log[-1].fields)


# -- what cannot be read --------------------------------------------------------------


def test_unreadable_statement_needs_a_rule_for_everything(open_host: OpenHost) -> None:
    host = outpost(open_host)
    assert not passes(host, query("EXPLAIN x", 4, 1))
    reason = "a statement that is not understood: explain ..."
    assert host.take(reply=True) == wire.unauthorized(4, 1, f": {reason}")
    assert text_log(host) == [("Denied", {"error": reason})]
    host.set_policy("cassandra", [{}])
    assert passes(host, query("EXPLAIN x", 4, 1))
    assert text_log(host)[1:] == [("Request", {"error": reason})]


def test_unreadable_statement_under_a_deny_rule(open_host: OpenHost) -> None:
    host = open_host("cassandra", [{}], deny=[{"query_action": "drop-table"}])
    assert passes(host, query("SELECT * FROM k.t", 4, 1))
    assert not passes(host, query("DROP TABLE k.t", 4, 2))
    assert not passes(host, query("EXPLAIN x", 4, 2))


def test_custom_payload(open_host: OpenHost) -> None:
    host = outpost(open_host)
    payload = wire.short(1) + wire.string("k") + wire.value(query(READ))
    raw = query(SPY, 4, 1)
    assert not passes(host, wire.frame(4, wire.QUERY, payload + raw[9:], 1, flags=4))
    raw = query(READ, 4, 1)
    assert passes(host, wire.frame(4, wire.QUERY, payload + raw[9:], 1, flags=4 | 2))


def test_version_3_has_no_custom_payload() -> None:
    host = Host("cassandra", [{}])
    payload = wire.short(1) + wire.string("k") + wire.value(b"v")
    body = payload + query(READ, 3, 1)[9:]
    assert not passes(host, wire.frame(3, wire.QUERY, body, 1, flags=4))
    assert host.take(reply=True)[9:13] == wire.integer(0x000A)


# -- version 5 in plain frames is what comes before STARTUP is answered ---------------


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("options", [0, 0x3C])
def test_keyspace_of_a_request(open_host: OpenHost, options: int, names: bool) -> None:
    host = open_host("cassandra", KEYSPACES)
    given = [b"value", None, b""]

    def request(stream: int, keyspace: str) -> bytes:
        text = "SELECT * FROM t WHERE a = ?"
        return query(text, 5, stream, values=given, keyspace=keyspace, names=names, options=options)

    assert passes(host, request(1, "open"))
    assert not passes(host, request(2, "shut"))
    assert not passes(host, request(2, ""))
    assert passes(host, batch(["UPDATE t SET a = 1"], 5, 3, keyspace="open", values=given))
    assert not passes(host, batch(["UPDATE t SET a = 1"], 5, 4, keyspace="shut"))
    assert passes(host, prepare("SELECT * FROM t", 5, 5, keyspace="open"))
    assert not passes(host, prepare("SELECT * FROM t", 5, 6, keyspace="shut"))
    assert not passes(host, prepare("SELECT * FROM t", 5, 6))


@pytest.mark.parametrize("options", [0x01, 0x04, 0x08, 0x41, 0x3D])
def test_keyspace_of_a_batch_is_where_cassandra_finds_it(open_host: OpenHost, options: int) -> None:
    """It reads what the specification has for a QUERY only: values, and where a page begins."""
    host = open_host("cassandra", [{"query_table": "open"}])
    body = bytes(1) + wire.short(1) + b"\0" + wire.long_string("UPDATE t SET a = 1") + wire.short(0)

    def request(stream: int, keyspace: bytes) -> bytes:
        flags = wire.integer(options | wire.KEYSPACE)
        return wire.frame(5, wire.BATCH, body + wire.short(1) + flags + keyspace, stream)

    before = b""
    if options & 0x01:
        named = wire.string("v") if options & 0x40 else b""
        before += wire.short(1) + named + wire.value(b"open")
    before += wire.short(0) + b"\2\0" if options & 0x04 else b""
    before += wire.value(b"open") if options & 0x08 else b""
    before += wire.short(8) if options & 0x10 else b""
    before += bytes(8) if options & 0x20 else b""
    assert passes(host, request(1, before + wire.string("open")))
    assert not passes(host, request(2, before + wire.string("shut") + b"open" * 200))


@pytest.mark.parametrize("make", [query, batch])
def test_keyspace_of_a_request_in_old_versions(open_host: OpenHost, make: object) -> None:
    host = open_host("cassandra", KEYSPACES)
    statement = "UPDATE open.t SET a = 1"
    argument = statement if make is query else [statement]
    assert not passes(host, make(argument, 4, 1, keyspace="shut"))  # type: ignore[operator]
    assert host.take(reply=True)[9:13] == wire.integer(0x000A)
