"""How frames travel: compression, versions, segments; and streams cut anywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxylib.testing import Host, byte_by_byte, check_chunking, play
from proxylib.testing.strategies import cut_at
from tests.conftest import AnyHost, OpenHost, text_log
from tests.parsers.cassandra import wire
from tests.parsers.cassandra.test_dialogues import OUTPOST, READ, SPY, WRITE, passes
from tests.parsers.cassandra.wire import batch, execute, prepare, query, segment

DROPPED = 1 << 62


def start(host: AnyHost, version: int, compression: str = "") -> None:
    """STARTUP and its answer."""
    options = {"COMPRESSION": compression} if compression else {}
    assert passes(host, wire.startup(version, 0, **options))
    host.take(reply=True)
    assert host.server(wire.ready(version)) == wire.ready(version)


def started(open_host: OpenHost, version: int, compression: str = "") -> AnyHost:
    host = open_host("cassandra", OUTPOST)
    start(host, version, compression)
    return host


# -- compression, versions 3 and 4 ------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["lz4", "snappy"])
@pytest.mark.parametrize("version", [3, 4])
def test_compressed(open_host: OpenHost, version: int, algorithm: str) -> None:
    host = started(open_host, version, algorithm)
    assert passes(host, wire.compressed(algorithm, query(READ, version, 1)))
    assert not passes(host, wire.compressed(algorithm, query(SPY, version, 2)))
    assert host.take(reply=True) == wire.unauthorized(version, 2)
    assert passes(host, query(READ, version, 2)), "a frame may also be as it is"
    assert passes(host, wire.compressed(algorithm, prepare(WRITE, version, 3)))
    answer = wire.compressed(algorithm, wire.prepared(b"id", version, 3))
    assert host.server(answer) == answer
    many = wire.compressed(algorithm, batch([WRITE, b"id"] * 100, version, 3))
    assert passes(host, many)
    answer = wire.compressed(algorithm, wire.error(0x1100, "late", version, 1))
    assert host.server(answer) == answer
    assert text_log(host)[-1][1]["status"] == "Write timeout"


def test_names_of_options_have_no_case(open_host: OpenHost) -> None:
    host = open_host("cassandra", OUTPOST)
    assert passes(host, wire.startup(4, 0, compression="LZ4"))
    host.server(wire.ready(4))
    assert passes(host, wire.compressed("lz4", query(READ, 4, 1)))


@pytest.mark.parametrize(
    ("version", "options"),
    [
        (4, {"COMPRESSION": "zstd"}),
        (4, {"COMPRESSION": ""}),
        (5, {"COMPRESSION": "snappy"}),
        (4, {"COMPRESSION": "lz4", "compression": "snappy"}),
    ],
)
def test_what_we_cannot_read_is_not_negotiated(
    open_host: OpenHost, version: int, options: dict[str, str]
) -> None:
    host = open_host("cassandra")
    assert not passes(host, wire.startup(version, 3, **options))
    assert host.take(reply=True)[:13] == wire.error(0x000A, "", version, 3)[:5] + host_length(host)
    assert passes(host, wire.startup(version, 3)), "the client may ask for something else"


def host_length(host: AnyHost) -> bytes:
    """The length and code of the protocol error that the log tells of."""
    text = text_log(host)[-1][1]["error"]
    return wire.error(0x000A, text)[5:13]


def test_compression_is_in_force_once_it_is_answered(open_host: OpenHost) -> None:
    host = open_host("cassandra", OUTPOST)
    packed = wire.compressed("lz4", query(READ, 4, 1))
    assert not passes(host, packed)
    assert passes(host, wire.startup(4, 0, COMPRESSION="lz4"))
    assert not passes(host, packed)
    assert not passes(host, wire.startup(4, 2, COMPRESSION="snappy")), "one at a time"
    host.server(wire.error(0x000A, "no", 4, 0))
    assert not passes(host, packed)
    start(host, 4, "snappy")
    assert not passes(host, packed), "that is lz4"
    assert passes(host, wire.compressed("snappy", query(READ, 4, 1)))
    assert not passes(host, wire.startup(4, 2, COMPRESSION="lz4")), "only once"


# -- versions -------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2, 6, 65, 66])
def test_other_versions(open_host: OpenHost, version: int) -> None:
    host = open_host("cassandra")
    assert host.client(wire.frame(version, wire.OPTIONS, b"", 1) + b"x" * 100) == b""
    answer = host.take(reply=True)
    assert answer[0] == (0x85 if version > 5 else 0x83)
    assert answer[9:13] == wire.integer(0x000A)
    assert b"unsupported protocol version" in answer
    assert host.client(query(READ)) == b"", "nothing of such a connection passes"
    assert not host.closed


@pytest.mark.parametrize("version", [1, 2])
def test_old_headers_are_shorter(open_host: OpenHost, version: int) -> None:
    host = open_host("cassandra")
    assert host.client(bytes((version, 0, 7, wire.OPTIONS)) + bytes(4)) == b""
    assert host.take(reply=True)[:4] == b"\x83\0\0\7"


def test_one_version_per_connection(open_host: OpenHost) -> None:
    host = started(open_host, 4)
    assert passes(host, query(READ, 4, 1))
    assert not passes(host, query(READ, 3, 2))
    assert host.take(reply=True)[9:13] == wire.integer(0x000A)


# -- segments, version 5 ----------------------------------------------------------------

LZ4 = [False, True]


@pytest.mark.parametrize("lz4", LZ4)
def test_segments(open_host: OpenHost, lz4: bool) -> None:
    host = started(open_host, 5, "lz4" if lz4 else "")

    def wrap(*frames: bytes) -> bytes:
        return segment(b"".join(frames), lz4_header=lz4, pack=lz4)

    def error(raw: bytes) -> bytes:
        return segment(raw, lz4_header=lz4)

    assert passes(host, wrap(query(READ, 5, 1), query(READ, 5, 2)))
    assert not passes(host, wrap(query(SPY, 5, 3)))
    assert host.take(reply=True) == error(wire.unauthorized(5, 3))
    answers = wrap(wire.void(5, 2), wire.void(5, 1))
    assert host.server(answers) == answers
    # What is allowed of a segment goes on, in one of our own.
    good, bad, last = query(READ, 5, 1), query(SPY, 5, 2), prepare(WRITE, 5, 3)
    assert host.client(wrap(good, bad, last)) == error(good + last)
    assert host.take(reply=True) == error(wire.unauthorized(5, 2))
    answer = wrap(wire.prepared(b"id", 5, 3))
    assert host.server(answer) == answer
    assert passes(host, wrap(execute(b"id", 5, 3, [b"v"])))
    assert not passes(host, wrap(execute(b"io", 5, 4, [b"v"])))
    assert host.take(reply=True) == error(wire.unprepared(b"io", 5, 4))


@pytest.mark.parametrize("lz4", LZ4)
def test_authentication_is_segmented(open_host: OpenHost, lz4: bool) -> None:
    host = open_host("cassandra", OUTPOST)
    passes(host, wire.startup(5, 0, **({"COMPRESSION": "lz4"} if lz4 else {})))
    answer = wire.frame(0x85, wire.AUTHENTICATE, wire.string("a.b.c"))
    assert host.server(answer[:10]) + host.server(answer[10:]) == answer
    request = segment(wire.frame(5, wire.AUTH_RESPONSE, wire.value(b"x")), lz4_header=lz4)
    assert passes(host, request)
    answer = segment(wire.frame(0x85, wire.AUTH_SUCCESS, wire.value(None)), lz4_header=lz4)
    assert host.server(answer) == answer


@pytest.mark.parametrize("lz4", LZ4)
@pytest.mark.parametrize("allowed", [True, False])
def test_a_frame_over_several_segments(open_host: OpenHost, lz4: bool, allowed: bool) -> None:
    host = started(open_host, 5, "lz4" if lz4 else "")
    options = {"lz4_header": lz4, "pack": lz4}
    value = bytes(range(256)) * 1200
    raw = query(WRITE if allowed else SPY, 5, 1, values=[value])
    cut = wire.segments(raw, **options)
    assert host.client(cut) == (cut if allowed else b"")
    assert bool(host.take(reply=True)) != allowed
    following = segment(query(READ, 5, 2), **options)
    assert passes(host, following)


def test_a_keyspace_in_the_last_segment(open_host: OpenHost) -> None:
    host = open_host("cassandra", [{"query_table": r"^open\."}])
    start(host, 5)
    for stream, keyspace in enumerate(("open", "shut")):
        text = "INSERT INTO t (a) VALUES (?)"
        raw = query(text, 5, stream, values=[b"x" * 300_000], keyspace=keyspace)
        cut = wire.segments(raw)
        assert host.client(cut) == (cut if keyspace == "open" else b"")


@pytest.mark.parametrize("lz4", LZ4)
def test_denial_waits_for_the_end_of_a_cut_reply(open_host: OpenHost, lz4: bool) -> None:
    host = started(open_host, 5, "lz4" if lz4 else "")
    passes(host, segment(query(READ, 5, 1), lz4_header=lz4))
    parts = [wire.rows(b"x" * 300_000, 5, 1)]
    cut = [parts[0][i : i + 131071] for i in range(0, len(parts[0]), 131071)]
    first, *rest = (segment(part, whole=False, lz4_header=lz4) for part in cut)
    assert host.server(first) == first
    host.client(segment(query(SPY, 5, 2), lz4_header=lz4))
    assert host.take(reply=True) == b""
    denial = segment(wire.unauthorized(5, 2), lz4_header=lz4)
    assert host.server(b"".join(rest)) == b"".join(rest) + denial
    host.client(segment(query(SPY, 5, 3), lz4_header=lz4))
    assert host.take(reply=True) == segment(wire.unauthorized(5, 3), lz4_header=lz4)


def test_denial_after_a_cut_reply_that_comes_in_pieces() -> None:
    host = Host("cassandra", OUTPOST)
    start(host, 5)
    passes(host, segment(query(READ, 5, 1)))
    reply = wire.segments(wire.rows(b"x" * 300_000, 5, 1))
    out = host.server(reply[:150_000])
    host.client(segment(query(SPY, 5, 2)))
    out += host.take(reply=True) + host.server(reply[150_000:290_000])
    host.client(segment(query(SPY, 5, 3)))
    out += host.take(reply=True) + host.server(reply[290_000:])
    denials = [segment(wire.unauthorized(5, stream)) for stream in (2, 3)]
    assert out + host.take(reply=True) == reply + b"".join(denials)


# -- cut anywhere -----------------------------------------------------------------------


def conversation(version: int, compression: str = "") -> list[tuple[bool, bytes]]:
    """A bit of everything."""
    turns = [
        ([prepare(WRITE, version, 1), query(SPY, version, 2)], [wire.prepared(b"id", version, 1)]),
        (
            [
                execute(b"id", version, 1, [b"x" * 300]),
                query("USE k", version, 2),
                execute(b"no", version, 3),
                batch([WRITE, b"id"], version, 4, values=[b"v"]),
                query(READ, version, 5),
                wire.frame(version, 0x55, b"", 6),
                query(READ, version, 7, values=[b"y" * 200]),
            ],
            [
                wire.rows(b"r" * 400, version, 5),
                wire.error(0x1200, "late", version, 4),
                wire.frame(0x80 | version, wire.EVENT, wire.string("STATUS"), -1),
                wire.void(version, 1),
                wire.void(version, 7),
            ],
        ),
        ([query(READ, version, 1)], [wire.void(version, 1)]),
    ]
    options = {"COMPRESSION": compression} if compression else {}
    dialogue = [(False, wire.startup(version, 0, **options)), (True, wire.ready(version))]
    for requests, replies in turns:
        for reply, frames in ((False, requests), (True, replies)):
            dialogue.append((reply, b"".join(_travel(frames, version, compression))))
    return dialogue


def _travel(frames: list[bytes], version: int, compression: str) -> list[bytes]:
    if version < 5:
        return [wire.compressed(compression, f) if compression else f for f in frames]
    options = {"lz4_header": bool(compression), "pack": bool(compression)}
    together = segment(b"".join(frames[:3]), **options)
    return [together, *(wire.segments(frame, 70, **options) for frame in frames[3:])]


WAYS = [(3, ""), (4, ""), (4, "lz4"), (4, "snappy"), (5, ""), (5, "lz4")]


@pytest.mark.parametrize(("version", "compression"), WAYS)
def test_cut_anywhere(version: int, compression: str) -> None:
    dialogue = conversation(version, compression)
    outcome = check_chunking("cassandra", dialogue, OUTPOST)
    assert not outcome.closed
    kinds = [record.entry_type.name for record in outcome.log]
    assert (kinds.count("Request"), kinds.count("Denied")) == (6, 4), kinds
    assert kinds.count("Response") == 6


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cut_at_random(data: st.DataObject) -> None:
    version, compression = data.draw(st.sampled_from(WAYS))
    dialogue = conversation(version, compression)
    cuts = [
        data.draw(st.lists(st.integers(1, max(len(burst) - 1, 1)), max_size=6, unique=True))
        for _, burst in dialogue
    ]
    pieces = itertools.cycle(cuts)
    whole = play("cassandra", dialogue, OUTPOST)
    cut = play(
        "cassandra", dialogue, OUTPOST, cut=lambda burst: cut_at(burst, sorted(next(pieces)))
    )
    assert cut == whole


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_anywhere(data: st.DataObject) -> None:
    """A changed byte never panics, and cuts do not matter even then."""
    version, compression = data.draw(st.sampled_from(WAYS))
    dialogue = conversation(version, compression)
    turn = data.draw(st.integers(0, len(dialogue) - 1))
    reply, burst = dialogue[turn]
    at = data.draw(st.integers(0, len(burst) - 1))
    damaged = burst[:at] + bytes((data.draw(st.integers(0, 255)),)) + burst[at + 1 :]
    dialogue[turn] = (reply, damaged)
    whole = play("cassandra", dialogue, OUTPOST)
    assert play("cassandra", dialogue, OUTPOST, cut=byte_by_byte) == whole
    assert not any("Panic" in str(record.fields) for record in whole.log)
