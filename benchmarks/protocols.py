"""A line per protocol: requests per second and CPU per request, beside tcp_proxy.

Each protocol has its real server: memcached, nginx, Cassandra, Kafka.  For r2d2 there is none; a
responder in C stands for it that writes every reply by itself, as servers do.  The load is
prerecorded frames from a client in C, so that neither end's cost is in the figures: CPU is
that of the Envoy process alone.

Per protocol three Envoys take turns: tcp_proxy alone, the parser with a policy, and the
same with an access log that somebody reads.
"""

from __future__ import annotations

import socket
import statistics
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from benchmarks.tools import (
    SERVER,
    Sample,
    Traffic,
    compile_tool,
    control_server,
    envoy,
    free_port,
    memcached,
    process,
    responder,
    run_load,
)
from node.address import Address

CONNECTIONS = 16
DEPTHS = {1: "<= 1.5 x", 16: "<= 2 x"}
"""Requests in flight on a connection, and what the parser's CPU per request may be."""


@dataclass(frozen=True)
class Protocol:
    """One line of the table.

    requests(depth) and greeting(port) are what a client says; the greeting is said part
    by part. turn: requests of one turn. depths: Cassandra packs what it has to say into
    segments as it comes, so that version 5's replies have no fixed length but one by one.
    """

    name: str
    parser: str
    server: str
    rules: list[dict[str, str]]
    start: Callable[[Path, Path], AbstractContextManager[int]]
    requests: Callable[[int, list[bytes]], bytes]
    greeting: Callable[[list[bytes]], bytes | None] = lambda heard: None
    turn: int = 10_000
    depths: tuple[int, ...] = tuple(DEPTHS)


@dataclass(frozen=True)
class Row:
    """The medians of one protocol, depth and variant."""

    protocol: str
    server: str
    depth: int
    variant: str
    per_second: float
    cpu_us: float
    ratio: float
    p50_us: float
    p99_us: float


def measure(folder: Path, names: list[str], rounds: int, scale: float) -> list[Row]:
    """The rows of the protocols `names`."""
    tool = compile_tool("load", folder)
    wanted = [protocol for protocol in PROTOCOLS if protocol.name in names]
    rows = []
    for start, protocols in groupby(wanted, key=lambda protocol: protocol.start):
        with start(tool, folder) as upstream:
            for protocol in protocols:
                place = folder / protocol.name
                place.mkdir()
                rows += _measure(tool, place, protocol, upstream, rounds, scale)
    return rows


def _measure(
    tool: Path, folder: Path, protocol: Protocol, upstream: int, rounds: int, scale: float
) -> list[Row]:
    samples: dict[tuple[int, str], list[Sample]] = {}
    with ExitStack() as stack:
        enter = stack.enter_context
        traffic = {depth: _record(protocol, depth, upstream) for depth in protocol.depths}
        xds = enter(control_server(folder, protocol.parser, protocol.rules))
        sock = folder / "log.sock"
        enter(process(tool, "consumer", sock, log=folder / "c.log"))
        config = {"parser": protocol.parser, "xds_path": str(xds)}
        variants = {
            "tcp_proxy": None,
            protocol.parser: config,
            f"{protocol.parser}, log": {**config, "access_log_path": str(sock)},
        }
        envoys = {
            variant: enter(envoy(folder, f"envoy{index}", upstream, settings))
            for index, (variant, settings) in enumerate(variants.items())
        }
        for count in range(rounds + 1):
            for depth, said in traffic.items():
                for variant, (pid, port) in envoys.items():
                    share = scale if count else scale / 4
                    requests = max(int(protocol.turn * share), CONNECTIONS * depth)
                    sample = run_load(tool, said, CONNECTIONS, requests, port, pid)
                    if count:
                        samples.setdefault((depth, variant), []).append(sample)
    return [_row(protocol, depth, variant, samples) for depth, variant in samples]


def _row(
    protocol: Protocol, depth: int, variant: str, samples: dict[tuple[int, str], list[Sample]]
) -> Row:
    found, base = samples[depth, variant], samples[depth, "tcp_proxy"]

    def median(what: str) -> float:
        return statistics.median(getattr(sample, what) for sample in found)

    ratios = [one.cpu_us / other.cpu_us for one, other in zip(found, base, strict=True)]
    return Row(
        protocol.name,
        protocol.server,
        depth,
        variant,
        median("per_second"),
        median("cpu_us"),
        statistics.median(ratios),
        median("p50_us"),
        median("p99_us"),
    )


def show(rows: list[Row]) -> str:
    """The table, with what we want to reach."""
    lines = [
        "protocol          server      depth  variant           requests/s  CPU/request"
        "   x tcp_proxy      p50        p99   reach",
    ]
    for row in rows:
        reach = "" if row.variant == "tcp_proxy" else DEPTHS[row.depth]
        lines.append(
            f"{row.protocol:<17} {row.server:<10} {row.depth:>6}  {row.variant:<16}"
            f" {row.per_second:>11.0f} {row.cpu_us:>9.2f} us {row.ratio:>10.2f} x"
            f" {row.p50_us:>9.0f} us {row.p99_us:>7.0f} us   {reach}".rstrip()
        )
    return "\n".join(lines)


# What clients say.


def _record(protocol: Protocol, depth: int, port: int) -> Traffic:
    """Talk to the server once, to learn what it says and how long its replies are."""
    greeting, heard = [], []
    with socket.create_connection((SERVER, port), timeout=10) as connection:
        while (part := protocol.greeting(heard)) is not None:
            connection.sendall(part)
            heard.append(_listen(connection))
            greeting.append((part, len(heard[-1])))
        round_ = protocol.requests(depth, heard)
        for _ in range(2):  # the first reply of some is longer
            connection.sendall(round_)
            replies = _listen(connection)
    if not replies or len(replies) % depth:
        raise RuntimeError(f"{protocol.name}: {len(replies)} bytes answer {depth} requests")
    return Traffic(round_, depth, len(replies) // depth, tuple(greeting))


def _listen(connection: socket.socket) -> bytes:
    """What comes until nothing more does."""
    connection.settimeout(10)
    heard = connection.recv(1 << 16)
    connection.settimeout(0.3)
    try:
        while more := connection.recv(1 << 16):
            heard += more
    except TimeoutError:
        pass
    return heard


def _lines(line: bytes) -> Callable[[int, list[bytes]], bytes]:
    return lambda depth, heard: line * depth


def _r2d2(tool: Path, folder: Path) -> AbstractContextManager[int]:
    return responder(tool, folder, b"beep\r\n", each=True)


def _memcached(tool: Path, folder: Path) -> AbstractContextManager[int]:
    return memcached(folder)


@contextmanager
def _nginx(tool: Path, folder: Path) -> Iterator[int]:
    from demos.servers.nginx import nginx

    address = Address(SERVER, free_port(SERVER))
    with nginx(address, folder, {"public": b"0123456789"}):
        yield address.port


_HTTP_GET = (
    b"GET /public?n=######## HTTP/1.1\r\nHost: bench.example.com\r\nUser-Agent: bench/1.0\r\n"
    b"Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nX-Token: 42\r\n\r\n"
)


@contextmanager
def _cassandra(tool: Path, folder: Path) -> Iterator[int]:
    from cassandra.cluster import Cluster

    from demos.servers.cassandra import cassandra

    with cassandra(SERVER) as port:
        cluster = Cluster([SERVER], port=port, connect_timeout=20)
        session = cluster.connect()
        replication = "{'class': 'SimpleStrategy', 'replication_factor': 1}"
        session.execute(f"CREATE KEYSPACE bench WITH replication = {replication}")
        session.execute("CREATE TABLE bench.t (k text PRIMARY KEY, v text)")
        session.execute("INSERT INTO bench.t (k, v) VALUES ('k', '0123456789')")
        cluster.shutdown()
        yield port


def _frame(version: int, stream: int, opcode: int, body: bytes) -> bytes:
    return struct.pack(">BBhBi", version, 0, stream, opcode, len(body)) + body


_STARTUP = b"\0\1\0\x0bCQL_VERSION\0\x053.0.0"
_QUERY = b"SELECT v FROM bench.t WHERE k = "


def _long(text: bytes) -> bytes:
    return struct.pack(">i", len(text)) + text


def _v4(heard: list[bytes]) -> bytes | None:
    return None if heard else _frame(4, 0, 1, _STARTUP)


def _query(depth: int, heard: list[bytes]) -> bytes:
    """Statements with the value in them, each a new one."""
    body = _long(_QUERY + b"'########'") + b"\0\1\0"
    return b"".join(_frame(4, stream, 7, body) for stream in range(depth))


def _v5(heard: list[bytes]) -> bytes | None:
    from parsers.cassandra.segments import pack

    prepare = _frame(5, 0, 9, _long(_QUERY + b"?") + b"\0\0\0\0")
    parts = [_frame(5, 0, 1, _STARTUP), pack(prepare, False)]
    return parts[len(heard)] if len(heard) < len(parts) else None


def _segment(depth: int, heard: list[bytes]) -> bytes:
    """A prepared statement, in a segment."""
    from parsers.cassandra.segments import pack

    # Behind a segment's header, a frame's, the kind of result: ids of statement and result.
    body = _ids(heard[1], 6 + 9 + 4, 2) + b"\0\1" + struct.pack(">iH", 1, 1) + _long(b"k")
    return pack(_frame(5, 1, 10, body), False)


def _v4_prepared(heard: list[bytes]) -> bytes | None:
    parts = [_frame(4, 0, 1, _STARTUP), _frame(4, 0, 9, _long(_QUERY + b"?"))]
    return parts[len(heard)] if len(heard) < len(parts) else None


def _execute(depth: int, heard: list[bytes]) -> bytes:
    """A prepared statement."""
    body = _ids(heard[1], 9 + 4, 1) + b"\0\1\1\0\1" + _long(b"k")
    return b"".join(_frame(4, stream, 10, body) for stream in range(depth))


def _ids(reply: bytes, at: int, count: int) -> bytes:
    """So many [short bytes], as they stand in the reply to a PREPARE."""
    end = at
    for _ in range(count):
        end += 2 + int.from_bytes(reply[end : end + 2])
    return reply[at:end]


@contextmanager
def _kafka(tool: Path, folder: Path) -> Iterator[int]:
    import confluent_kafka
    from confluent_kafka.admin import AdminClient, NewTopic

    from demos.servers.kafka import NEW, kafka

    with kafka(NEW, SERVER, proxies=0) as broker:
        servers = {"bootstrap.servers": str(broker.direct), "log_level": 0}
        admin = AdminClient(servers)
        admin.create_topics([NewTopic("bench", 1)])["bench"].result(10)
        producer = confluent_kafka.Producer(servers)
        producer.produce("bench", b"0123456789")
        producer.flush(10)
        yield broker.direct.port


def _kafka_requests(api: str, version: int, values: dict[str, object]) -> bytes:
    from parsers.kafka import schema, wire

    key = next(key for key, known in schema.APIS.items() if known.name == api)
    layout = schema.request(key, version)
    tags = b"\0" if layout.flexible else b""
    body = struct.pack(">hhih", key, version, 1, 5) + b"bench" + tags
    return _long(body + wire.encode(layout, values))


def _produce(depth: int, heard: list[bytes]) -> bytes:
    from kafka.record.memory_records import MemoryRecordsBuilder

    records = MemoryRecordsBuilder(2, 0, 4096)
    records.append(None, None, b"0123456789" * 10)
    records.close()
    data = [{"Name": b"bench", "PartitionData": [{"Index": 0, "Records": records.buffer()}]}]
    values = {"Acks": 1, "TimeoutMs": 1000, "TopicData": data}
    return _kafka_requests("Produce", 9, values) * depth


def _fetch(depth: int, heard: list[bytes]) -> bytes:
    partition = {"Partition": 0, "FetchOffset": 0, "PartitionMaxBytes": 1}
    topics = [{"Topic": b"bench", "Partitions": [partition]}]
    values = {"MaxWaitMs": 0, "MinBytes": 0, "MaxBytes": 1, "SessionEpoch": -1, "Topics": topics}
    return _kafka_requests("Fetch", 12, values) * depth


_TABLE = [{"query_action": "select", "query_table": "^bench\\.[a-z]+$"}]
_TOPIC = [{"role": "produce", "topic": "bench"}, {"role": "consume", "topic": "bench"}]
_GET = [{"command": "get", "keyRegex": "^k[0-9]*$"}]

PROTOCOLS = (
    Protocol(
        "r2d2",
        "r2d2",
        "responder",
        [{"cmd": "READ", "file": "^plans/[0-9]+$"}],
        _r2d2,
        _lines(b"READ plans/########\r\n"),
        turn=30_000,
    ),
    Protocol(
        "memcache",
        "memcache",
        "memcached",
        _GET,
        _memcached,
        _lines(b"get k########\r\n"),
        turn=30_000,
    ),
    Protocol(
        "memcache-meta",
        "memcache",
        "memcached",
        _GET,
        _memcached,
        _lines(b"mg k######## v\r\n"),
        turn=30_000,
    ),
    Protocol(
        "http",
        "http",
        "nginx",
        [{"method": "GET", "path": "/public.*", "headers": "X-Token"}],
        _nginx,
        _lines(_HTTP_GET),
        turn=20_000,
    ),
    Protocol("cassandra", "cassandra", "Cassandra", _TABLE, _cassandra, _execute, _v4_prepared),
    Protocol(
        "cassandra-v5", "cassandra", "Cassandra", _TABLE, _cassandra, _segment, _v5, depths=(1,)
    ),
    Protocol("cassandra-text", "cassandra", "Cassandra", _TABLE, _cassandra, _query, _v4),
    Protocol("kafka", "kafka", "Kafka", _TOPIC, _kafka, _produce),
    Protocol("kafka-fetch", "kafka", "Kafka", _TOPIC, _kafka, _fetch),
)
