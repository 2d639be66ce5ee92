"""How the Empire's outposts write the daily records, and cannot read them.

A real Cassandra behind Envoy; the Python driver speaks versions 3, 4 and 5 of the native
protocol to it.  What the outpost may do is a table here, read off the policy by a human.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cassandra import Unauthorized
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    Session,
)
from cassandra.policies import RoundRobinPolicy
from cassandra.query import BatchStatement

from demos.servers.cassandra import VERSION, cassandra
from demos.stage import HERE, Log, Stage, brief, confirmed, proxy, run_stories
from node.address import Address
from node.parsers import choose_parser
from node.run import ProxyConfig
from proxylib.proto.accesslog_pb2 import EntryType, LogEntry

POLICY = HERE / "secure-empire-cassandra.yaml"
PORT = 9042
SERVER, OUTPOST, STRANGER = 8, 9, 7

SCHEMA = (
    "CREATE KEYSPACE attendance WITH replication = "
    "{'class': 'SimpleStrategy', 'replication_factor': 1}",
    "CREATE TABLE attendance.daily_records (id int PRIMARY KEY, present boolean)",
)

WAYS: tuple[tuple[int, str | bool], ...] = ((3, False), (4, "lz4"), (5, "lz4"))
"""Protocol versions, and the compression that the driver asks for."""

INSERT = "INSERT INTO attendance.daily_records (id, present) VALUES ({}, true)"
SELECT = "SELECT * FROM attendance.daily_records"
DELETE = "DELETE FROM attendance.daily_records WHERE id = 1"


@dataclass(frozen=True, slots=True)
class Attempt:
    """Something that the outpost does, and what its log entry is about."""

    what: str
    do: Callable[[Session, int], Any]
    expected: str
    action: str
    table: str = "attendance.daily_records"


def _prepared(session: Session, number: int) -> None:
    session.execute(session.prepare(INSERT.format("?")), (number + 10,))


def _batch(session: Session, number: int) -> None:
    batch = BatchStatement()
    batch.add(INSERT.format(number))
    batch.add(DELETE)
    session.execute(batch)


ATTEMPTS = (
    Attempt("insert", lambda s, n: s.execute(INSERT.format(n)), "allowed", "insert"),
    Attempt("insert, prepared", _prepared, "allowed", "insert"),
    Attempt("select", lambda s, n: s.execute(SELECT), "denied", "select"),
    Attempt("prepare a select", lambda s, n: s.prepare(SELECT), "denied", "select"),
    Attempt("batch of an insert and a delete", _batch, "denied", "delete"),
    Attempt(
        "drop",
        lambda s, n: s.execute("DROP TABLE attendance.daily_records"),
        "denied",
        "drop-table",
    ),
    Attempt(
        "select from system.local",
        lambda s, n: s.execute("SELECT cluster_name FROM system.local"),
        "allowed",
        "select",
        "system.local",
    ),
)


def tell(stage: Stage) -> None:
    """Run the story; every attempt becomes a row of `stage`."""
    stage.title("The Empire's Cassandra (demos/secure-empire-cassandra.yaml)")
    server = stage.address(SERVER, PORT)
    stage.say(f"starting Cassandra {VERSION} (the first time, Maven gets its jars)")
    with cassandra(server.host, port=PORT), stage.endpoints() as endpoints:
        config = ProxyConfig(
            choose_parser("cassandra"),
            listen=stage.address(SERVER, 0),
            upstream=server,
            policies=(POLICY,),
            endpoints=endpoints,
        )
        with connect(server) as direct:
            for statement in SCHEMA:
                direct.execute(statement)
            with proxy(stage, config) as (running, log):
                for version, compression in WAYS:
                    who = f"outpost, v{version}{f' {compression}' if compression else ''}"
                    source = stage.address(OUTPOST, 0).host
                    options = {"protocol_version": version, "compression": compression}
                    with connect(running.address, source, **options) as session:
                        _try_all(stage, who, source, session, version, log)
                _stranger(stage, running.address, log)
            check_content(stage, direct)


def check_content(stage: Stage, direct: Session) -> None:
    """A row about what Cassandra holds after all `ATTEMPTS` in all `WAYS`."""
    found = sorted(row.id for row in direct.execute(SELECT))
    written = sorted(n for version, _ in WAYS for n in (version, version + 10))
    stage.check("Cassandra", "has what was allowed, only", written, found)


def _try_all(stage: Stage, who: str, source: str, session: Session, version: int, log: Log) -> None:
    for attempt in ATTEMPTS:
        observed = observe(attempt, session, version)

        def about(entry: LogEntry, attempt: Attempt = attempt) -> bool:
            fields = entry.generic_l7.fields
            return (
                entry.entry_type != EntryType.Response
                and entry.source_address.startswith(f"{source}:")
                and fields.get("query_action") == attempt.action
                and fields.get("query_table") == attempt.table
            )

        entry = log.next(about)
        stage.check(who, attempt.what, attempt.expected, confirmed(observed, entry), brief(entry))


def observe(attempt: Attempt, session: Session, number: int) -> str:
    """What a client sees of an attempt; number: of the row that it writes."""
    try:
        attempt.do(session, number)
    except Unauthorized:
        return "denied"
    return "allowed"


def _stranger(stage: Stage, to: Address, log: Log) -> None:
    source = stage.address(STRANGER, 0).host
    try:
        with connect(to, source):
            observed = "allowed"
    except NoHostAvailable:
        observed = "closed"
    entry = log.request_of(source)
    stage.check("a stranger", "connect", "closed", confirmed(observed, entry), brief(entry))


@contextmanager
def connect(to: Address, source: str = "", **options: Any) -> Iterator[Session]:
    """A session of the Python driver; source: the address that its connections come from."""
    profile = ExecutionProfile(load_balancing_policy=RoundRobinPolicy(), request_timeout=20)
    if source:
        options["connection_class"] = _coming_from(source)
        # The policy is older than system_virtual_schema, which today's drivers read too.
        options["schema_metadata_enabled"] = False
    cluster = Cluster(
        [to.host],
        port=to.port,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        connect_timeout=20,
        control_connection_timeout=20,
        **options,
    )
    try:
        yield cluster.connect()
    finally:
        cluster.shutdown()


def _coming_from(source: str) -> type:
    """The driver's connection, but from one source address."""
    connection_class: type = Cluster.connection_class

    class FromAddress(connection_class):  # type: ignore[misc]
        def _connect_socket(self) -> None:
            made = socket.socket()
            made.bind((source, 0))
            made.settimeout(self.connect_timeout)
            made.connect((self.endpoint.address, self.endpoint.port))
            self._socket = made

    return FromAddress


if __name__ == "__main__":
    raise SystemExit(run_stories(tell))
