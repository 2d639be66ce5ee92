"""Statements: what each kind is read as, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsers.cassandra.actions import WITH_TABLE, WITHOUT_TABLE
from parsers.cassandra.statements import (
    FORMS,
    MAX_ACCESSES,
    MAX_TOKENS,
    Reading,
    Unreadable,
    _read,
    read,
)


def accesses(statement: str) -> list[str]:
    reading = read(statement.encode(), b"Cur")
    return [
        f"{access['query_action'].decode()} {access['query_table'].decode()}".rstrip()
        for access in reading.accesses
    ]


STATEMENTS = [
    ("SELECT * FROM system.local", "select system.local"),
    ("select a,b from t where c = 'FROM x.y' limit 1;", "select Cur.t"),
    ("SELECT JSON DISTINCT a FROM k.t ALLOW FILTERING", "select k.t"),
    ("SELECT \"from\", 'it''s FROM x.y', $$ FROM x.y $$ FROM k.t", "select k.t"),
    ("SELECT a /* FROM x.y */ -- FROM x.z\n, b // FROM q\r FROM k.t", "select k.t"),
    ("SELECT count(*), writetime(a), cast(b AS text), a[1..3], u.f FROM k.t", "select k.t"),
    (
        "SELECT 550e8400-e29b-41d4-a716-446655440000, 1.5e-3, -.5, 0xfa, 1h30m FROM k.t",
        "select k.t",
    ),
    ("SELECT P1Y2M, -P2W, PT5M, P0001-01-01T00:00:00, 3µs, nan, -NaN FROM k.t", "select k.t"),
    ("SELECT fromage, k.from_(a) FROM k.t", "select k.t"),
    ("SELECT*FROM k.t", "select k.t"),
    ('SELECT """", a FROM k."select"', "select k.select"),
    ('SELECT a FROM"K"."T"', "select K.T"),
    ('SELECT a FROM k /* x */ . -- y\n "T"', "select k.T"),
    ("SELECT a FROM " + "K" * 40 + ".T", "select " + "k" * 40 + ".t"),
    ("-- comment\n/* and */ SELECT a FROM k.t", "select k.t"),
    ("INSERT INTO k.t (a) VALUES ('SELECT * FROM x.y')", "insert k.t"),
    ("""INSERT INTO t JSON '{"a": "APPLY BATCH"}' DEFAULT UNSET IF NOT EXISTS""", "insert Cur.t"),
    ("INSERT INTO json JSON ?", "insert Cur.json"),
    ("UPDATE k.t USING TTL 5 SET a = 'x' WHERE b = 1 IF EXISTS", "update k.t"),
    ("DELETE FROM k.t WHERE a = 1", "delete k.t"),
    ("DELETE a, b['FROM x.y'] FROM k.t WHERE a = 1", "delete k.t"),
    ("TRUNCATE k.t", "truncate-table k.t"),
    ("TRUNCATE TABLE t", "truncate-table Cur.t"),
    ("TRUNCATE columnfamily k.t", "truncate-table k.t"),
    ("USE k", "use k"),
    ('USE "K"', "use K"),
    ("CREATE KEYSPACE IF NOT EXISTS k WITH replication = {}", "create-keyspace k"),
    ("CREATE SCHEMA k WITH replication = {}", "create-keyspace k"),
    ("ALTER KEYSPACE k WITH durable_writes = true", "alter-keyspace k"),
    ("DROP KEYSPACE IF EXISTS k", "drop-keyspace k"),
    ("CREATE TABLE k.t (a int PRIMARY KEY)", "create-table k.t"),
    ("CREATE/**/TABLE\nk.t (a int PRIMARY KEY)", "create-table k.t"),
    ('CREATE TABLE"T"(a int PRIMARY KEY)', "create-table Cur.T"),
    ("CREATE COLUMNFAMILY IF NOT EXISTS t (a int PRIMARY KEY)", "create-table Cur.t"),
    ("ALTER TABLE IF EXISTS k.t ADD b int", "alter-table k.t"),
    ("DROP TABLE IF EXISTS k.t", "drop-table k.t"),
    ("CREATE INDEX IF NOT EXISTS i ON k.t (a)", "create-index"),
    ("CREATE CUSTOM INDEX ON k.t (a) USING 'sai'", "create-index"),
    ("DROP INDEX k.i", "drop-index"),
    ("CREATE MATERIALIZED VIEW k.v AS SELECT * FROM k.t", "create-materialized-view"),
    ("ALTER MATERIALIZED VIEW k.v WITH comment = ''", "alter-materialized-view"),
    ("DROP MATERIALIZED VIEW k.v", "drop-materialized-view"),
    ("CREATE TYPE k.u (a int)", "create-type"),
    ("ALTER TYPE k.u ADD b int", "alter-type"),
    ("DROP TYPE k.u", "drop-type"),
    ("CREATE OR REPLACE FUNCTION k.f (a int) RETURNS int AS $$ return a; $$", "create-function"),
    ("CREATE FUNCTION f() CALLED ON NULL INPUT RETURNS int", "create-function"),
    ("DROP FUNCTION k.f", "drop-function"),
    ("CREATE AGGREGATE k.a (int) SFUNC f STYPE int", "create-aggregate"),
    ("DROP AGGREGATE k.a", "drop-aggregate"),
    ("CREATE TRIGGER x ON k.t USING 'c'", "create-trigger"),
    ("DROP TRIGGER x ON k.t", "drop-trigger"),
    ("CREATE ROLE r WITH PASSWORD = 'x'", "create-role"),
    ("ALTER ROLE r WITH LOGIN = true", "alter-role"),
    ("DROP ROLE r", "drop-role"),
    ("CREATE USER u WITH PASSWORD 'x'", "create-user"),
    ("ALTER USER u SUPERUSER", "alter-user"),
    ("DROP USER u", "drop-user"),
    ("ADD IDENTITY 'spiffe' TO ROLE 'r'", "add-identity"),
    ("DROP IDENTITY 'spiffe'", "drop-identity"),
    ("GRANT SELECT PERMISSION ON TABLE k.t TO r", "grant-permission"),
    ("GRANT ALL ON ALL KEYSPACES TO r", "grant-permission"),
    ("GRANT admin TO r", "grant-role"),
    ("GRANT 'a ON b' TO r", "grant-role"),
    ("REVOKE MODIFY ON KEYSPACE k FROM r", "revoke-permission"),
    ("REVOKE admin FROM r", "revoke-role"),
    ("LIST ROLES OF r NORECURSIVE", "list-roles"),
    ("LIST USERS", "list-users"),
    ("LIST SUPERUSERS", "list-superusers"),
    ("LIST ALL PERMISSIONS OF r", "list-permissions"),
    ("LIST SELECT ON k.t", "list-permissions"),
    ("DESCRIBE TABLE k.t", "describe"),
    ("DESC KEYSPACES", "describe"),
]


@pytest.mark.parametrize(("statement", "expected"), STATEMENTS)
def test_statement(statement: str, expected: str) -> None:
    assert accesses(statement) == [expected]


def test_every_action_has_a_statement() -> None:
    actions = {*WITH_TABLE, *WITHOUT_TABLE}
    assert {action for action, _ in FORMS} == actions
    assert {expected.split()[0] for _, expected in STATEMENTS} == actions


def test_batch() -> None:
    text = """BEGIN UNLOGGED BATCH USING TIMESTAMP 5
        INSERT INTO k.a (x) VALUES ('; DELETE FROM k.z')
        update b SET apply_ = 1, "delete" = 'APPLY BATCH' WHERE x = 1; /* UPDATE k.z */
        DELETE FROM K.c WHERE y = 1 IF EXISTS
        INSERT INTO k.a (x) VALUES (2);
        APPLY BATCH;"""
    assert accesses(text) == ["insert k.a", "update Cur.b", "delete k.c"]
    assert accesses("BEGIN BATCH APPLY BATCH") == []
    for time in ("1", "-1", "?", ":when"):
        text = f"BEGIN COUNTER BATCH USING TIMESTAMP {time} DELETE FROM k.t APPLY BATCH"
        assert accesses(text) == ["delete k.t"]
    assert accesses("begin counter batch update k.c set n=n+1 where a=?apply batch") == [
        "update k.c"
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "",
        ";",
        "42",
        "'SELECT a FROM k.t'",
        "/* never closed SELECT a FROM k.t",
        "-- never ended SELECT a FROM k.t",
        "EXPLAIN SELECT a FROM k.t",
        "SELECT a",
        "SELECT 'a FROM k.t",
        'SELECT "a FROM k.t',
        "SELECT $$a FROM k.t",
        "SELECT a FROM",
        "SELECT a FROM ?",
        'SELECT a FROM "k t".x',
        'SELECT a FROM k."we!rd"',
        "SELECT a FROM k.t.u",
        "SELECT a FROM k.'t'",
        "SELECT a ` FROM k.t",
        "SELECT a \0 FROM k.t",
        "SELECT \u00e4 FROM k.t",
        "SELECT a\u00a0FROM k.t",
        # Tokens that Cassandra parts where a reader would not.
        "SELECT 1FROM k.t",
        "SELECT 1.FROM k.t",
        "SELECT 0xabFROM k.t",
        "SELECT 1dFROM k.t",
        "SELECT -NANFROM k.t",
        "SELECT -INFINITYFROM k.t",
        "SELECT P1YFROM k.t",
        "SELECT PT1HFROM k.t",
        "SELECT aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaaFROM k.t",
        "INSERT k.t (a) VALUES (1)",
        "INSERTINTO k.t (a) VALUES (1)",
        'CREATE TABLE IF NOT EXISTS "a b" (c int)',
        "CREATE SOMETHING k.t",
        "GRANT admin",
        "BEGIN TRANSACTION SELECT a FROM k.t COMMIT TRANSACTION",
        "BEGIN BATCH INSERT INTO k.t (a) VALUES (1)",
        "BEGIN BATCH DUPATE k.t SET a = 1 APPLY BATCH",
        "BEGIN BATCH UPDATE k.t SET a = 1 SELECT * FROM k.u APPLY BATCH",
        "BEGIN BATCH TRUNCATE k.t APPLY BATCH",
        "BEGIN BATCH INSERT INTO ? (a) VALUES (1) APPLY BATCH",
        "BEGIN BATCH INSERT INTO k.t (a) VALUES (1) APPLY",
        "BEGIN BATCH UPDATE k.t SET a = -NANDELETE FROM k.secret APPLY BATCH",
        "BEGIN BATCH UPDATE k.t SET a = 1dDELETE FROM k.secret APPLY BATCH",
        "SELECT " + "a," * MAX_TOKENS + "a FROM k.t",
        "BEGIN BATCH " + "UPDATE k.t SET a = 1 WHERE b = 2;" * (MAX_TOKENS // 8) + "APPLY BATCH",
        "BEGIN BATCH "
        + "".join(f"UPDATE k.t{i} SET a = 1;" for i in range(MAX_ACCESSES + 1))
        + "APPLY BATCH",
        'SELECT a FROM "K""T"',
        'SELECT a FROM "K""T".t',
        'SELECT a FROM k."a b""T"',
        "SELECT 'a''b FROM k.t",
        "SELECT a FROM select",
        "BEGIN BATCH DELETE a INSERT INTO k.secret (b) VALUES (1) FROM k.t APPLY BATCH",
    ],
)
def test_unreadable(statement: str) -> None:
    with pytest.raises(Unreadable):
        read(statement.encode(), b"k")


def test_not_utf8() -> None:
    with pytest.raises(Unreadable, match="UTF-8"):
        read(b"SELECT '\xff' FROM k.t", b"")


def test_a_long_insert_is_read_at_its_front() -> None:
    assert accesses("INSERT INTO k.t (a) VALUES ('" + "x" * (8 << 20) + "')") == ["insert k.t"]


HOSTILE = {
    "columns": "SELECT " + "a," * (1 << 19),
    "blanks": "INSERT" + " " * (1 << 20),
    "comments": "CREATE " + "/**/" * (1 << 18),
    "line comments": "CREATE " + "--\n" * (1 << 18),
    "an open comment": "CREATE " + "/*" + "*" * (1 << 20),
    "quotes": "SELECT " + "''" * (1 << 19) + "'",
    "double quotes": "SELECT " + '""' * (1 << 19) + '"',
    "dollars": "SELECT $$" + "$a" * (1 << 19),
    "durations": "SELECT " + "1d" * (1 << 19) + "x",
    "digits": "SELECT " + "1" * (1 << 20) + "x",
    "periods": "SELECT P" + ("1" * (1 << 18) + "Y") * 4,
    "minus": "SELECT " + "-" * (1 << 20),
    "privileges": "GRANT " + "a " * (1 << 19),
    "a long word": "SELECT " + "a" * (1 << 20) + "\0",
    "deletes": "BEGIN BATCH " + "DELETE a " * (1 << 17) + "FROM k.t APPLY BATCH",
    "statements": "BEGIN BATCH " + "DELETE FROM k.t " * (1 << 16),
}


@pytest.mark.parametrize("statement", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_statement_costs_no_more_than_its_length(statement: str) -> None:
    """A megabyte each: read in any other way than straight on, it takes hours."""
    with pytest.raises(Unreadable):
        read(statement.encode(), b"k")


def test_case_and_keyspace() -> None:
    assert accesses('SELECT a FROM "MiXed"') == ["select Cur.MiXed"]
    assert accesses("SELECT a FROM MiXed") == ["select Cur.mixed"]
    assert read(b"SELECT a FROM t", b"").accesses[0]["query_table"] == b".t"
    assert read(b'USE "K"', b"").use == b"K"


SOUP = """SELECT count a b t k.t k . FROM from WHERE id = ? 'x' "T" ( ) , 1 -1 -- /* */ // $$ <
INSERT INTO VALUES UPDATE SET DELETE BEGIN BATCH APPLY USE k2 CREATE TABLE IF NOT EXISTS INDEX ON
TO GRANT TRUNCATE 1d P1Y aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa > [ ] { } ; 3µs"""
WORDS = [*SOUP.split(), "\n"]


def outcome(reader: Callable[[bytes, bytes], Reading], statement: bytes) -> object:
    try:
        return reader(statement, b"cur")
    except Unreadable:
        return "unreadable"


@given(st.lists(st.sampled_from(WORDS), max_size=14), st.sampled_from([" ", "", "\n"]))
@settings(max_examples=1500)
def test_a_head_says_what_the_whole_says(words: list[str], gap: str) -> None:
    statement = gap.join(words).encode()
    assert outcome(read, statement) == outcome(_read, statement)


@pytest.mark.parametrize(("statement", "expected"), STATEMENTS)
def test_a_head_of_a_real_statement(statement: str, expected: str) -> None:
    assert outcome(read, statement.encode()) == outcome(_read, statement.encode())
