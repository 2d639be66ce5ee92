"""The parser between real clients and a real memcached, which is the judge."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from pymemcache.client.base import Client as Pymemcache
from pymemcache.exceptions import MemcacheClientError

from tests.parsers.memcache.relay import Client, memcached, relay

FLEET = [
    {"command": "writeGroup", "keyPrefix": "alliance/fleet/"},
    {"command": "get", "keyPrefix": "alliance/fleet/"},
]
MONITORING = [{"command": "get", "keyPrefix": "alliance/fleet/"}]
DENIED = b"CLIENT_ERROR access denied\r\n"
TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"
NOT_NUMERIC = b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    with memcached() as address:
        yield address


@pytest.mark.parametrize("rules", [None, [{}]], ids=["no L7 rules", "rule for everything"])
def test_memccapable(rules: list[dict[str, str]] | None) -> None:
    """libmemcached's conformance test: 54 tests of both protocols."""
    tool = shutil.which("memccapable")
    assert tool, "memccapable is not installed (Debian package libmemcached-tools)"
    with memcached() as upstream, relay(upstream, rules) as it:
        host, port = it.address
        command = [tool, "-h", host, "-p", str(port)]
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("[pass]") == 54, run.stdout
    assert not any(connection.closed for connection in it.hosts)


def test_fleet_maintenance_reads_and_writes_its_keys(server: tuple[str, int]) -> None:
    with relay(server, FLEET) as it:
        client = Pymemcache(it.address, default_noreply=False)
        assert client.set("alliance/fleet/xwing", b"red five")
        assert client.get("alliance/fleet/xwing") == b"red five"
        assert client.get_many(["alliance/fleet/xwing", "alliance/fleet/none"]) == {
            "alliance/fleet/xwing": b"red five"
        }
        assert client.append("alliance/fleet/xwing", b"!")
        value, cas = client.gets("alliance/fleet/xwing")
        assert value == b"red five!"
        assert client.cas("alliance/fleet/xwing", b"gone", cas)
        assert client.touch("alliance/fleet/xwing", 100)
        assert client.set("alliance/fleet/count", "1")
        assert client.incr("alliance/fleet/count", 41) == 42
        assert client.delete("alliance/fleet/xwing")
        for refused in (
            lambda: client.set("empire/plans", b"x"),
            lambda: client.get("empire/plans"),
            lambda: client.get_many(["alliance/fleet/count", "empire/plans"]),
            lambda: client.delete("empire/plans"),
            client.flush_all,
            client.stats,
        ):
            with pytest.raises(MemcacheClientError, match="access denied"):
                refused()
        assert client.get("alliance/fleet/count") == b"42"
        client.close()


def test_monitoring_only_reads(server: tuple[str, int]) -> None:
    with relay(server, MONITORING) as it, Client(it.address) as client:
        assert client.ask(b"set alliance/fleet/a 0 0 9\r\nflush_all\r\n", b"\n") == DENIED
        # noreply: no answer, and the value is not taken for a request.
        client.socket.sendall(b"set alliance/fleet/a 0 0 9 noreply\r\nflush_all\r\n")
        assert client.ask(b"get alliance/fleet/a\r\n", b"END\r\n") == b"END\r\n"


def test_answers_keep_their_order(server: tuple[str, int]) -> None:
    """Denials between quiet and loud requests of every kind of reply."""
    with relay(server, FLEET) as it, Client(it.address) as client:
        big = b"x" * 300_000
        client.ask(b"set alliance/fleet/big 0 0 300000\r\n" + big + b"\r\n", b"STORED\r\n")
        answer = client.ask(
            b"get alliance/fleet/big\r\n"
            b"get secret\r\n"
            b"mg alliance/fleet/big v\r\n"
            b"get secret\r\n"
            b"mg alliance/fleet/none v q\r\n"
            b"get secret\r\n"
            b"mg alliance/fleet/big s q k\r\n"
            b"ms secret 2 q\r\nhi\r\n"
            b"get alliance/fleet/none\r\n"
            b"delete alliance/fleet/big\r\n",
            b"DELETED\r\n",
        )
        value = b" 300000\r\n" + big + b"\r\n"
        assert answer == (
            b"VALUE alliance/fleet/big 0" + value + b"END\r\n" + DENIED + b"VA" + value + DENIED
            # none is a quiet miss
            + DENIED + b"HD s300000 kalliance/fleet/big\r\n" + DENIED + b"END\r\nDELETED\r\n"
        )  # fmt: skip


@pytest.mark.parametrize(
    ("quiet", "answer"),
    [
        (b"ms fleet/none 2 q MR\r\nab\r\n", b"NS\r\n"),
        (b"ms fleet/none 2 q MR O0\r\nab\r\n", b"NS O0\r\n"),
        (b"ms fleet/a 2097152 q\r\n" + b"x" * 2097152 + b"\r\n", TOO_LARGE),
        (b"ms fleet/a 2 q C1\r\nab\r\n", b"EX\r\n"),
        (b"ms fleet/a 2 q\r\nab\r\n", b""),
        (b"ma fleet/none q\r\n", b"NF\r\n"),
        (b"ma fleet/a q\r\n", NOT_NUMERIC),
        (b"md fleet/a q C1\r\n", b"EX\r\n"),
        (b"md fleet/none q\r\n", b"NF\r\n"),
        (b"mg fleet/a v q\r\n", b"VA 2\r\nhh\r\n"),
        (b"mg fleet/none v q\r\n", b""),
        (b"mg fleet/a q Tx\r\n", b"CLIENT_ERROR bad token in command line format\r\n"),
    ],
)
@pytest.mark.parametrize(
    ("loud", "reply"),
    [
        (b"mg fleet/h v O0\r\n", b"VA 2 O0\r\nhh\r\n"),
        (b"mg fleet/h v\r\n", b"VA 2\r\nhh\r\n"),
        (b"mg fleet/none\r\n", b"EN\r\n"),
        (b"get fleet/h\r\n", b"VALUE fleet/h 0 2\r\nhh\r\nEND\r\n"),
        (b"ms fleet/none 2 MR\r\nab\r\n", b"NS\r\n"),
        (b"md fleet/none\r\n", b"NF\r\n"),
        (b"ma fleet/h\r\n", NOT_NUMERIC),
        (b"set fleet/h 0 0 2\r\nhh\r\n", b"STORED\r\n"),
        (b"", b""),
    ],
)
def test_quiet_answers_overtake_nothing(
    server: tuple[str, int], quiet: bytes, answer: bytes, loud: bytes, reply: bytes
) -> None:
    rules = [{"command": c, "keyPrefix": "fleet/"} for c in ("writeGroup", "get", "gat")]
    rules += [{"command": "noop"}]
    with relay(server, rules) as it, Client(it.address) as client:
        stored = b"STORED\r\n" * 2
        values = b"set fleet/a 0 0 2\r\nhh\r\nset fleet/h 0 0 2\r\nhh\r\n"
        assert client.ask(values, stored) == stored
        request = quiet + loud + b"get denied\r\n"
        expected = answer + reply + DENIED
        assert client.ask(request + b"mn\r\n", b"MN\r\n") == expected + b"MN\r\n"


def test_refresh_certs_answers_in_spite_of_noreply(server: tuple[str, int]) -> None:
    rules = [{"command": "refresh_certs"}]
    with relay(server, rules) as it, Client(it.address) as client:
        answer = client.ask(b"refresh_certs noreply\r\nget secret\r\n", DENIED)
        assert answer == b"Error TLS not enabled\r\n" + DENIED


def test_too_large_value_keeps_the_pairing(server: tuple[str, int]) -> None:
    with relay(server, FLEET) as it, Client(it.address) as client:
        size = 2 << 20
        request = b"set alliance/fleet/huge 0 0 %d\r\n%b\r\n" % (size, b"y" * size)
        answer = client.ask(request + b"get secret\r\nget alliance/fleet/huge\r\n", b"END\r\n")
        assert answer == b"SERVER_ERROR object too large for cache\r\n" + DENIED + b"END\r\n"


def test_listings(server: tuple[str, int]) -> None:
    rules = [{"command": "stats"}, {"command": "lru_crawler"}]
    with relay(server, rules) as it, Client(it.address) as client:
        for request, start, end in (
            (b"stats", b"STAT pid", b"\r\nEND\r\n"),
            (b"stats settings", b"STAT maxbytes", b"\r\nEND\r\n"),
            (b"stats reset", b"RESET\r\n", b""),
            (b"stats detail on", b"OK\r\n", b""),
            (b"stats detail dump", b"", b"END\r\n"),
            (b"stats nonsense", b"ERROR\r\n", b""),
            (b"lru_crawler metadump all", b"", b"END\r\n"),
            (b"lru_crawler crawl nonsense", b"BADCLASS", b"id\r\n"),
        ):
            answer = client.ask(request + b"\r\nget secret\r\n", DENIED)
            assert answer.startswith(start)
            assert answer.endswith(end + DENIED)


def test_watch_streams_on(server: tuple[str, int]) -> None:
    with relay(server, [{}]) as it, Client(it.address) as watcher, Client(it.address) as other:
        assert watcher.ask(b"watch fetchers\r\n", b"\n") == b"OK\r\n"
        other.ask(b"get seen\r\n", b"END\r\n")
        assert b"key=seen" in watcher.ask(b"", b"\n")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"set k nonsense 0 11\r\nflush_all 5\r\n",
        b"set k 0 nonsense 11\r\nflush_all 5\r\n",
        b"cas k 0 0 11 nonsense\r\nflush_all 5\r\n",
        b"set " + b"k" * 251 + b" 0 0 11\r\nflush_all 5\r\n",
        b"set k\0 0 0 11\r\nflush_all 5\r\n",
        b"ms k\0 11\r\nflush_all 5\r\n",
        b"ms k 11 "
        + b" ".join(b"P L F C I M J D x b c f h k l O q s".split())
        + b"\r\nflush_all 5\r\n",
    ],
)
def test_a_value_is_never_taken_for_a_request(
    server: tuple[str, int], request_bytes: bytes
) -> None:
    """memcached 1.6.18 itself does, after these lines; through the parser it must not."""
    rules = [{"command": "storage"}, {"command": "stats"}]
    with relay(server, rules) as it, Client(it.address) as client:
        before = _flushes(server)
        client.ask(request_bytes + b"stats\r\n", b"END\r\n")
        assert _flushes(server) == before


def _flushes(server: tuple[str, int]) -> bytes:
    with Client(server) as client:
        stats = client.ask(b"stats\r\n", b"END\r\n")
    return next(line for line in stats.splitlines() if line.startswith(b"STAT cmd_flush"))
