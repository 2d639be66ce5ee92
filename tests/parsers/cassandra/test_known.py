"""What passes as the same has before is judged as if each frame were the first of its kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsers.cassandra import Cassandra
from parsers.cassandra.known import MAX_HEADS, KnownReplies, KnownRequests
from proxylib.logstream import no_log
from proxylib.ops import EntryType
from proxylib.testing import Host
from proxylib.testing.host import ENDPOINT, policy_map
from tests.parsers.cassandra import wire

RULES = [
    {"query_action": "select", "query_table": r"^(a|b|)\.open$"},
    {"query_action": "insert"},
    {"query_action": "use"},
]
POLICIES = (RULES, [{}], [{"query_action": "insert", "query_table": r"^b\."}], RULES)
STATEMENTS = (
    "SELECT v FROM a.open WHERE k = 'x'",
    "SELECT v FROM a.open WHERE k = 'é'",
    "SELECT v FROM a.shut WHERE k = 'x'",
    "SELECT v FROM open WHERE k = ?",
    "INSERT INTO open (k) VALUES ('x')",
    "INSERT INTO a.open (k) VALUES (1) USING TTL 5",
    "SELECT v FROM a.open",
    "SELECT v /* a.open = */ FROM a.shut WHERE k = 1",
    "BEGIN BATCH INSERT INTO a.open (k) VALUES (1) INSERT INTO b.x (k) VALUES (1) APPLY BATCH",
    "USE a",
    "USE b",
    "NONSENSE = 1",
)
IDS = (b"i" * 16, b"j" * 16, b"k", b"")


def started(version: int) -> Host:
    """A host behind STARTUP."""
    host = Host("cassandra", RULES)
    host.client(wire.startup(version))
    host.server(wire.ready(version))
    return host


def parser_of(host: Host) -> Cassandra:
    assert isinstance(host.connection.parser, Cassandra)
    return host.connection.parser


def forgetful(version: int) -> Host:
    """The same, but each frame is read."""
    host = started(version)
    for stream in parser_of(host)._streams:
        stream._known = lambda data, at: at
    return host


def packed(version: int, *frames: bytes) -> bytes:
    return b"".join(frames) if version < 5 else wire.segments(b"".join(frames))


def request(draw: random.Random, version: int, stream: int) -> bytes:
    statement = draw.choice(STATEMENTS)
    kind = draw.choice(("query", "query", "execute", "execute", "prepare"))
    if draw.random() < 0.01:
        return wire.frame(version, wire.QUERY, b"\0\0\0\xff" + statement.encode(), stream)
    if kind == "query":
        keyspace = draw.choice(("", "", "", "b")) if version == 5 else ""
        return wire.query(statement, version, stream, keyspace=keyspace)
    if kind == "prepare":
        return wire.prepare(statement, version, stream)
    return wire.execute(draw.choice(IDS), version, stream)


def reply(draw: random.Random, version: int, stream: int) -> bytes:
    kind = draw.choice(("rows", "rows", "prepared", "use", "error"))
    if kind == "error":
        return wire.error(0x2200, "invalid", version, stream)
    if kind == "prepared":
        return wire.prepared(draw.choice(IDS), version, stream)
    if kind == "use":
        return wire.keyspace_set(draw.choice("ab"), version, stream)
    return wire.rows(b"x" * draw.randrange(40), version, stream)


@pytest.mark.parametrize("version", [3, 4, 5])
@given(seed=st.integers(0, 1 << 32))
def test_nothing_is_judged_otherwise(version: int, seed: int) -> None:
    draw = random.Random(seed)
    hosts = started(version), forgetful(version)
    for host in hosts:
        host.connection.monotonic_ns = lambda: 0
    sessions = [parser_of(host)._session for host in hosts]
    under_way = sessions[1].asked
    for _ in range(30):
        side = draw.choice(("client", "client", "server", "policy"))
        frames: list[bytes] = []
        if side == "policy" and draw.random() < 0.3:
            rules = draw.choice(POLICIES)
            for host in hosts:
                host.set_policy("cassandra", rules)
        elif side == "client":
            free = [stream for stream in range(200) if stream not in under_way]
            streams = draw.sample(free[:20], draw.randrange(1, 6))
            frames = [request(draw, version, stream) for stream in streams]
        elif side == "server" and under_way:
            streams = draw.sample(sorted(under_way), draw.randrange(1, len(under_way) + 1))
            frames = [reply(draw, version, stream) for stream in streams]
        if not frames:
            continue
        data = packed(version, *frames)
        heard = [host.client(data) if side == "client" else host.server(data) for host in hosts]
        assert heard[0] == heard[1]
        assert hosts[0].take(reply=True) == hosts[1].take(reply=True)
        assert hosts[0].log == hosts[1].log
        assert hosts[0].closed == hosts[1].closed
        if hosts[0].closed:
            break
    assert sessions[0].waiting == sessions[1].waiting
    assert sessions[0].asked == sessions[1].asked
    assert sessions[0].loose == sessions[1].loose


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes were passed as known, call by call."""
    passed: list[int] = []
    for part in (KnownRequests, KnownReplies):
        judge: Callable[[object, bytes, int], int] = part.judge

        def recorded(
            self: object,
            data: bytes,
            at: int,
            judge: Callable[[object, bytes, int], int] = judge,
        ) -> int:
            end = judge(self, data, at)
            passed.append(end - at)
            return end

        monkeypatch.setattr(part, "judge", recorded)
    return passed


def insert(stream: int, key: str = "x") -> bytes:
    return wire.query(f"INSERT INTO a.open (k) VALUES ('{key}')", 4, stream)


def test_what_is_known(known: list[int]) -> None:
    host = started(4)
    known.clear()
    data = b"".join(insert(stream, f"key{stream}") for stream in range(9))
    host.client(data)
    replies = b"".join(wire.void(4, stream) for stream in range(9))
    host.server(replies)
    assert known == [len(data), len(replies)]
    assert len(host.log) == 18


def test_audit_mode_reads_each(known: list[int]) -> None:
    host = started(4)
    host.client(insert(1))
    policy = policy_map("cassandra", RULES)
    strict = policy_map("cassandra", [{"query_action": "select"}]).endpoints[ENDPOINT]
    policy.endpoints[ENDPOINT] = replace(policy.endpoints[ENDPOINT], audit=strict)
    host.instance.policy = policy
    logged: list[int] = []
    host.connection.open_audit_log = lambda: lambda kind, *entry: logged.append(kind)
    known.clear()
    assert host.client(insert(2)) + host.client(insert(3)) == insert(2) + insert(3)
    assert set(known) == {0}
    assert logged == [EntryType.Request] * 2


def test_without_a_log(known: list[int]) -> None:
    host = started(4)
    host.connection.log = no_log
    assert host.client(insert(1)) == insert(1)
    assert host.server(wire.void(4, 1)) == wire.void(4, 1)
    assert host.client(insert(1)) == insert(1)


def test_heads_are_bounded() -> None:
    host = started(4)
    for n in range(3 * MAX_HEADS):
        stream = n % 100
        host.client(wire.query(f"INSERT INTO a.t{n} (k) VALUES ('x')", 4, stream))
        host.server(wire.void(4, stream))
    judge = parser_of(host)._streams[0]._known
    assert len(judge.__self__._heads) <= MAX_HEADS  # type: ignore[attr-defined]
