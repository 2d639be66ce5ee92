"""Denials in their places, in pure Python and through the built library."""

from __future__ import annotations

from tests.conftest import OpenHost, text_log
from tests.parsers.redis.wire import request, words

DENIED = b"-NOPERM access denied by policy\r\n"
RULES = [{"keyPrefix": "app:"}, {"category": "transaction"}, {"command": "HELLO"}]


def test_a_transaction_and_what_follows(open_host: OpenHost) -> None:
    host = open_host("redis", RULES)
    refused = words("SET secret 2")
    sent = [words("MULTI"), words("SET app:a 1"), refused, words("EXEC"), words("GET secret")]
    passed = host.client(b"".join(sent))
    assert passed == b"".join([*sent[:2], b"*1\r\n$3\r\nGET\r\n", sent[3]])
    assert host.server(b"+OK\r\n+QUEUED\r\n-ERR\r\n-EXECABORT x\r\n") == (
        b"+OK\r\n+QUEUED\r\n" + DENIED + b"-EXECABORT x\r\n" + DENIED
    )
    kinds = [kind for kind, _ in text_log(host)]
    assert kinds == ["Request"] * 2 + ["Denied", "Request", "Denied"] + ["Response"] * 3


def test_a_denial_within_a_push_and_large_values(open_host: OpenHost) -> None:
    host = open_host("redis", RULES)
    host.client(words("HELLO 3"))
    host.server(b"%0\r\n")
    assert host.server(b">2\r\n+x\r\n$70000\r\nabc") == b">2\r\n+x\r\n$70000\r\nabc"
    value = request("SET", "secret", b"GET app:a\r\n" * 7000)
    assert host.client(value[:100], value[100:], words("GET app:a")) == words("GET app:a")
    assert host.take(reply=True) == b""
    rest = b"x" * 69_997 + b"\r\n"
    assert host.server(rest) == rest + DENIED
    assert host.server(b"$-1\r\n") == b"$-1\r\n"
