"""Text dialogues: what the server sees of the client, and the client of the server.

Each runs in pure Python and through the built library.
"""

from __future__ import annotations

import pytest

from tests.conftest import OpenHost, text_log

DENIED = b"CLIENT_ERROR access denied\r\n"
FLEET = [
    {"command": "writeGroup", "keyPrefix": "fleet/"},
    {"command": "get", "keyPrefix": "fleet/"},
    {"command": "noop"},
]

ALLOWED_ONE_LINERS = [
    (b"get fleet/a\r\n", b"END\r\n"),
    (b"get fleet/a\r\n", b"VALUE fleet/a 0 5\r\nEND\r\n\r\nEND\r\n"),
    (b"get fleet/a\n", b"VALUE fleet/a 0 0\r\n\r\nEND\r\n"),
    (b"  get   fleet/a  fleet/b \r\n", b"VALUE fleet/b 7 1\r\nx\r\nEND\r\n"),
    (b"gets fleet/a\r\n", b"VALUE fleet/a 0 1 99\r\nx\r\nEND\r\n"),
    (b"bget fleet/a\r\n", b"END\r\n"),
    (b"set fleet/a 0 0 5\r\nhello\r\n", b"STORED\r\n"),
    (b"set fleet/a 4294967295 -1 2\r\n\r\n\r\n", b"NOT_STORED\r\n"),
    (b"set fleet/a 0 2147483647 0\r\n\r\n", b"SERVER_ERROR out of memory storing object\r\n"),
    (b"add fleet/a 0 0 1\r\nx\r\n", b"NOT_STORED\r\n"),
    (b"replace fleet/a 0 0 1\r\nx\r\n", b"STORED\r\n"),
    (b"append fleet/a 0 0 1\r\nx\r\n", b"STORED\r\n"),
    (b"prepend fleet/a 0 0 1\r\nx\r\n", b"CLIENT_ERROR bad data chunk\r\n"),
    (b"cas fleet/a 0 0 1 18446744073709551615\r\nx\r\n", b"EXISTS\r\n"),
    (b"delete fleet/a\r\n", b"DELETED\r\n"),
    (b"delete fleet/a 0\r\n", b"NOT_FOUND\r\n"),
    (b"incr fleet/a 1\r\n", b"6\r\n"),
    (b"decr fleet/a x\r\n", b"CLIENT_ERROR invalid numeric delta argument\r\n"),
    (b"touch fleet/a 0\r\n", b"TOUCHED\r\n"),
    (b"mg fleet/a\r\n", b"HD\r\n"),
    (b"mg fleet/a v t\r\n", b"VA 2 t-1\r\nhi\r\n"),
    (b"mg fleet/a s\r\n", b"EN\r\n"),
    (b"ms fleet/a 2 T0\r\nhi\r\n", b"HD\r\n"),
    (b"ms fleet/a 2 ME\r\nhi\r\n", b"NS\r\n"),
    (b"md fleet/a I T30\r\n", b"HD\r\n"),
    (b"ma fleet/a MD D5 v\r\n", b"VA 1\r\n7\r\n"),
    (b"mn\r\n", b"MN\r\n"),
]


@pytest.mark.parametrize(("request_bytes", "reply"), ALLOWED_ONE_LINERS)
def test_allowed_requests_pass_and_their_replies_end(
    open_host: OpenHost, request_bytes: bytes, reply: bytes
) -> None:
    """The denial behind the reply shows that the parser knows where the reply ends."""
    host = open_host("memcache", FLEET)
    assert host.client(request_bytes + b"get secret\r\n") == request_bytes
    assert host.take(reply=True) == b""
    assert host.server(reply) == reply + DENIED
    assert [kind for kind, _ in text_log(host)] == ["Request", "Denied", "Response"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"get secret\r\n",
        b"get fleet/a secret\r\n",
        b"gets secret fleet/a\r\n",
        b"gat 0 fleet/a\r\n",
        b"gats 0 fleet/a\r\n",
        b"set secret 0 0 11\r\nget fleet/a\r\n",
        b"add secret 0 0 11\r\nget fleet/a\r\n",
        b"cas secret 0 0 11 1\r\nget fleet/a\r\n",
        b"delete secret\r\n",
        b"incr secret 1\r\n",
        b"touch secret 1\r\n",
        b"mg secret v\r\n",
        b"mg secret v q\r\n",
        b"mg fleet/a T30\r\n",
        b"mg ZmxlZXQvYQ== v\r\n",
        b"mg c2VjcmV0 b v\r\n",
        b"ms secret 11 q\r\nget fleet/a\r\n",
        b"ms c2VjcmV0 11 b\r\nget fleet/a\r\n",
        b"md secret\r\n",
        b"ma secret\r\n",
        b"me fleet/a\r\n",
        b"stats\r\n",
        b"flush_all\r\n",
        b"version\r\n",
        b"verbosity 1\r\n",
        b"shutdown\r\n",
        b"watch fetchers\r\n",
        b"lru_crawler metadump all\r\n",
        b"slabs reassign 1 2\r\n",
        b"lru mode flat\r\n",
        b"cache_memlimit 64\r\n",
        b"misbehave\r\n",
        b"nosuchcommand fleet/a\r\n",
        b"GET fleet/a\r\n",
        b"get\xc2\xa0fleet/a\r\n",
    ],
)
def test_denied_requests_are_answered(open_host: OpenHost, request_bytes: bytes) -> None:
    host = open_host("memcache", FLEET)
    assert host.client(request_bytes) == b""
    assert host.take(reply=True) == DENIED
    assert [kind for kind, _ in text_log(host)] == ["Denied"]
    assert host.client(b"get fleet/a\r\n") == b"get fleet/a\r\n"
    assert not host.closed


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"set secret 0 0 11 noreply\r\nget fleet/a\r\n",
        b"append secret 0 0 11 noreply\r\nget fleet/a\r\n",
        b"delete secret noreply\r\n",
        b"delete secret 0 noreply\r\n",
        b"incr secret 1 noreply\r\n",
        b"touch secret 1 noreply\r\n",
        b"flush_all noreply\r\n",
        b"flush_all 10 noreply\r\n",
        b"verbosity 1 noreply\r\n",
        b"slabs automove 1 noreply\r\n",
        b"quit\r\n",
    ],
)
def test_denied_and_silent_requests_vanish(open_host: OpenHost, request_bytes: bytes) -> None:
    host = open_host("memcache", FLEET)
    assert host.client(b"get fleet/a\r\n" + request_bytes + b"get secret\r\n") == b"get fleet/a\r\n"
    assert host.server(b"END\r\n") == b"END\r\n" + DENIED
    assert [kind for kind, _ in text_log(host)] == ["Request", "Denied", "Denied", "Response"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"set fleet/a 0 0 1 noreply\r\nx\r\n",
        b"delete fleet/a noreply\r\n",
        b"flush_all noreply\r\n",
        b"quit\r\n",
        b"slabs automove noreply\r\n",
        b"lru noreply x noreply\r\n",
    ],
)
def test_allowed_and_silent_requests_owe_nothing(open_host: OpenHost, request_bytes: bytes) -> None:
    host = open_host(
        "memcache", [*FLEET, *({"command": c} for c in (["flush_all", "quit", "slabs", "lru"]))]
    )
    assert host.client(request_bytes + b"get secret\r\n") == request_bytes
    assert host.take(reply=True) == DENIED


def test_delete_of_the_key_noreply_is_answered(open_host: OpenHost) -> None:
    host = open_host("memcache", [{"command": "delete", "keyExact": "noreply"}])
    assert host.client(b"delete noreply\r\nget x\r\n") == b"delete noreply\r\n"
    assert host.server(b"NOT_FOUND\r\n") == b"NOT_FOUND\r\n" + DENIED


def test_denials_stand_in_the_order_of_requests(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    sent = host.client(
        b"get x\r\nget fleet/a fleet/b\r\nget x\r\nget x\r\nset fleet/a 0 0 3\r\nabc\r\nget x\r\n"
    )
    assert sent == b"get fleet/a fleet/b\r\nset fleet/a 0 0 3\r\nabc\r\n"
    assert host.take(reply=True) == DENIED
    values = b"VALUE fleet/a 0 1\r\na\r\nVALUE fleet/b 0 1\r\nb\r\n"
    assert host.server(values) == values
    assert host.server(b"EN") == b""
    assert host.server(b"D\r\n") == b"END\r\n" + 2 * DENIED
    assert host.server(b"STORED\r\n") == b"STORED\r\n" + DENIED


def test_log(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    host.client(b"get fleet/a fleet/b\r\nincr fleet/n 1\r\nget fleet/a secret\r\nset\r\n")
    host.server(b"VALUE fleet/b 0 1\r\nb\r\nEND\r\n41\r\n")
    assert [record.proto for record in host.log] == ["textmemcached"] * 6
    log = [
        (kind, {k: v if k != "keys" else v.replace("'", "").strip("()b") for k, v in f.items()})
        for kind, f in text_log(host)
    ]
    assert [kind for kind, _ in log] == [
        "Request",
        "Request",
        "Denied",
        "Denied",
        "Response",
        "Response",
    ]
    assert log[1][1] == {"command": "incr", "keys": "fleet/n"}
    assert log[3][1] == {"command": "set", "keys": "", "status": "ERROR"}
    assert log[4][1] == {"command": "get", "status": "HIT"}
    assert log[5][1] == {"command": "incr", "status": "OK"}


def test_quiet_requests_and_a_barrier(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    quiet = b"mg fleet/a v q k\r\nms fleet/b 1 q\r\nx\r\n"
    # Behind quiet requests a denied one travels as a no-op.
    assert host.client(quiet + b"get secret\r\nget secret\r\nmn\r\n") == quiet + b"mn\r\nmn\r\n"
    hit = b"VA 2 kfleet/a\r\nhi\r\n"
    assert host.server(hit) == hit
    assert host.server(b"NS\r\n") == b"NS\r\n"
    assert host.server(b"MN\r\nMN\r\n") == 2 * DENIED + b"MN\r\n"


def test_quiet_requests_that_are_silent(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    host.client(b"ms fleet/a 1 q\r\nx\r\nmn\r\nget secret\r\n")
    assert host.server(b"CLIENT_ERROR bad data chunk\r\n") == b"CLIENT_ERROR bad data chunk\r\n"
    assert host.server(b"MN\r\n") == b"MN\r\n" + DENIED


NF, NS, EX, EN = b"NF\r\n", b"NS\r\n", b"EX\r\n", b"EN\r\n"
NO_MEMORY = b"SERVER_ERROR out of memory\r\n"
TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"
HIT = b"VA 2\r\nhi\r\n"


@pytest.mark.parametrize(
    ("allowed", "replies", "logged"),
    [
        # What each reply is taken for is a guess, and right where its form tells.
        (b"ms fleet/m 2 q MR\r\nab\r\nmg fleet/h v O0\r\n", [NS, b"VA 2 O0\r\nhh\r\n"], "- mg"),
        (b"ms fleet/m 2 q MR\r\nab\r\nms fleet/h 2\r\nab\r\n", [NS, b"HD\r\n"], "ms -"),
        (b"ms fleet/m 2 q MR\r\nab\r\nma fleet/n\r\n", [NS, NF], "ma -"),
        (b"ma fleet/n q\r\nmd fleet/n\r\n", [NF, NF], "md -"),
        (b"ma fleet/n q\r\nmd fleet/n\r\n", [NF], "md"),
        (b"ms fleet/m 2 q C1\r\nab\r\nms fleet/m 2 C1 O7\r\nab\r\n", [EX, b"EX O7\r\n"], "ms -"),
        (b"md fleet/a q\r\nget fleet/b\r\n", [NF, b"END\r\n"], "- get"),
        (b"ms fleet/a 9 q\r\n123456789\r\nget fleet/b\r\n", [TOO_LARGE, b"END\r\n"], "get -"),
        (
            b"ms fleet/a 9 q\r\n123456789\r\nset fleet/b 0 0 1\r\nx\r\n",
            [TOO_LARGE, b"STORED\r\n"],
            "set -",
        ),
        (
            b"mg fleet/a v q\r\nget fleet/b\r\nincr fleet/b 1\r\nmg fleet/b v\r\n",
            [NO_MEMORY, b"VALUE fleet/b 0 4\r\nMN\r\n\r\nEND\r\n", b"5\r\n", EN],
            "get - incr - mg",
        ),
        (b"ma fleet/a q\r\nma fleet/b v\r\n", [b"CLIENT_ERROR no number\r\n", HIT], "ma -"),
        (b"mg fleet/a v q\r\nmg fleet/b v\r\n", [HIT, HIT], "mg -"),
        (b"mg fleet/a v q\r\nmg fleet/b v\r\n", [HIT], "mg"),
        (b"mg fleet/a v q k\r\nmg fleet/b v k\r\n", [b"VA 1 kfleet/b\r\n1\r\n"], "mg"),
        (b"mg fleet/a v q O1\r\nmg fleet/b v O2\r\n", [b"VA 1 O1\r\n1\r\n", EN], "- mg"),
        (b"ma fleet/a q\r\nstats\r\n", [NO_MEMORY, b"STAT a MN\r\nEND\r\n"], "stats - -"),
        (b"refresh_certs noreply\r\nget fleet/a\r\n", [b"Error no TLS\r\n", b"END\r\n"], "- get"),
        (b"refresh_certs noreply\r\n", [b"Error no TLS\r\n"], "-"),
    ],
)
def test_a_denial_waits_for_all_that_was_asked_before(
    open_host: OpenHost, allowed: bytes, replies: list[bytes], logged: str
) -> None:
    """Behind quiet requests, whatever their answers are and whatever they look like."""
    host = open_host("memcache", [{}], deny=[{"command": "get", "keyExact": "secret"}])
    assert host.client(allowed + b"get secret\r\n") == allowed + b"mn\r\n"
    for reply in replies:
        assert host.server(reply) == reply
    assert host.take(reply=True) == b""
    assert host.server(b"MN\r\n") == DENIED
    # Now nothing else can be on its way.
    assert host.client(b"get secret\r\n") == b""
    assert host.take(reply=True) == DENIED
    kinds = [fields["command"] or "-" for kind, fields in text_log(host) if kind == "Response"]
    assert " ".join(kinds) == logged


def test_the_clients_own_no_op_brings_certainty(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    request = b"ms fleet/a 1 q\r\nx\r\nget fleet/a\r\nmn\r\n"
    assert host.client(request + b"get secret\r\n") == request
    assert host.server(NO_MEMORY + b"END\r\n") == NO_MEMORY + b"END\r\n"
    assert host.server(b"MN\r\n") == b"MN\r\n" + DENIED


def test_large_values_are_not_looked_at(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    size = 3_000_000
    head = b"set fleet/a 0 0 %d\r\n" % size
    assert host.client(head) == head
    calls = len(host.ops)
    body = (b"get secret\r\n" * (size // 12)).ljust(size, b".")
    assert host.client(*(body[i : i + 50_000] for i in range(0, size, 50_000))) == body
    assert len(host.ops) == calls
    assert host.client(b"\r\nget secret\r\n") == b"\r\n"
    assert host.server(b"STORED\r\n") == b"STORED\r\n" + DENIED
    head = b"set secret 0 0 %d\r\n" % size
    assert host.client(head) == b""
    assert host.take(reply=True) == DENIED
    assert host.client(*(body[i : i + 50_000] for i in range(0, size, 50_000))) == b""
    assert host.client(b"\r\nget fleet/a\r\n") == b"get fleet/a\r\n"
    value = b"VALUE fleet/a 0 %d\r\n" % size + body + b"\r\n"
    got = b"".join(host.server(value[i : i + 70_000]) for i in range(0, len(value), 70_000))
    assert got == value
    host.client(b"get secret\r\n")
    assert host.server(b"END\r\n") == b"END\r\n" + DENIED


def test_a_meta_value_is_not_overtaken(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    host.client(b"mg fleet/a v\r\nget secret\r\n")
    assert host.server(b"VA 4\r\nab") == b"VA 4\r\nab"
    assert host.take(reply=True) == b""
    assert host.server(b"cd") == b"cd"
    assert host.server(b"\r") == b""
    host.client(b"get secret\r\n")
    assert host.take(reply=True) == b""
    assert host.server(b"\n") == b"\r\n" + 2 * DENIED


def test_errors_end_any_reply(open_host: OpenHost) -> None:
    host = open_host("memcache", [*FLEET, {"command": "stats"}])
    requests = b"get fleet/a\r\nmg fleet/a\r\nstats\r\nset fleet/a 0 0 1\r\nx\r\n"
    host.client(requests.replace(b"\r\nmg", b"\r\nget x\r\nmg"))
    error = b"SERVER_ERROR out of memory\r\n"
    assert host.server(error) == error + DENIED
    assert host.server(error) == error
    host.client(b"get x\r\n")
    assert host.server(error + error) == error + error + DENIED


def test_unsolicited_replies_pass(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    error = b"ERROR Too many open connections\r\n"
    assert host.server(error) == error
    value = b"VALUE k 0 9\r\nEND\r\nEND\r\n\r\n"
    assert host.server(value) == value
    host.client(b"get x\r\n")
    assert host.take(reply=True) == DENIED


def test_watch_streams(open_host: OpenHost) -> None:
    host = open_host("memcache", [{"command": "watch"}])
    host.client(b"watch fetchers\r\n")
    assert host.server(b"OK\r\nts=1 gid=2 type=item_get key=VALUE\r\nts") == (
        b"OK\r\nts=1 gid=2 type=item_get key=VALUE\r\n"
    )
    host.client(b"get x\r\n")
    assert host.take(reply=True) == DENIED
    assert host.server(b"=2 VA 9\r\n") == b"ts=2 VA 9\r\n"


def test_a_refused_watch_does_not_stream(open_host: OpenHost) -> None:
    host = open_host("memcache", [{"command": "watch"}, {"command": "get"}])
    host.client(b"watch nonsense\r\nget x\r\ndelete x\r\n")
    assert host.server(b"ERROR\r\nEND\r\n") == b"ERROR\r\nEND\r\n" + DENIED


def test_stats_listings(open_host: OpenHost) -> None:
    host = open_host("memcache", [{"command": "stats"}, {"command": "lru_crawler"}])
    for request, reply in (
        (b"stats", b"STAT pid 1\r\nSTAT x END\r\nEND\r\n"),
        (b"stats reset", b"RESET\r\n"),
        (b"stats detail on", b"OK\r\n"),
        (b"stats detail dump", b"PREFIX a get 1\r\nEND\r\n"),
        (b"stats cachedump 1 1", b"ITEM a [1 b; 0 s]\r\nEND\r\n"),
        (b"lru_crawler metadump all", b"key=a exp=-1\nkey=b exp=1\nEND\r\n"),
        (b"lru_crawler metadump all", b"BUSY currently processing crawler request\r\n"),
    ):
        host.client(request + b"\r\nget x\r\n")
        assert host.server(reply) == reply + DENIED


def test_half_close(open_host: OpenHost) -> None:
    """The client has said its last; the reply still comes. A cut request does not go on."""
    host = open_host("memcache", FLEET)
    assert host.client(b"get fleet/a\r\nget fle", end=True) == b"get fleet/a\r\n"
    assert host.server(b"END\r\n") == b"END\r\n"
    assert text_log(host)[1] == ("Denied", {"status": "the connection ends inside a request line"})


def test_the_server_goes_in_the_middle_of_a_reply(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    host.client(b"get fleet/a\r\n")
    assert host.server(b"VALUE fl", end=True) == b"VALUE fl"


def test_policy_changes_between_requests(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    assert host.client(b"get fleet/a\r\n") == b"get fleet/a\r\n"
    host.set_policy("memcache", [{"command": "get", "keyExact": "other"}])
    assert host.client(b"get fleet/a\r\nget other\r\n") == b"get other\r\n"
    assert host.server(b"END\r\n") == b"END\r\n" + DENIED


def test_many_denials_wait_their_turn(open_host: OpenHost) -> None:
    host = open_host("memcache", FLEET)
    host.client(b"get fleet/a\r\n" + b"get x\r\n" * 20_000)
    out = host.server(b"END\r\n") + host.take(reply=True)
    assert out == b"END\r\n" + DENIED * 20_000


def test_a_run_of_gets_ends_before_the_half_of_one(open_host: OpenHost) -> None:
    """A regular expression that keeps the half would let the key behind it through."""
    host = open_host("memcache", [{"command": "get", "keyExact": "k"}])
    assert host.client(b"get k\r\nget k\r\nget x\r\n") == b"get k\r\nget k\r\n"
    assert host.client(b"get k\r\nget k\r\nget " + b"x" * 300) == b"get k\r\nget k\r\n"
    assert host.client(b"\r\nget k\r\n") == b"get k\r\n"
