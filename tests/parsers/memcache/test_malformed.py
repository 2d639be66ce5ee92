"""Hostile and broken text requests: answered, or the connection closed; never misread."""

from __future__ import annotations

import tracemalloc

import pytest

from parsers.memcache.text import MAX_KEYS_LINE, MAX_LINE, MAX_PENDING, MAX_REPLY_LINE
from proxylib.testing import Host
from tests.conftest import OpenHost, text_log

ERROR = b"ERROR\r\n"
BAD = b"CLIENT_ERROR bad command line format\r\n"
UNDECODABLE = b"CLIENT_ERROR error decoding key\r\n"
MODE = b"CLIENT_ERROR invalid mode\r\n"
TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"
LONG = b"k" * 251

ANSWERED = [
    (b"\r\n", ERROR),
    (b"\n", ERROR),
    (b"   \r\n", ERROR),
    (b"g\r\n", ERROR),
    (b"get\r\n", ERROR),
    (b"gat\r\n", ERROR),
    (b"gat 0\r\n", ERROR),
    (b"set\r\n", ERROR),
    (b"set k\r\n", ERROR),
    (b"set k 0 0\r\n", ERROR),
    (b"cas k 0 0 5 \r\nhello\r\n", ERROR),
    (b"set k 0 0 5 1 2\r\nhello\r\n", ERROR),
    (b"set k 0 0 5 reply\r\nhello\r\n", ERROR),
    (b"delete\r\n", ERROR),
    (b"delete k 5\r\n", BAD),
    (b"delete k 0 0\r\n", ERROR),
    (b"incr k\r\n", ERROR),
    (b"touch k\r\n", ERROR),
    (b"verbosity\r\n", ERROR),
    (b"verbosity 1 2 3\r\n", ERROR),
    (b"get " + LONG + b"\r\n", BAD),
    (b"get k " + LONG + b"\r\n", BAD),
    (b"gat 0 " + LONG + b"\r\n", BAD),
    (b"delete " + LONG + b"\r\n", BAD),
    (b"set " + LONG + b" 0 0 5\r\nhello\r\n", BAD),
    (b"set k -1 0 5\r\nhello\r\n", BAD),
    (b"set k 4294967296 0 5\r\nhello\r\n", BAD),
    (b"set k 1_0 0 5\r\nhello\r\n", BAD),
    (b"set k 0 2147483648 5\r\nhello\r\n", BAD),
    (b"set k 0 +1 5\r\nhello\r\n", BAD),
    (b"set k 0 \xd9\xa1 5\r\nhello\r\n", BAD),
    (b"cas k 0 0 5 -1\r\nhello\r\n", BAD),
    (b"cas k 0 0 5 18446744073709551616\r\nhello\r\n", BAD),
    (b"get a\0b\r\n", BAD),
    (b"get\0 a\r\n", BAD),
    (b"set k\0 0 0 5\r\nhello\r\n", BAD),
    (b"set k 0 0 2147483646\r\n", TOO_LARGE),
    (b"ms k 4294967295\r\n", TOO_LARGE),
    (b"mg\r\n", ERROR),
    (b"ms k\r\n", BAD),
    (b"mg " + LONG + b"\r\n", BAD),
    (b"ms " + LONG + b" 5\r\nhello\r\n", BAD),
    (b"mg k v v\r\n", BAD),
    (b"mg k \xc2\xa0\r\n", BAD),
    (b"mg k " + b" ".join(b"%c" % c for c in b"bcfhklOqstuvNRTEPL") + b"\r\n", BAD),
    (b"mg not-base64 b\r\n", UNDECODABLE),
    (b"mg Zm9v!!!! b\r\n", UNDECODABLE),
    (b"mg Zm9= b\r\n", UNDECODABLE),
    (b"mg Zm9vZg== bx\r\n", b""),
    (b"me Zm9v k b\r\n", UNDECODABLE),
    (b"ms k 5 MX\r\nhello\r\n", MODE),
    (b"ms k 5 M\r\nhello\r\n", MODE),
    (b"ms k 5 MSE\r\nhello\r\n", MODE),
    (b"ma k MS\r\n", MODE),
]


@pytest.mark.parametrize(("request_bytes", "answer"), ANSWERED)
def test_answered_and_not_sent_on(open_host: OpenHost, request_bytes: bytes, answer: bytes) -> None:
    """Even if everything is allowed; what belongs to the request goes with it."""
    host = open_host("memcache")
    sent = host.client(request_bytes)
    assert sent == (b"" if answer else request_bytes)
    assert host.take(reply=True) == answer
    if answer == TOO_LARGE:
        return
    assert host.client(b"version\r\n") == b"version\r\n"
    assert not host.closed


@pytest.mark.parametrize(
    "length",
    [b"-99", b"+5", b"1_0", b"0x10", b"5.", b"\xd9\xa5", b"\xa0", b"5\t", b"9" * 19, b"S5"],
)
@pytest.mark.parametrize("line", [b"set k 0 0 %b\r\n", b"cas k 0 0 %b 1\r\n", b"ms k %b T0\r\n"])
def test_unreadable_lengths_close(open_host: OpenHost, line: bytes, length: bytes) -> None:
    host = open_host("memcache")
    assert host.client(line % length) == b""
    assert host.closed
    kind, fields = text_log(host)[-1]
    assert kind == "Denied"
    assert "is not a number of bytes" in fields["status"]


@pytest.mark.parametrize(
    "key", [b"\xff\xfe", b"a\tb", b"\x0b", b"caf\xc3\xa9", b"a\rb", b"\xe2\x80\xa8"]
)
def test_odd_keys_are_keys(open_host: OpenHost, key: bytes) -> None:
    """memcached splits at spaces alone; so do we, and the policy sees the same key."""
    host = open_host("memcache", [{"command": "get", "keyPrefix": "ok/"}])
    assert host.client(b"get ok/%b\r\n" % key) == b"get ok/%b\r\n" % key
    assert host.client(b"get %b\r\n" % key) == b""
    assert [record.entry_type.name for record in host.log] == ["Request", "Denied"]


def test_a_key_is_matched_without_its_line_end(open_host: OpenHost) -> None:
    host = open_host("memcache", [{"command": "get", "keyExact": "k"}])
    assert host.client(b"get k\nget k\r\nget k\r\r\n") == b"get k\nget k\r\n"


def test_unknown_commands_need_a_rule_for_everything(open_host: OpenHost) -> None:
    for rules in (None, [{}], [{"command": ""}]):
        assert open_host("memcache", rules).client(b"mystery 1\r\n") == b"mystery 1\r\n"
    host = open_host("memcache", [{"command": "get"}, {"command": "noop"}])
    assert host.client(b"mystery 1\r\nmg k z\r\nmx\r\n") == b""
    host = open_host("memcache", [{}], deny=[{"command": "flush_all"}])
    assert host.client(b"mystery 1\r\nversion\r\n") == b"version\r\n"


@pytest.mark.parametrize(
    ("line", "limit"),
    [
        (b"delete ", MAX_LINE),
        (b"gat 0 ", MAX_KEYS_LINE),
        (b"  get ", MAX_KEYS_LINE),
        (b"x", MAX_LINE),
    ],
)
def test_line_limits(line: bytes, limit: int) -> None:
    long = line + b"k " * (limit // 2)
    whole, pieces = Host("memcache"), Host("memcache")
    whole.client(long + b"\r\n")
    for start in range(0, len(long), 1000):
        if not pieces.closed:
            pieces.client(long[start : start + 1000])
    for host in (whole, pieces):
        assert host.closed
        assert host.log[-1].fields == {
            "status": f"Parser error: request line longer than {limit} bytes"
        }


def test_a_long_get_is_legal() -> None:
    host = Host("memcache", [{"command": "get", "keyPrefix": "k"}])
    line = b"get " + b" ".join(b"key-%d" % i for i in range(10_000)) + b"\r\n"
    assert host.client(line) == line
    assert host.client(line.replace(b"key-9999", b"x-9999")) == b""


def test_reply_line_limit() -> None:
    host = Host("memcache")
    host.client(b"version\r\n")
    host.server(b"VERSION " + b"x" * MAX_REPLY_LINE)
    assert host.closed


def test_a_value_reply_without_a_length_closes() -> None:
    host = Host("memcache")
    host.client(b"get k\r\n")
    host.server(b"VALUE k 0 -1\r\n")
    assert host.closed
    assert "length cannot be read" in str(host.log[-1].fields["status"])


def test_pending_limit() -> None:
    host = Host("memcache")
    while not host.closed and len(host.log) < 2 * MAX_PENDING:
        host.client(b"mn\r\n" * 16_000)
    assert host.closed
    assert "wait for their replies" in str(host.log[-1].fields["status"])


def test_quiet_requests_without_end_are_no_burden() -> None:
    host = Host("memcache")
    host.connection.log = lambda *args: None
    host.client(b"ms k 1 q\r\nx\r\n" * 1000)
    tracemalloc.start()
    for _ in range(40):
        host.client(b"ms k 1 q\r\nx\r\n" * 1000)
        host.ops.clear()
    assert tracemalloc.get_traced_memory()[0] < 1 << 17
    tracemalloc.stop()
    assert not host.closed


def test_four_gigabytes_announced_cost_nothing() -> None:
    host = Host("memcache", [{"command": "set"}])
    tracemalloc.start()
    assert host.client(b"set k 0 0 2147483645\r\nx") == b"set k 0 0 2147483645\r\nx"
    assert host.client(b"y") == b"y"
    other = Host("memcache", [{"command": "set"}])
    assert other.client(b"set k 0 0 4294967296\r\nx") == b""
    assert other.take(reply=True) == TOO_LARGE
    assert other.client(b"flush_all\r\n") == b""
    assert tracemalloc.get_traced_memory()[0] < 1 << 20
    tracemalloc.stop()
