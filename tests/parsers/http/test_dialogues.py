"""Each kind of message, as client and server say it."""

from __future__ import annotations

import pytest

from proxylib.testing import Host
from tests.conftest import OpenHost
from tests.parsers.http.talk import (
    BAD_REQUEST,
    CONTINUE,
    DENIED,
    GET,
    OK,
    PRIVATE,
    PUBLIC,
    errors,
    reply,
    request,
    talk,
)

CHUNKED = "Transfer-Encoding: chunked"
CHUNKS = b"5\r\nhello\r\n00A;"[:-1] + b"\r\n0123456789\r\n0\r\n"


def log_of(*turns: tuple[str, bytes]) -> list[tuple[str, object, object]]:
    """The log as (type, path, status)."""
    return [
        (record.entry_type.name, record.fields.get("path"), record.fields.get("status"))
        for record in talk(*turns).log
    ]


def test_allowed_and_denied(open_host: OpenHost) -> None:
    host = open_host("http", PUBLIC)
    assert host.client(GET) == GET
    assert host.server(OK) == OK
    assert host.client(PRIVATE) == b""
    assert host.take(reply=True) == DENIED
    assert host.client(GET) == GET
    assert host.server(OK) == OK
    assert not host.closed


def test_the_log() -> None:
    assert log_of(("client", GET), ("server", OK), ("client", PRIVATE)) == [
        ("Request", b"/public", None),
        ("Response", b"/public", 200),
        ("Denied", b"/private", 403),
    ]


def test_all_entries_of_a_request_have_its_protocol() -> None:
    old = b"GET /public HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    log = talk(("client", GET), ("server", OK), ("client", old), ("server", OK)).log
    protocols = [record.fields["protocol"] for record in log]
    assert protocols == [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.0"]


def test_denials_stand_in_the_order_of_replies() -> None:
    outcome = talk(
        ("client", PRIVATE + GET + PRIVATE + PRIVATE + GET + PRIVATE),
        ("server", OK),
        ("server", OK),
    )
    assert outcome.to_server == GET * 2
    assert outcome.to_client == DENIED + OK + DENIED * 2 + OK + DENIED


def test_a_denial_waits_for_the_end_of_the_reply_before_it() -> None:
    host = Host("http", PUBLIC)
    host.client(GET)
    host.server(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
    host.client(PRIVATE)
    assert host.take(reply=True) == b""
    assert host.server(b"c") == b"c"
    assert host.server(b"d") == b"d" + DENIED


def test_bodies_pass_and_denied_ones_are_dropped() -> None:
    body = b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n"
    allowed = request("POST /public", f"Content-Length: {len(body)}", body=body)
    denied = request("POST /private", f"Content-Length: {len(body)}", body=body)
    outcome = talk(("client", denied + allowed + denied + GET), ("server", OK + OK))
    assert outcome.to_server == allowed + GET
    assert outcome.to_client == DENIED + OK + DENIED + OK


def test_bodies_pass_without_the_parser() -> None:
    host = Host("http", PUBLIC)
    assert host.client(request("PUT /public/x", "Content-Length: 1000000")).endswith(b"\r\n\r\n")
    seen = len(host.ops)
    for _ in range(1000):
        host.client(b"x" * 1000)
    assert len(host.ops) == seen + 1, "called once, at the end"
    assert host.client(PRIVATE) == b""


def test_chunked_bodies() -> None:
    allowed = request("POST /public", CHUNKED, body=CHUNKS + b"\r\n")
    denied = request("POST /private", CHUNKED, body=CHUNKS + b"\r\n")
    outcome = talk(("client", denied + allowed + GET), ("server", OK + OK))
    assert outcome.to_server == allowed + GET
    assert outcome.to_client == DENIED + OK * 2


def test_a_chunk_passes_without_the_parser() -> None:
    host = Host("http", PUBLIC)
    host.client(request("PUT /public/x", CHUNKED, body=b"F4240\r\n"))
    seen = len(host.ops)
    for _ in range(1000):
        host.client(b"x" * 1000)
    assert len(host.ops) == seen + 1
    assert host.client(b"\r\n0\r\n\r\n") == b"\r\n0\r\n\r\n"
    assert host.client(PRIVATE) == b""


def test_trailers_of_requests_are_dropped() -> None:
    sent = request("POST /public", CHUNKED, body=CHUNKS + b"X-Token: 1\r\nY: 2\r\n\r\n")
    outcome = talk(("client", sent + GET))
    assert outcome.to_server == sent.replace(b"X-Token: 1\r\nY: 2\r\n", b"") + GET


def test_trailers_of_replies_pass() -> None:
    answer = reply("200 OK", CHUNKED, body=CHUNKS + b"Checksum: 1\r\n\r\n")
    outcome = talk(("client", GET + PRIVATE + GET), ("server", answer + OK))
    assert outcome.to_client == answer + DENIED + OK


HEADS_ONLY = [
    ("HEAD", reply("200 OK", "Content-Length: 1000")),
    ("HEAD", reply("200 OK", CHUNKED)),
    ("HEAD", reply("200 OK")),
    ("GET", reply("204 No Content")),
    ("GET", reply("204 No Content", "Content-Length: 0")),
    ("GET", reply("304 Not Modified", "Content-Length: 1000")),
    ("GET", reply("200 OK", "Content-Length: 0")),
    ("GET", reply("200")),
]


@pytest.mark.parametrize(("method", "head"), HEADS_ONLY[:-1], ids=lambda value: repr(value)[:40])
def test_replies_without_a_body(method: str, head: bytes) -> None:
    outcome = talk(("client", request(f"{method} /public") + PRIVATE + GET), ("server", head + OK))
    assert outcome.to_client == head + DENIED + OK
    assert not outcome.closed


def test_a_reply_that_ends_with_the_connection() -> None:
    head = reply("200 OK", "Connection: close")
    outcome = talk(("client", GET), ("server", head + OK + b"HTTP/1.1 "), ("server", b"\r\n\r\n"))
    assert outcome.to_client == head + OK + b"HTTP/1.1 \r\n\r\n"
    assert not outcome.closed


def test_interim_replies() -> None:
    hints = reply("103 Early Hints", "Link: </x>")
    outcome = talk(("client", GET + PRIVATE), ("server", hints + hints + OK))
    assert outcome.to_client == hints + hints + OK + DENIED
    assert [record.entry_type.name for record in outcome.log].count("Response") == 1


def test_head_is_denied_without_a_body() -> None:
    outcome = talk(("client", request("HEAD /private") + PRIVATE))
    assert outcome.to_client == DENIED.removesuffix(b"Access denied\r\n") + DENIED


def test_100_continue_is_answered_here() -> None:
    sent = request("POST /public", "Expect: 100-continue", "Content-Length: 2", body=b"hi")
    outcome = talk(("client", GET + sent + GET), ("server", OK), ("server", OK + OK))
    assert outcome.to_server == GET + sent.replace(b"Expect: 100-continue\r\n", b"") + GET
    assert outcome.to_client == OK + CONTINUE + OK * 2


def test_100_continue_of_a_denied_request() -> None:
    sent = request("POST /private", "Expect: 100-continue", "Content-Length: 2")
    outcome = talk(("client", sent), ("client", b"hi" + GET))
    assert (outcome.to_server, outcome.to_client) == (GET, DENIED)


WEBSOCKET = request("GET /public/ws", "Connection: Upgrade", "Upgrade: websocket")
SWITCH = reply("101 Switching Protocols", "Connection: upgrade", "Upgrade: WebSocket")


def test_a_websocket_passes_both_ways() -> None:
    frames = b"\x81\x05hello\r\n\r\n"
    outcome = talk(
        ("client", WEBSOCKET),
        ("server", SWITCH + frames),
        ("client", frames + PRIVATE),
        ("server", frames),
    )
    assert outcome.to_server == WEBSOCKET + frames + PRIVATE
    assert outcome.to_client == SWITCH + frames + frames
    assert outcome.log[-1].fields["status"] == 101


def test_a_websocket_that_the_server_declines() -> None:
    outcome = talk(("client", WEBSOCKET), ("server", OK), ("client", PRIVATE + GET))
    assert outcome.to_server == WEBSOCKET + GET
    assert outcome.to_client == OK + DENIED


def test_nothing_may_follow_a_request_for_a_websocket_before_its_answer() -> None:
    outcome = talk(("client", WEBSOCKET + GET), ("server", SWITCH), ("client", PRIVATE))
    assert (outcome.to_server, outcome.to_client, outcome.closed) == (WEBSOCKET, b"", True)
    outcome = talk(("client", WEBSOCKET + GET), ("server", OK), ("client", PRIVATE))
    assert (outcome.to_server, outcome.to_client) == (WEBSOCKET, OK + BAD_REQUEST)
    assert outcome.closed


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        (["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA"], []),
        (["Upgrade: websocket"], []),
        (["Connection: keep-alive, Upgrade", "Upgrade: TLS/1.0"], ["connection: keep-alive"]),
        (["Connection: Upgrade", "Upgrade: websocket, h2c"], []),
    ],
)
def test_no_other_protocol_is_offered(headers: list[str], sent: list[str]) -> None:
    outcome = talk(("client", request("GET /public", *headers) + GET), ("server", OK + OK))
    assert outcome.to_server == request("GET /public", *sent) + GET
    assert outcome.to_client == OK + OK


def test_a_post_is_no_websocket() -> None:
    sent = request("POST /public", "Connection: upgrade", "Upgrade: websocket")
    assert talk(("client", sent)).to_server == request("POST /public")


def test_connect_is_denied_whatever_the_rules() -> None:
    sent = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"
    outcome = talk(("client", sent + GET), ("server", OK), rules=None)
    assert outcome.to_server == GET
    assert outcome.to_client == DENIED + OK


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("/public/../public/x", "/public/x"),
        ("//public///x", "/public/x"),
        ("/%70ublic/%2e%2e/public", "/public"),
        ("/public?a=/../b", "/public?a=/../b"),
        ("http://a/public", "http://a/public"),
        ("HTTP://A:80/x/../public", "HTTP://A:80/public"),
    ],
)
def test_the_path_is_normalised_for_the_server_too(target: str, sent: str) -> None:
    outcome = talk(("client", request(f"GET {target}") + GET), ("server", OK + OK))
    assert outcome.to_server == request(f"GET {sent}") + GET
    assert outcome.to_client == OK + OK


@pytest.mark.parametrize(
    "target", ["/public/../private", "/public/%2e%2e/private", "/public/..//private", "//private"]
)
def test_no_way_around_by_another_spelling(target: str) -> None:
    outcome = talk(("client", request(f"GET {target}")))
    assert (outcome.to_server, outcome.to_client) == (b"", DENIED)
    assert outcome.log[0].fields["path"] == b"/private"


def test_options_of_the_server() -> None:
    outcome = talk(("client", request("OPTIONS *")), rules=[{"path": r"\*"}])
    assert outcome.to_server == request("OPTIONS *")


def test_folded_lines_become_spaces() -> None:
    sent = b"GET /public HTTP/1.1\r\nHost: a\r\nX: 1\r\n  2\r\n\t\r\n\t3 \r\nY: 4\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\nContent-Length:\r\n 2\r\n\r\nok"
    outcome = talk(("client", sent + GET), ("server", answer + OK))
    assert outcome.to_server == sent.replace(b"\r\n  2\r\n\t\r\n\t3 ", b" 2 3") + GET
    assert outcome.to_client == answer.replace(b"\r\n 2", b" 2") + OK


def test_old_clients() -> None:
    """HTTP/1.0: no Host is needed, and who is denied is closed on unless it keeps alive."""
    old = b"GET /public HTTP/1.0\r\n\r\n"
    kept = b"GET /private HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    outcome = talk(("client", kept + old), ("server", b"HTTP/1.0 200 OK\r\n\r\nhello"))
    assert outcome.to_server == old
    assert outcome.to_client == DENIED + b"HTTP/1.0 200 OK\r\n\r\nhello"


def test_the_last_request_of_a_client_is_denied() -> None:
    last = request("GET /private", "Connection: close")
    answer = DENIED.replace(b"plain\r\n", b"plain\r\nconnection: close\r\n")
    outcome = talk(("client", GET + last + GET), ("server", OK))
    assert (outcome.to_server, outcome.to_client, outcome.closed) == (GET, OK + answer, True)
    outcome = talk(("client", last))
    assert (outcome.to_client, outcome.closed) == (answer, True)
    assert not errors(outcome.log), "this is no error"


def test_an_empty_line_before_a_request() -> None:
    outcome = talk(
        ("client", b"\r\n" + GET + b"\r\n" + GET + b"\r\n\r\n" + GET), ("server", OK + OK)
    )
    assert outcome.to_server == GET + GET
    assert outcome.to_client == OK + OK + BAD_REQUEST


def test_a_bad_request_is_answered_in_its_turn() -> None:
    outcome = talk(("client", GET + PRIVATE + b"GET /\r\n\r\n" + GET), ("server", OK))
    assert outcome.to_server == GET
    assert outcome.to_client == OK + DENIED + BAD_REQUEST
    assert outcome.closed


def test_a_bad_chunk_is_answered_in_the_turn_of_its_request() -> None:
    sent = request("POST /public", CHUNKED, body=b"5\r\nhello\r\n5;x\r\nhello\r\n0\r\n\r\n")
    passed = sent[: sent.index(b"\r\n5;x")]
    outcome = talk(("client", GET + sent + GET), ("server", OK + OK))
    assert outcome.to_server == GET + passed
    assert outcome.to_client == OK + BAD_REQUEST
    assert outcome.closed


def test_a_bad_chunk_behind_the_beginning_of_its_reply() -> None:
    turns = [
        ("client", request("POST /public", CHUNKED, body=b"5\r\nhello\r\n")),
        ("server", OK[:-1]),
        ("client", b"x"),
    ]
    outcome = talk(*turns)
    assert (outcome.to_client, outcome.closed) == (OK[:-1], True)


def test_a_bad_chunk_of_a_denied_request() -> None:
    outcome = talk(("client", request("POST /private", CHUNKED, body=b"x\r\n")))
    assert (outcome.to_server, outcome.to_client) == (b"", DENIED + BAD_REQUEST)


def test_a_new_policy_is_in_force_for_the_next_request() -> None:
    host = Host("http", PUBLIC)
    assert host.client(GET) == GET
    host.set_policy("http", [{"path": "/private"}])
    assert host.client(GET) == b""
    assert host.server(OK) == OK + DENIED
    assert host.client(PRIVATE) == PRIVATE


def test_the_end_inside_a_message_is_in_the_log() -> None:
    host = Host("http", PUBLIC)
    host.client(GET[:10], end=True)
    assert errors(host.log) == ["Parser error: the connection ends inside a request"]
    host = Host("http", PUBLIC)
    host.client(GET, end=True)
    host.server(OK[:10], end=True)
    assert errors(host.log) == ["Parser error: the connection ends inside a reply"]


def test_the_end_between_messages_is_not() -> None:
    host = Host("http", PUBLIC)
    host.client(GET, end=True)
    host.server(OK, end=True)
    assert not errors(host.log)
