"""What is not RESP, lies about its length or grows without end closes the connection."""

from __future__ import annotations

import pytest

from proxylib.testing import Host, byte_by_byte, play
from tests.parsers.redis.wire import request, words

PLAIN = "a request is an array of bulk strings, with plain lengths"

BAD_REQUESTS = [
    (b"*0\r\n", PLAIN),
    (b"*-1\r\n", PLAIN),
    (b"*01\r\n", PLAIN),
    (b"*+1\r\n", PLAIN),
    (b"*1\n", PLAIN),
    (b"*1x", PLAIN),
    (b"*99999999", PLAIN),
    (b"*9999999\r\n", "a request of more than 1048576 arguments"),
    (b"*1\r\n$-1\r\n", PLAIN),
    (b"*1\r\n$04\r\nPING\r\n", PLAIN),
    (b"*1\r\n:4\r\nPING\r\n", PLAIN),
    (b"*1\r\n*1\r\n$4\r\nPING\r\n", PLAIN),
    (b"*1\r\n$ 4\r\nPING\r\n", PLAIN),
    (b"*1\r\n$999999999\r\n", "an argument longer than 536870912 bytes"),
    (b"*1\r\n$500000000\r\n", "the keys of a request are not in its first 8388608 bytes"),
    (b"*1\r\n$3\r\nPING\r\n", "an argument is not as long as it says"),
    (b"*1\r\n$5\r\nPING\r\n*", "an argument is not as long as it says"),
    (b"GET 'a\r\n", "an inline command has unbalanced quotes"),
    (b'GET "a"b\r\n', "an inline command has unbalanced quotes"),
    (b"GET a\0b\r\n", "an inline command holds a NUL"),
    (b"x" * 70_000, "an inline command longer than 65536 bytes"),
    (b"*200001\r\n$3\r\nDEL\r\n", "the keys of a request are among 200001 arguments"),
]


@pytest.mark.parametrize(("sent", "why"), BAD_REQUESTS)
@pytest.mark.parametrize("rules", [None, [{"category": "read"}]])
def test_bad_requests_close(sent: bytes, why: str, rules: list[dict[str, str]] | None) -> None:
    host = Host("redis", rules)
    assert host.client(words("GET a") + sent) == words("GET a")
    assert host.closed
    assert host.log[-1].fields == {"status": f"Parser error: {why}"}


BAD_REPLIES = [
    (b"+OK\r\n+OK\r\n", b"+OK\r\n", "a reply to no request"),
    (b"*1\r\n$1\r\nx\r\n:1\r\n", b"*1\r\n$1\r\nx\r\n", "a reply to no request"),
    (b"GET secret\r\n", b"", "a reply has no values that begin with b'G'"),
    (b"*2\r\nx", b"*2\r\n", "a reply has no values that begin with b'x'"),
    (b"$-2\r\n", b"", "a reply has a length that is none"),
    (b"$?\r\n", b"", "a reply has a length that is none"),
    (b"*01\r\n", b"", "a reply has a length that is none"),
    (b"$600000000\r\n", b"", "a reply has a string longer than 536870912 bytes"),
    (b"*5000000000\r\n", b"*5000000000\r\n", "a reply has more than 4294967296 elements"),
    (b"$1\r\nxyz\r\n", b"$1\r\nx", "a string in a reply is not as long as it says"),
    (b"*1\r\n" * 100, b"*1\r\n" * 64, "a reply is nested deeper than 64"),
]


@pytest.mark.parametrize(("sent", "passed", "why"), BAD_REPLIES)
def test_bad_replies_close(sent: bytes, passed: bytes, why: str) -> None:
    for cut in (lambda data: [data], byte_by_byte):
        outcome = play("redis", [(False, words("GET a")), (True, sent)], cut=cut)
        assert outcome.closed
        assert outcome.log[-1].fields == {"status": f"Parser error: {why}"}
        assert outcome.to_client == passed


def test_a_line_of_a_reply_is_bounded() -> None:
    host = Host("redis")
    host.client(words("GET a"))
    sent = 0
    while not host.closed:
        assert host.server(b"+" + b"x" * 65_535) == b""
        sent += 65_536
        assert sent < 2 << 20


def test_too_many_owed_replies_close() -> None:
    host = Host("redis")
    for _ in range(300):
        if host.closed:
            break
        host.client(b"PING\r\n" * 1000)
    assert host.closed
    assert "wait for their replies" in str(host.log[-1].fields["status"])


def test_the_end_within_a_request_is_told() -> None:
    host = Host("redis")
    host.client(request("SET", "a", "value")[:-12], end=True)
    assert host.log[-1].fields == {"status": "the connection ends inside a request"}
