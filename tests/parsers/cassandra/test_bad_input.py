"""Input that is wrong or hostile: refused clearly, never passed, never hoarded."""

from __future__ import annotations

import struct
import tracemalloc

import lz4.block
import pytest

from proxylib.testing import Host
from tests.conftest import AnyHost, OpenHost, text_log
from tests.parsers.cassandra import wire
from tests.parsers.cassandra.test_dialogues import OUTPOST, READ, SPY, WRITE, passes
from tests.parsers.cassandra.test_framing import start
from tests.parsers.cassandra.wire import batch, execute, prepare, query, segment

PROTOCOL_ERROR = wire.integer(0x000A)


def closes(host: AnyHost, data: bytes, *, reply: bool = False) -> str:
    """Feed what closes the connection; returns the last entry of the log."""
    assert (host.server if reply else host.client)(data) == b""
    assert host.closed
    return str(text_log(host)[-1][1])


def refuses(host: AnyHost, request: bytes, stream: int = 1) -> str:
    """Feed what is answered with a protocol error; returns the log's reason."""
    assert host.client(request) == b""
    answer = host.take(reply=True)
    assert answer[2:5] == stream.to_bytes(2) + b"\0"
    assert answer[9:13] == PROTOCOL_ERROR
    kind, fields = text_log(host)[-1]
    assert kind == "Denied"
    assert passes(host, query(READ, 4, 99)), "the connection goes on"
    host.server(wire.void(4, 99))
    return fields["error"]


@pytest.mark.parametrize("length", [-1, -(1 << 31), (256 << 20) + 1, (1 << 31) - 1])
@pytest.mark.parametrize("reply", [False, True])
def test_a_length_that_lies(open_host: OpenHost, length: int, reply: bool) -> None:
    host = open_host("cassandra")
    version = 0x84 if reply else 4
    head = struct.pack(">BBhBi", version, 0, 0, wire.RESULT if reply else wire.QUERY, length)
    assert (host.server if reply else host.client)(head + b"x" * 100) == b""
    assert any(f"a frame with a length of {length}" in str(e) for e in text_log(host))


def test_a_length_that_lies_closes() -> None:
    host = Host("cassandra")
    closes(host, wire.frame(4, wire.QUERY)[:5] + wire.integer(-5))
    assert host.ops == [(4, 3)], "nothing of it passes"


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (wire.QUERY, b""),
        (wire.QUERY, wire.integer(100) + b"SELECT"),
        (wire.QUERY, wire.integer(-1) + b"SELECT"),
        (wire.QUERY, wire.integer((1 << 31) - 1)),
        (wire.QUERY, wire.long_string(READ)),
        (wire.QUERY, wire.long_string(READ) + b"\0\1"),
        (wire.PREPARE, wire.integer(7) + b"SELECT"),
        (wire.EXECUTE, b"\0"),
        (wire.EXECUTE, wire.short(17) + b"i" * 16),
        (wire.BATCH, b""),
        (wire.BATCH, b"\0" + wire.short(2) + b"\0" + wire.long_string(WRITE) + wire.short(0)),
        (wire.BATCH, b"\0" + wire.short(1) + b"\2"),
        (wire.BATCH, b"\0" + wire.short(1) + b"\0" + wire.long_string(WRITE) + wire.short(9)),
        (wire.STARTUP, b"\0"),
        (wire.STARTUP, wire.short(1) + wire.string("COMPRESSION")),
        (wire.STARTUP, wire.short(0xFFFF)),
        (wire.RESULT, wire.integer(1)),
        (0x04, b""),
        (0x7F, b""),
    ],
)
def test_malformed(open_host: OpenHost, opcode: int, body: bytes) -> None:
    host = open_host("cassandra")
    refuses(host, wire.frame(4, opcode, body, 1))


def test_flags(open_host: OpenHost) -> None:
    host = open_host("cassandra")
    assert "flags" in refuses(host, query(READ, 4, 1, flags=0x20))
    assert "compressed" in refuses(host, query(READ, 4, 1, flags=1))
    payload = wire.frame(4, wire.QUERY, wire.short(5) + b"xx", 1, flags=4)
    refuses(host, payload)


@pytest.mark.parametrize("algorithm", ["lz4", "snappy"])
def test_bad_compression(open_host: OpenHost, algorithm: str) -> None:
    host = open_host("cassandra")
    start(host, 4, algorithm)
    good = wire.compressed(algorithm, query(READ, 4, 1))
    body = bytearray(good[9:])
    for damaged in (b"", b"\0", bytes(body[:-3]), bytes(body) + b"\xff" * 3, b"\xff" * 20):
        refuses(host, wire.frame(4, wire.QUERY, damaged, 1, flags=1))


def bombs() -> list[tuple[str, bytes]]:
    huge = 1 << 30
    zeros = lz4.block.compress(bytes(20 << 20), store_size=False)
    return [
        ("lz4", huge.to_bytes(4) + b"\0" * 100),
        ("lz4", (20 << 20).to_bytes(4) + zeros),
        ("lz4", (1 << 20).to_bytes(4) + zeros),
        ("snappy", b"\x80\x80\x80\x80\x04" + b"\0" * 100),
        ("snappy", b"\xff\xff\xff\xff\x0f" + b"\xfe" * 100),
    ]


@pytest.mark.parametrize(("algorithm", "body"), bombs())
def test_decompression_bombs(algorithm: str, body: bytes) -> None:
    host = Host("cassandra")
    start(host, 4, algorithm)
    tracemalloc.start()
    refuses(host, wire.frame(4, wire.QUERY, body, 1, flags=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_reply_as_a_request(open_host: OpenHost) -> None:
    assert "version byte 0x84" in closes(open_host("cassandra"), wire.void(4, 1))


def test_a_request_as_a_reply(open_host: OpenHost) -> None:
    assert "version byte 0x04" in closes(open_host("cassandra"), query(READ), reply=True)


def test_replies_nobody_asked_for(open_host: OpenHost) -> None:
    assert "stream 5, which nobody asked for" in closes(
        open_host("cassandra"), wire.void(4, 5), reply=True
    )
    host = open_host("cassandra")
    passes(host, query(READ, 4, 1))
    host.server(wire.void(4, 1))
    assert "nobody asked for" in closes(host, wire.void(4, 1), reply=True)
    host = open_host("cassandra", OUTPOST)
    host.client(query(SPY, 4, 1))
    host.take(reply=True)
    assert "nobody asked for" in closes(host, wire.void(4, 1), reply=True)


def test_streams(open_host: OpenHost) -> None:
    assert "is not a client's" in closes(open_host("cassandra"), query(READ, 4, -1))
    host = open_host("cassandra")
    passes(host, prepare(READ, 4, 1))
    assert "stream 1, which waits for its reply" in closes(host, prepare(SPY, 4, 1))


def test_malformed_replies(open_host: OpenHost) -> None:
    for body in (wire.integer(4) + b"\0", wire.integer(4) + wire.short(9) + b"id", b"\0"):
        host = open_host("cassandra")
        passes(host, prepare(READ, 4, 1))
        assert "a reply on stream 1" in closes(
            host, wire.frame(0x84, wire.RESULT, body, 1), reply=True
        )
    host = open_host("cassandra")
    passes(host, prepare(READ, 4, 1))
    reply = wire.frame(0x84, wire.RESULT, wire.prepared(b"id")[9:], 1, flags=1)
    assert "compressed" in closes(host, reply, reply=True)


def test_data_behind_startup_of_version_5(open_host: OpenHost) -> None:
    host = open_host("cassandra")
    assert passes(host, wire.startup(5))
    assert "before version 5's STARTUP is answered" in closes(host, query(READ, 5, 1))


def test_requests_before_startup_are_judged(open_host: OpenHost) -> None:
    host = open_host("cassandra", OUTPOST)
    assert passes(host, query(READ, 4, 1)), "the server refuses it itself"
    assert not passes(host, query(SPY, 4, 2))


def test_too_long_to_be_read() -> None:
    host = Host("cassandra")
    text = "INSERT INTO k.t (a) VALUES ('" + "x" * (15 << 20) + "')"
    head = wire.frame(4, wire.QUERY)[:2] + wire.short(1) + bytes((wire.QUERY,))
    body = wire.long_string(text)
    raw = head + len(body).to_bytes(4) + body
    assert host.client(raw[:1000]) == b""
    assert b"would have to be read" in host.take(reply=True)
    sent = host.client(raw[1000:]) + host.client(query(READ, 4, 3))
    assert len(sent) == len(query(READ, 4, 3))


def test_a_long_request_is_judged_at_its_front() -> None:
    host = Host("cassandra", OUTPOST)
    raw = query(WRITE, 4, 1, values=[b"x" * (100 << 10)])
    assert host.client(raw[:200]) == raw[:200]
    denied = query(SPY, 4, 2, values=[b"x" * (100 << 10)])
    assert host.client(raw[200:] + denied[:200]) == raw[200:]
    assert host.take(reply=True) == wire.unauthorized(4, 2)
    assert host.client(denied[200:]) == b""


@pytest.mark.parametrize("reply", [False, True])
def test_the_stream_ends_inside_a_frame(open_host: OpenHost, reply: bool) -> None:
    host = open_host("cassandra")
    if reply:
        passes(host, prepare(READ, 4, 1))
        part = wire.prepared(b"id", 4, 1)[:-8]
        assert host.server(part, end=True) == part
    else:
        assert host.client(query(READ)[:-1], end=True) == b""
        assert text_log(host) == [("Denied", {"error": "the connection ends inside a request"})]


# -- segments ---------------------------------------------------------------------------


def segmented(open_host: OpenHost, compression: str = "") -> AnyHost:
    host = open_host("cassandra", OUTPOST)
    start(host, 5, compression)
    return host


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


@pytest.mark.parametrize("compression", ["", "lz4"])
@pytest.mark.parametrize("reply", [False, True])
def test_wrong_checksums(open_host: OpenHost, compression: str, reply: bool) -> None:
    options = {"lz4_header": bool(compression), "pack": bool(compression)}
    good = segment(wire.void(5, 1) if reply else query(READ, 5, 2), **options)
    size = 8 if compression else 6
    for at, what in [(0, "CRC24"), (size - 1, "CRC24"), (size, "CRC32"), (-1 + len(good), "CRC32")]:
        host = segmented(open_host, compression)
        passes(host, segment(query(READ, 5, 1), **options))
        assert what in closes(host, flip(good, at), reply=reply)


def test_segments_that_do_not_fit_their_frames(open_host: OpenHost) -> None:
    raw = query(READ, 5, 1)
    cut = query(WRITE, 5, 1, values=[b"x" * 300])
    cases = [
        (segment(raw[:-1]), "does not end in its segment"),
        (segment(raw + raw[:5]), "ends inside a frame's header"),
        (segment(raw + b"x" * 9), "version byte"),
        (segment(query(READ, 4, 1)), "version byte 0x04"),
        (segment(wire.void(5, 1)), "version byte 0x85"),
        (segment(raw[:5] + wire.integer(-1) + raw[9:]), "length of -1"),
        (segment(raw[:8], whole=False), "inside its header"),
        (segment(raw + b"x", whole=False), "more than the"),
        (segment(cut[:80], whole=False) + segment(raw), "are to come"),
        (segment(cut[:80], whole=False) + segment(cut[80:] + b"x", whole=False), "are to come"),
        (segment(cut[:30], whole=False) + segment(raw), "inside a frame that is cut"),
    ]
    for data, reason in cases:
        host = segmented(open_host)
        host.client(data)
        if not host.closed:
            # What was decided before goes out first; a host of the C ABI hears of it then.
            host.client(raw)
        assert host.closed, reason
        assert reason in str(text_log(host)[-1]), reason


def test_segment_bomb(open_host: OpenHost) -> None:
    host = segmented(open_host, "lz4")
    payload = lz4.block.compress(bytes(100), store_size=False)
    head = (len(payload) | 131071 << 17 | 1 << 34).to_bytes(5, "little")
    good = segment(payload, lz4_header=True)
    bad = head + wire.crc24(head).to_bytes(3, "little") + good[8:]
    assert "decompresses to 100 bytes" in closes(host, bad)


def test_compressed_frame_in_a_segment(open_host: OpenHost) -> None:
    host = segmented(open_host, "lz4")
    raw = wire.compressed("lz4", query(READ, 5, 1))
    assert not passes(host, segment(raw, lz4_header=True))
    assert PROTOCOL_ERROR in host.take(reply=True)


def test_a_frame_in_tiny_segments_is_bounded() -> None:
    host = Host("cassandra")
    start(host, 5)
    raw = batch([WRITE] * 400, 5, 1)
    tracemalloc.start()
    assert len(host.client(wire.segments(raw, 200))) == len(wire.segments(raw, 200))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert passes(host, segment(execute(b"id", 5, 2))) is False
