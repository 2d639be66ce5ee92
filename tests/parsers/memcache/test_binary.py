"""The binary protocol, in pure Python and through the library."""

from __future__ import annotations

import tracemalloc

import pytest

from parsers.memcache.binary import HEADER, error_reply
from parsers.memcache.commands import OPCODES
from proxylib.testing import Host
from tests.conftest import OpenHost, text_log
from tests.parsers.memcache.relay import Client, memcached, relay

FLEET = [
    {"command": "writeGroup", "keyPrefix": "fleet/"},
    {"command": "get", "keyPrefix": "fleet/"},
    {"command": "noop"},
]
EXTRAS = {1: 8, 2: 8, 3: 8, 5: 20, 6: 20, 28: 4, 29: 4, 35: 4}
GET, SET, NOOP, GETQ, GETK, GETKQ, STAT, SETQ = 0, 1, 10, 9, 12, 13, 16, 17


def request(
    opcode: int, key: bytes = b"", value: bytes = b"", opaque: int = 7, extras: bytes = b""
) -> bytes:
    body = extras + key + value
    return HEADER.pack(0x80, opcode, len(key), len(extras), 0, 0, len(body), opaque, 0) + body


def store(opcode: int, key: bytes, value: bytes, opaque: int = 7) -> bytes:
    return request(opcode, key, value, opaque, bytes(8))


def reply(
    opcode: int, value: bytes = b"", opaque: int = 7, status: int = 0, key: bytes = b""
) -> bytes:
    body = key + value
    return HEADER.pack(0x81, opcode, len(key), 0, 0, status, len(body), opaque, 0) + body


def pieces(data: bytes) -> list[bytes]:
    return [data[i : i + 50_000] for i in range(0, len(data), 50_000)]


def denied(opcode: int, opaque: int = 7) -> bytes:
    return error_reply(opcode, opaque, 8, b"access denied")


def test_the_error() -> None:
    assert denied(9, 0x01020304) == (
        b"\x81\x09\0\0\0\0\0\x08\0\0\0\x0d\1\2\3\4\0\0\0\0\0\0\0\0access denied"
    )


@pytest.mark.parametrize("opcode", [0, 1, 2, 3, 4, 5, 6, 12, 14, 15, 28])
def test_allowed_and_denied(open_host: OpenHost, opcode: int) -> None:
    host = open_host("memcache", FLEET)
    value = b"v" if OPCODES[opcode].value else b""
    extras = bytes(EXTRAS.get(opcode, 0))
    good = request(opcode, b"fleet/a", value, 1, extras)
    bad = request(opcode, b"secret", value, 2, extras)
    assert host.client(bad) == b""
    assert host.take(reply=True) == denied(opcode, 2)
    assert host.client(good + bad) == good
    assert host.take(reply=True) == b""
    answer = reply(opcode, b"xyz", 1)
    assert host.server(answer) == answer + denied(opcode, 2)
    assert [kind for kind, _ in text_log(host)] == ["Denied", "Request", "Denied", "Response"]
    assert host.log[1].proto == "binarymemcached"
    assert text_log(host)[1][1] == {"opcode": str(opcode), "key": "fleet/a"}


@pytest.mark.parametrize("opcode", [7, 8, 11, 16, 29, 32])
def test_other_commands_are_denied(open_host: OpenHost, opcode: int) -> None:
    host = open_host("memcache", FLEET)
    extras = bytes(EXTRAS.get(opcode, 0))
    key = b"fleet/a" if OPCODES[opcode].key else b""
    assert host.client(request(opcode, key, b"", 3, extras)) == b""
    assert host.take(reply=True) == denied(opcode, 3)


def test_storage_covers_append_and_prepend(open_host: OpenHost) -> None:
    """Cilium's groups lack the opcodes 14 and 15."""
    host = open_host("memcache", [{"command": "storage"}])
    for opcode in (14, 15, 25, 26):
        assert host.client(request(opcode, b"k", b"v")) == request(opcode, b"k", b"v")


def test_quiet_requests_and_their_replies(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    quiet = request(GETQ, b"fleet/a", opaque=1) + request(GETKQ, b"fleet/b", opaque=2)
    last = request(GET, b"fleet/c", opaque=3)
    assert host.client(quiet + last + request(GET, b"secret", opaque=4)) == quiet + last
    hit = reply(GETQ, b"1", 1)
    assert host.server(hit) == hit
    assert host.server(reply(GET, b"3", 3)) == reply(GET, b"3", 3) + denied(GET, 4)


def test_denied_behind_quiet_requests(open_host: OpenHost) -> None:
    """It travels as a no-op, whose answer becomes the error."""
    host = open_host("memcache", FLEET)
    quiet = store(SETQ, b"fleet/a", b"x", 1)
    bad = request(GETQ, b"secret", opaque=2) + store(SET, b"secret", b"x" * 30, 3)
    noop = request(NOOP, opaque=5)
    assert host.client(quiet + bad + noop) == quiet + request(NOOP, opaque=2) + noop
    failed = reply(SETQ, b"Out of memory", 1, 0x82)
    assert host.server(failed) == failed
    answer = reply(NOOP, opaque=2)
    assert host.server(answer[:23]) == b""
    assert host.server(answer[23:]) == denied(GETQ, 2) + denied(SET, 3)
    assert host.server(reply(NOOP, opaque=5)) == reply(NOOP, opaque=5)


def test_statistics_are_many_messages(open_host: OpenHost) -> None:
    host = open_host("memcache", [{"command": "stats"}])
    host.client(request(STAT, opaque=1) + request(GET, b"k", opaque=2))
    items = reply(STAT, b"1", 1, key=b"pid") + reply(STAT, b"2", 1, key=b"uptime")
    assert host.server(items) == items
    assert host.server(reply(STAT, b"", 1)) == reply(STAT, b"", 1) + denied(GET, 2)
    host.client(request(STAT, b"nonsense", opaque=1) + request(GET, b"k", opaque=2))
    error = reply(STAT, b"Not found", 1, 1)
    assert host.server(error) == error + denied(GET, 2)


def test_large_values(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    size = 2_000_000
    big = store(SET, b"fleet/a", b"x" * size, 1)
    assert host.client(big[:100]) == big[:100]
    assert host.client(*pieces(big[100:] + request(GET, b"secret", opaque=2))) == big[100:]
    assert host.server(reply(SET, opaque=1)) == reply(SET, opaque=1) + denied(GET, 2)
    hidden = store(SET, b"secret", request(GET, b"fleet/a") * 1000, 3)
    assert host.client(hidden[:100]) == b""
    assert host.take(reply=True) == denied(SET, 3)
    assert host.client(*pieces(hidden[100:])) == b""
    host.client(request(GET, b"fleet/a", opaque=1) + request(GET, b"secret", opaque=2))
    value = reply(GET, b"y" * size, 1)
    assert host.server(*pieces(value[:-1])) == value[:-1]
    assert host.take(reply=True) == b""
    assert host.server(value[-1:]) == value[-1:] + denied(GET, 2)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        # memcached 1.6.18 looks for the next request inside the first three.
        (request(STAT, b"foo", request(8)), (4, b"Invalid arguments")),
        (request(29, b"k", request(8), extras=bytes(4)), (4, b"Invalid arguments")),
        (request(0x30, b"k" * 24), (0x81, b"Unknown command")),
        (request(27, extras=bytes(4)), (0x81, b"Unknown command")),
        (request(0xEE, b"k"), (0x81, b"Unknown command")),
        (request(GET), (4, b"Invalid arguments")),
        (request(GET, b"k", b"v"), (4, b"Invalid arguments")),
        (request(GET, b"k", extras=bytes(4)), (4, b"Invalid arguments")),
        (request(GET, b"k" * 251), (4, b"Invalid arguments")),
        (request(SET, b"k", b"v"), (4, b"Invalid arguments")),
        (request(NOOP, b"k"), (4, b"Invalid arguments")),
        (request(NOOP, value=b"v"), (4, b"Invalid arguments")),
    ],
)
def test_misshapen_requests_are_not_sent_on(
    open_host: OpenHost, message: bytes, error: tuple[int, bytes]
) -> None:
    host = open_host("memcache")
    assert host.client(message) == b""
    assert host.take(reply=True) == error_reply(message[1], 7, *error)
    assert host.client(request(GET, b"k")) == request(GET, b"k")


def test_a_foreign_opcode_without_key_may_pass(open_host: OpenHost) -> None:
    host = open_host("memcache", [{"command": "rget"}])
    assert host.client(request(0x30) + request(0x31)) == request(0x30)


@pytest.mark.parametrize(
    "message",
    [
        b"\x81" + request(GET, b"k")[1:],
        b"\xff",
        HEADER.pack(0x80, GET, 5, 0, 0, 0, 4, 0, 0) + b"keyke",
        HEADER.pack(0x80, SET, 0, 8, 0, 0, 7, 0, 0) + bytes(8),
    ],
)
def test_what_is_no_message_closes(open_host: OpenHost, message: bytes) -> None:
    host = open_host("memcache")
    assert host.client(message) == b""
    assert host.closed
    assert text_log(host)[-1][0] == "Denied"


def test_a_reply_that_is_no_message_closes(open_host: OpenHost) -> None:
    host = open_host("memcache")
    host.client(request(GET, b"k"))
    assert host.server(b"\x80" + bytes(23)) == b""
    assert host.closed


def test_a_text_reply_to_a_binary_client_passes(open_host: OpenHost) -> None:
    host = open_host("memcache")
    host.client(request(GET, b"k"))
    assert host.server(b"ERROR Too many open connections\r\n").startswith(b"ERROR")


def test_four_gigabytes_announced_cost_nothing() -> None:
    tracemalloc.start()
    host = Host("memcache", FLEET)
    head = HEADER.pack(0x80, SET, 7, 8, 0, 0, 0xFFFFFFFF, 0, 0) + bytes(8) + b"fleet/a"
    assert host.client(head + b"x") == head + b"x"
    head = head.replace(b"fleet/a", b"empire/")
    host = Host("memcache", FLEET)
    assert host.client(head + b"x") == b""
    assert host.take(reply=True) == denied(SET, 0)
    assert host.client(request(GET, b"fleet/a")) == b""
    assert tracemalloc.get_traced_memory()[0] < 1 << 20
    tracemalloc.stop()


def test_half_close(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    good = request(GET, b"fleet/a")
    assert host.client(good + good[:30], end=True) == good
    assert host.server(reply(GET, b"x")) == reply(GET, b"x")


def test_against_memcached() -> None:
    with memcached() as upstream, relay(upstream, FLEET) as it, Client(it.address) as client:
        stored = client.ask(store(SET, b"fleet/a", b"hi", 1), b"\0" * 7 + b"\1")
        assert stored[:8] == b"\x81\1\0\0\0\0\0\0"
        pipeline = (
            request(GETKQ, b"fleet/none", opaque=1)
            + request(GETKQ, b"secret", opaque=2)
            + request(GETKQ, b"fleet/a", opaque=3)
            + store(SETQ, b"fleet/b", b"x", 4)
            + request(GET, b"secret", opaque=5)
            + request(NOOP, opaque=6)
        )
        answer = client.ask(pipeline, reply(NOOP, opaque=6))
        first = denied(GETKQ, 2)
        assert answer.startswith(first)
        assert answer.endswith(b"fleet/ahi" + denied(GET, 5) + reply(NOOP, opaque=6))
