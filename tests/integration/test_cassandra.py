"""A real Cassandra behind a stock Envoy, with the Python driver as the client.

The policy is the source documents' ``secure-empire-cassandra``: an outpost may write
the daily records and not read them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cassandra import InvalidRequest, Unauthorized
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    Session,
)
from cassandra.policies import RoundRobinPolicy
from cassandra.protocol import SyntaxException
from cassandra.query import BatchStatement, SimpleStatement

from demos.servers.cassandra import cassandra
from node.address import Address
from node.parsers import choose_parser
from node.run import Proxy, ProxyConfig
from parsers.cassandra.statements import Unreadable, read
from proxylib.proto.accesslog_pb2 import Denied, LogEntry, Response
from tests.integration.waiting import until
from tests.parsers.cassandra import wire

pytestmark = pytest.mark.timeout(600)  # the first run downloads the jars

SERVER = "127.0.7.5"
OUTPOST = "127.0.7.6"
PORT = 9042
POLICY = Path(__file__).parents[1] / "xds/examples/secure-empire-cassandra.yaml"

WAYS = [(3, False), (4, False), (5, False), (3, "lz4"), (4, "snappy"), (4, "lz4"), (5, "lz4")]

SCHEMA = [
    "CREATE KEYSPACE attendance WITH replication = "
    "{'class': 'SimpleStrategy', 'replication_factor': 1}",
    "CREATE TABLE attendance.daily_records (id int PRIMARY KEY, present boolean, note text)",
    "CREATE TABLE attendance.plain (id int PRIMARY KEY, note text)",
    'CREATE TABLE attendance."MiXed" (id int PRIMARY KEY, note text)',
]


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    with cassandra(SERVER, port=PORT) as port:
        with connect(SERVER, port) as direct:
            for statement in SCHEMA:
                direct.execute(statement)
        yield Address(SERVER, port)


@contextmanager
def connect(host: str, port: int, **options: Any) -> Iterator[Session]:
    profile = ExecutionProfile(load_balancing_policy=RoundRobinPolicy(), request_timeout=20)
    cluster = Cluster(
        [host],
        port=port,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        connect_timeout=20,
        control_connection_timeout=20,
        **options,
    )
    try:
        yield cluster.connect()
    finally:
        cluster.shutdown()


class Open:
    """A proxy, and what it logged."""

    def __init__(self, proxy: Proxy, log: list[LogEntry]) -> None:
        self.proxy = proxy
        self.log = log

    def entries(self) -> list[dict[str, str]]:
        return [{**e.generic_l7.fields, "type": str(e.entry_type)} for e in self.log]


@pytest.fixture(scope="module")
def open_proxy(server: Address) -> Iterator[Open]:
    """Everything is allowed."""
    log: list[LogEntry] = []
    config = ProxyConfig(choose_parser("cassandra"), Address(SERVER, 0), server)
    with Proxy(config, on_entries=log.extend) as proxy:
        yield Open(proxy, log)


@pytest.fixture(scope="module")
def empire(server: Address, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """The source documents' policy; the client at OUTPOST is app=alpine."""
    with enforcing(server, POLICY, tmp_path_factory.mktemp("empire")) as opened:
        yield opened


@contextmanager
def enforcing(server: Address, policy: Path, folder: Path) -> Iterator[Open]:
    endpoints = folder / "endpoints.yaml"
    endpoints.write_text(
        f"""endpoints:
  - {{address: {SERVER}, labels: {{app: cass-server}}}}
  - {{address: {OUTPOST}, labels: {{app: alpine}}}}
"""
    )
    log: list[LogEntry] = []
    config = ProxyConfig(
        choose_parser("cassandra"),
        Address(SERVER, 0),
        server,
        policies=(policy,),
        endpoints=endpoints,
    )
    with Proxy(config, on_entries=log.extend) as proxy:
        yield Open(proxy, log)


def outpost(version: int, compression: str | bool) -> dict[str, Any]:
    """Options of a driver that comes from the outpost's address."""
    return {
        "protocol_version": version,
        "compression": compression,
        "connection_class": _from_outpost(),
        # The policy is older than system_virtual_schema, which today's drivers read too.
        "schema_metadata_enabled": False,
    }


def _from_outpost() -> type:
    connection_class: type = Cluster.connection_class

    class FromOutpost(connection_class):  # type: ignore[misc]
        """The driver's connection, from one source address."""

        def _connect_socket(self) -> None:
            made = socket.socket()
            made.bind((OUTPOST, 0))
            made.settimeout(self.connect_timeout)
            made.connect((self.endpoint.address, self.endpoint.port))
            self._socket = made

    return FromOutpost


@pytest.mark.parametrize(("version", "compression"), WAYS)
def test_driver(open_proxy: Open, version: int, compression: str | bool) -> None:
    port = open_proxy.proxy.address.port
    options = {"protocol_version": version, "compression": compression}
    with connect(SERVER, port, **options) as session:
        session.set_keyspace("attendance")
        insert = session.prepare("INSERT INTO plain (id, note) VALUES (?, ?)")
        for number in range(30):
            session.execute(insert, (number, "x"))
        batch = BatchStatement()
        batch.add(insert, (100, "batch"))
        batch.add("UPDATE attendance.plain SET note = 'text' WHERE id = 101")
        session.execute(batch)
        page = session.execute(SimpleStatement("SELECT * FROM plain", fetch_size=7))
        assert page.has_more_pages
        assert {row.id for row in page} >= {*range(30), 100, 101}
        lwt = session.execute("INSERT INTO plain (id, note) VALUES (1, 'n') IF NOT EXISTS")
        assert lwt.one().applied is False
        session.execute(insert, (999, "long" * 100_000))
        note = session.execute("SELECT note FROM plain WHERE id = 999").one().note
        assert note == "long" * 100_000
        session.execute("""INSERT INTO "MiXed" JSON '{"id": 1, "note": "FROM x"}'""")
        assert session.execute('SELECT * FROM "MiXed"').one().note == "FROM x"
        assert session.execute("SELECT * FROM plain", trace=True).get_query_trace() is not None
        futures = [session.execute_async(insert, (n, "async")) for n in range(200)]
        for future in futures:
            future.result()
    assert not any("error" in fields for fields in open_proxy.entries())


def test_driver_negotiates(open_proxy: Open) -> None:
    with connect(SERVER, open_proxy.proxy.address.port, compression=True) as session:
        assert session.cluster.protocol_version == 5
        assert session.execute("SELECT * FROM system.local").one() is not None
    unknown = [f["error"] for f in open_proxy.entries() if "error" in f]
    assert all("unsupported protocol version" in text for text in unknown)
    open_proxy.log.clear()


@pytest.mark.parametrize(("version", "compression"), WAYS)
def test_outpost(empire: Open, version: int, compression: str | bool) -> None:
    empire.log.clear()
    port = empire.proxy.address.port
    with connect(SERVER, port, **outpost(version, compression)) as session:
        write = "INSERT INTO attendance.daily_records (id, present) VALUES (%s, true)"
        session.execute(write, (version,))
        prepared = session.prepare(write.replace("%s", "?"))
        session.execute(prepared, (version + 10,))
        batch = BatchStatement()
        batch.add(prepared, (version + 20,))
        batch.add(prepared, (version + 30,))
        session.execute(batch)
        assert session.execute("SELECT * FROM system.local").one() is not None
        assert session.execute("SELECT * FROM system_schema.tables").one() is not None
        denied = [
            "SELECT * FROM attendance.daily_records",
            "SELECT * FROM attendance.plain",
            "INSERT INTO attendance.plain (id) VALUES (1)",
            "UPDATE attendance.daily_records SET present = true WHERE id = 1",
            "DELETE FROM attendance.daily_records WHERE id = 1",
            "TRUNCATE attendance.daily_records",
            "DROP TABLE attendance.daily_records",
            "USE attendance",
            "CREATE ROLE spy",
            "BEGIN BATCH INSERT INTO attendance.daily_records (id) VALUES (1)"
            " DELETE FROM attendance.daily_records WHERE id = 1 APPLY BATCH",
        ]
        for statement in denied:
            with pytest.raises(Unauthorized, match="Request Unauthorized"):
                session.execute(statement)
        with pytest.raises(Unauthorized):
            session.prepare("SELECT * FROM attendance.daily_records")
        batch.add("DELETE FROM attendance.daily_records WHERE id = 1")
        with pytest.raises(Unauthorized):
            session.execute(batch)
        session.execute(write, (version,))
    until(lambda: sum(e.entry_type == Denied for e in empire.log) >= len(denied) + 2)
    allowed = {
        (fields["query_action"], fields["query_table"].split(".")[0])
        for fields in empire.entries()
        if fields["type"] == "0"
    }
    assert allowed == {("select", "system"), ("select", "system_schema"), ("insert", "attendance")}
    replies = [entry for entry in empire.log if entry.entry_type == Response]
    assert {entry.generic_l7.fields["status"] for entry in replies} == {"OK"}
    assert all(0 < entry.latency < 60 * 10**9 for entry in replies)


def test_a_driver_that_reads_the_schema(server: Address, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        POLICY.read_text()
        + """        - query_action: "select"
          query_table: "^system_virtual_schema\\\\."
"""
    )
    with enforcing(server, policy, tmp_path) as opened:
        options = {**outpost(5, "lz4"), "schema_metadata_enabled": True}
        with connect(SERVER, opened.proxy.address.port, **options) as session:
            assert "daily_records" in session.cluster.metadata.keyspaces["attendance"].tables
        assert not any(entry.entry_type == Denied for entry in opened.log)


def test_others_are_not_let_in(empire: Open) -> None:
    with socket.create_connection((SERVER, empire.proxy.address.port), 10) as stranger:
        try:
            stranger.sendall(wire.frame(4, wire.OPTIONS))
            answer = stranger.recv(100)
        except ConnectionError:
            answer = b""
        assert answer == b""


def test_the_id_of_another_connection(empire: Open, server: Address) -> None:
    """An id that is known to the server is not known to this connection."""
    with connect(SERVER, server.port) as direct:
        known = direct.prepare("SELECT * FROM attendance.daily_records").query_id
    raw = socket.socket()
    with raw:
        raw.bind((OUTPOST, 0))
        raw.settimeout(10)
        raw.connect((SERVER, empire.proxy.address.port))
        raw.sendall(wire.startup(4, 1))
        assert raw.recv(9) == wire.ready(4, 1)
        raw.sendall(wire.execute(known, 4, 2))
        answer = wire.unprepared(known, 4, 2)
        assert raw.recv(len(answer)) == answer


TRICKY = [
    "SELECT * FROM plain -- note\n WHERE id = ?",
    "SELECT * FROM plain WHERE id = ? -- no end of line",
    "SELECT note, 'FROM daily_records' FROM plain WHERE id = ?",
    "SELECT note FROM /* daily_records */ plain WHERE id = ?",
    "SELECT note FROM attendance . plain WHERE id = ?",
    'SELECT note FROM"attendance"."MiXed"WHERE id=?',
    "SELECT note FROM Attendance.PLAIN WHERE id = ?;",
    "SELECT note FROM attendance.plain WHERE id = ?;;",
    "SELECT -1, 2.5, 1h, note FROM plain WHERE id = ?",
    "SELECT 1FROM plain WHERE id = ?",
    "SELECT -NANFROM plain WHERE id = ?",
    "SELECT 1dFROM plain WHERE id = ?",
    "SELECT P1YFROM plain WHERE id = ?",
    "SELECT aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaaFROM plain WHERE id = ?",
    "INSERT INTO plain (id, note) VALUES (?, $$ it's $$)",
    "UPDATE plain SET note = 'it''s' WHERE id = ?",
    "DELETE note FROM plain WHERE id = ?",
    "BEGIN BATCH UPDATE plain SET note = 'x' WHERE id = ?; APPLY BATCH",
]


def test_statements_mean_what_the_server_reads(server: Address) -> None:
    """What Cassandra prepares is about the table that we read, or we do not read it."""
    readable = 0
    with connect(SERVER, server.port) as direct:
        direct.set_keyspace("attendance")
        for statement in TRICKY:
            try:
                prepared = direct.prepare(statement)
            except Exception:
                continue
            column = prepared.column_metadata[0]
            try:
                (access,) = read(statement.encode(), b"attendance").accesses
            except Unreadable:
                continue
            readable += 1
            table = f"{column.keyspace_name}.{column.table_name}"
            assert access["query_table"] == table.encode(), statement
    assert readable >= 10


SOUP = """SELECT FROM from t "T" attendance.plain daily_records . * , id note -- // /* */ ' '' " $$
1 1.5 -1 1d 0xab P1Y PT1S NAN -NAN INFINITY -INFINITY aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa ? WHERE
id=? ; ( ) INSERT UPDATE DELETE SET 1µs AS"""


def _soup(random: Random) -> str:
    def some(most: int) -> str:
        return "".join(random.choice(SOUP.split()) for _ in range(random.randint(0, most)))

    gap = random.choice(["", " ", "\n", "--\n", "/**/"])
    table = random.choice(["plain", "attendance.daily_records", '"MiXed"'])
    where = random.choice(["", "WHERE id=?", "WHERE id=1"])
    if random.random() < 0.6:
        return f"SELECT {some(2)}{gap}FROM {table} {some(1)}{where}{some(1)}"
    value = random.choice(["'x'", "$$x$$", some(1)])
    return (
        f"BEGIN BATCH UPDATE {table} SET note={value}{gap}{some(1)}{where} "
        f"DELETE FROM plain WHERE id=?{gap}{some(1)}APPLY BATCH"
    )


def test_random_statements_mean_what_the_server_reads(server: Address) -> None:
    random, readable = Random(7), 0
    with connect(SERVER, server.port) as direct:
        direct.set_keyspace("attendance")
        for _ in range(4000):
            statement = _soup(random)
            try:
                prepared = direct.prepare(statement)
                accesses = read(statement.encode(), b"attendance").accesses
            except (InvalidRequest, SyntaxException, Unreadable):
                continue
            readable += 1
            ours = {access["query_table"] for access in accesses}
            for column in prepared.column_metadata or ():
                assert f"{column.keyspace_name}.{column.table_name}".encode() in ours, statement
            for keyspace, table, *_ in prepared.result_metadata or ():
                assert f"{keyspace}.{table}".encode() in ours, statement
    assert readable >= 50


def test_clients_that_log_in() -> None:
    """AUTHENTICATE begins segments and compression just as READY does."""
    host = "127.0.7.8"
    with cassandra(host, passwords=True) as port:
        config = ProxyConfig(choose_parser("cassandra"), Address(host, 0), Address(host, port))
        login = PlainTextAuthProvider("cassandra", "cassandra")
        with Proxy(config) as proxy:
            until(lambda: _logs_in(host, port, login), 30)
            for version, compression in WAYS:
                options = {"protocol_version": version, "compression": compression}
                with connect(host, proxy.address.port, auth_provider=login, **options) as session:
                    assert [row.role for row in session.execute("LIST ROLES")] == ["cassandra"]


def _logs_in(host: str, port: int, login: PlainTextAuthProvider) -> bool:
    try:
        with connect(host, port, auth_provider=login):
            return True
    except NoHostAvailable:
        return False
