"""What request smuggling is made of: each is answered 400, and the connection closes.

Nothing of it goes to the server, and neither does what stands behind it.
"""

from __future__ import annotations

import pytest

from proxylib.testing import Host
from tests.conftest import OpenHost
from tests.parsers.http.talk import (
    BAD_REQUEST,
    DENIED,
    GET,
    OK,
    PRIVATE,
    errors,
    reply,
    request,
    talk,
)

CHUNKED = "Transfer-Encoding: chunked"


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def post(*headers: str) -> bytes:
    return request("POST /public", *headers)


HEADS = {
    "both lengths": post("Content-Length: 4", CHUNKED),
    "both lengths, the other way round": post(CHUNKED, "Content-Length: 4"),
    "two lengths": post("Content-Length: 4", "Content-Length: 5"),
    "two equal lengths": post("Content-Length: 4", "Content-Length: 4"),
    "a list of lengths": post("Content-Length: 4, 4"),
    "a signed length": post("Content-Length: +4"),
    "a negative length": post("Content-Length: -4"),
    "a hexadecimal length": post("Content-Length: 0x4"),
    "an underscored length": post("Content-Length: 1_0"),
    "an Arabic length": post("Content-Length: \u0664".encode().decode("latin-1")),
    "an empty length": post("Content-Length:"),
    "a length with a blank in it": post("Content-Length: 4 4"),
    "a length beyond numbers": post("Content-Length: " + "9" * 19),
    "a length with a vertical tab": post("Content-Length: \x0b4"),
    "chunked twice": post("Transfer-Encoding: chunked, chunked"),
    "chunked in two headers": post(CHUNKED, CHUNKED),
    "chunked not last": post("Transfer-Encoding: chunked, identity"),
    "chunked behind another": post("Transfer-Encoding: gzip, chunked"),
    "identity": post("Transfer-Encoding: identity"),
    "not quite chunked": post("Transfer-Encoding: xchunked"),
    "quoted": post('Transfer-Encoding: "chunked"'),
    "chunked and nothing": post("Transfer-Encoding: chunked,"),
    "no coding": post("Transfer-Encoding:"),
    "chunked with a parameter": post("Transfer-Encoding: chunked;q=1"),
    "chunked in HTTP/1.0": head("POST /public HTTP/1.0", "Host: a", CHUNKED),
    "a blank before the colon": post("Transfer-Encoding : chunked"),
    "a tab before the colon": post("Transfer-Encoding\t: chunked"),
    "a blank before the name": head("POST /public HTTP/1.1", " Host: a"),
    "no colon": post("Transfer-Encoding chunked"),
    "no name": post(": chunked"),
    "a name with a blank": post("Transfer Encoding: chunked"),
    "a name with a byte beyond ASCII": post("Transfer-Encoding\xa0: chunked"),
    "a name with a bracket": post("X[y]: 1"),
    "a length for CGI": post("Content_Length: 4"),
    "a coding for CGI": post("transfer_encoding: chunked"),
    "two lengths, one for CGI": head(
        "GET /public HTTP/1.1", "Host: a", "CONTENT-LENGTH: 0", "Content_length: 1"
    ),
    "a bare LF behind the request line": b"GET /public HTTP/1.1\nHost: a\r\n\r\n",
    "a bare LF behind a header": b"GET /public HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "bare LFs only": b"GET /public HTTP/1.1\nHost: a\n\n",
    "an empty line of LF": b"GET /public HTTP/1.1\r\nHost: a\r\n\nGET /private HTTP/1.1\r\n\r\n",
    "a bare CR in a value": post("X: a\rTransfer-Encoding: chunked"),
    "a bare CR in a name": post("X\r: a"),
    "a CR twice": b"GET /public HTTP/1.1\r\r\nHost: a\r\n\r\n",
    "a bare CR in the request line": b"GET /public\rx HTTP/1.1\r\nHost: a\r\n\r\n",
    "LF before CR": b"GET /public HTTP/1.1\n\rHost: a\r\n\r\n",
    "NUL in a value": post("X: a\0b"),
    "NUL in a name": post("X\0: a"),
    "NUL in the path": request("GET /public\0/x"),
    "an escaped NUL in the path": request("GET /public%00/x"),
    "DEL in a value": post("X: \x7f"),
    "no Host": head("GET /public HTTP/1.1"),
    "two Hosts": head("GET /public HTTP/1.1", "Host: a", "Host: b"),
    "two equal Hosts": head("GET /public HTTP/1.1", "Host: a", "Host: a"),
    "two Hosts in HTTP/1.0": head("GET /public HTTP/1.0", "Host: a", "Host: b"),
    "a list of Hosts": request("GET /public", host="a, b"),
    "a Host with a user": request("GET /public", host="b@a"),
    "a Host with a path": request("GET /public", host="a/x"),
    "a Host with a blank": request("GET /public", host="a b"),
    "another authority than the Host": request("GET http://b/public"),
    "another port than the Host's": request("GET http://a:81/public"),
    "a user before the authority": request("GET http://b@a/public"),
    "an authority that ends in a backslash": request("GET http://b\\@a/public"),
    "no authority": request("GET http:///public"),
    "another scheme": request("GET ftp://a/public"),
    "a path without a slash": request("GET public"),
    "an asterisk that is not for OPTIONS": request("GET *"),
    "a fragment": request("GET /public#/../private"),
    "a byte beyond ASCII in the path": request("GET /public/\xff"),
    "an escaped slash": request("GET /public%2f..%2fprivate"),
    "an escaped backslash": request("GET /public%5c..%5cprivate"),
    "a bad escape": request("GET /public/%2"),
    "two blanks in the request line": request("GET  /public"),
    "a tab in the request line": request("GET\t/public"),
    "a blank in the path": request("GET /public x"),
    "a blank before the method": request(" GET /public"),
    "a blank behind the version": b"GET /public HTTP/1.1 \r\nHost: a\r\n\r\n",
    "no version": b"GET /public\r\n\r\n",
    "HTTP/0.9": b"GET /public HTTP/0.9\r\nHost: a\r\n\r\n",
    "HTTP/1.2": b"GET /public HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/01.1": b"GET /public HTTP/01.1\r\nHost: a\r\n\r\n",
    "http/1.1 in small letters": b"GET /public http/1.1\r\nHost: a\r\n\r\n",
    "a method that is no token": request("GE(T) /public"),
    "no method": b" /public HTTP/1.1\r\nHost: a\r\n\r\n",
    "a continued request line": b"GET /public HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n",
    "two empty lines": b"\r\n\r\n" + GET,
    "another expectation": post("Expect: 100-continue, 200-ok", "Content-Length: 1"),
    "too many headers": post(*(f"X-{n}: y" for n in range(100))),
    "a head without end": b"GET /" + b"x" * 70_000,
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS.keys())
def test_heads(data: bytes) -> None:
    # A head of 60 KiB byte by byte would take minutes.
    host = Host("http")
    assert host.client(data + GET) == b""
    assert (host.take(reply=True), host.closed) == (BAD_REQUEST, True)
    assert len(errors(host.log)) == len(host.log) == 1
    assert errors(host.log)[0].startswith("Parser error: ")
    if len(data) < 4_000:
        outcome = talk(("client", GET + PRIVATE + data + GET), ("server", OK))
        assert outcome.to_server == GET
        assert (outcome.to_client, outcome.closed) == (OK + DENIED + BAD_REQUEST, True)


@pytest.mark.parametrize("data", list(HEADS.values())[:3])
def test_heads_in_the_library(open_host: OpenHost, data: bytes) -> None:
    """A host of the C ABI just closes: it is not asked to answer before."""
    host = open_host("http")
    assert host.client(data + GET) == b""
    assert host.closed


CHUNKS = {
    "an extension": b"5;x=y\r\nhello\r\n",
    "an extension with a line end": b'5;x="\n"\r\nhello\r\n',
    "a semicolon": b"5;\r\nhello\r\n",
    "a blank behind the size": b"5 \r\nhello\r\n",
    "a blank before the size": b" 5\r\nhello\r\n",
    "a sign": b"+5\r\nhello\r\n",
    "a negative size": b"-5\r\nhello\r\n",
    "0x": b"0x5\r\nhello\r\n",
    "an underscore": b"1_0\r\nhello\r\n",
    "no size": b"\r\nhello\r\n",
    "a word": b"five\r\nhello\r\n",
    "a size beyond numbers": b"0" * 15 + b"5\r\nhello\r\n",
    "a bare LF behind the size": b"5\nhello\r\n",
    "a bare CR behind the size": b"5\rhello\r\n",
    "NUL": b"5\0\r\nhello\r\n",
}

BEHIND_DATA = {
    "data longer than its size": b"5\r\nhello!\r\n0\r\n\r\n",
    "data shorter than its size": b"5\r\nhell\r\n0\r\n\r\n",
    "a bare LF behind the data": b"5\r\nhello\n0\r\n\r\n",
    "a bare CR behind the data": b"5\r\nhello\r0\r\n\r\n",
    "no line end behind the data": b"5\r\nhello0\r\n\r\n",
}

TRAILERS = {
    "a length": b"0\r\nContent-Length: 5\r\n\r\n",
    "a coding": b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a host": b"0\r\nX: y\r\nHost: b\r\n\r\n",
    "a host for CGI": b"0\r\nHost_: b\r\ncontent_length: 1\r\n\r\n",
    "no colon": b"0\r\nGET /private HTTP/1.1\r\n\r\n",
    "a bare LF": b"0\r\nX: y\n\r\n\r\n",
    "an empty line of LF": b"0\r\n\nGET /private HTTP/1.1\r\nHost: a\r\n\r\n",
    "a folded line": b"0\r\nX: y\r\n z\r\n\r\n",
    "a folded line at once": b"0\r\n X: y\r\n\r\n",
    "too many": b"0\r\n" + b"X: y\r\n" * 101 + b"\r\n",
}


@pytest.mark.parametrize("data", CHUNKS.values(), ids=CHUNKS.keys())
def test_chunk_sizes(data: bytes) -> None:
    for before in (b"", b"3\r\nabc\r\n"):
        outcome = talk(("client", post(CHUNKED) + before + data + GET))
        assert outcome.to_server == post(CHUNKED) + before.removesuffix(b"\r\n")
        assert (outcome.to_client, outcome.closed) == (BAD_REQUEST, True)


@pytest.mark.parametrize("data", BEHIND_DATA.values(), ids=BEHIND_DATA.keys())
def test_the_end_of_chunks(data: bytes) -> None:
    outcome = talk(("client", post(CHUNKED) + data + GET))
    assert outcome.to_server == post(CHUNKED) + data[:8]
    assert (outcome.to_client, outcome.closed) == (BAD_REQUEST, True)


@pytest.mark.parametrize("data", TRAILERS.values(), ids=TRAILERS.keys())
def test_trailers(data: bytes) -> None:
    outcome = talk(("client", post(CHUNKED) + data + GET))
    assert outcome.to_server == post(CHUNKED) + b"0\r\n"
    assert (outcome.to_client, outcome.closed) == (BAD_REQUEST, True)


REPLIES = {
    "no request": ("", OK + OK),
    "both lengths": ("", reply("200 OK", "Content-Length: 4", CHUNKED)),
    "two lengths": ("", reply("200 OK", "Content-Length: 4", "content-length: 4")),
    "a signed length": ("", reply("200 OK", "Content-Length: +4")),
    "another coding": ("", reply("200 OK", "Transfer-Encoding: gzip")),
    "chunked in HTTP/1.0": ("", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "a body in 204": ("", reply("204 No Content", "Content-Length: 2")),
    "chunks in 204": ("", reply("204 No Content", CHUNKED)),
    "a body in 100": ("", reply("100 Continue", "Content-Length: 2")),
    "a switch nobody asked for": (
        "",
        reply("101 Switching", "Upgrade: websocket", "Connection: upgrade"),
    ),
    "a switch to something else": (
        "Connection: upgrade\r\nUpgrade: websocket\r\n",
        reply("101 Switching", "Upgrade: h2c", "Connection: upgrade"),
    ),
    "no status line": ("", b"hello\r\n\r\n"),
    "a status of two digits": ("", reply("20 OK")),
    "a status of four digits": ("", reply("2000 OK")),
    "HTTP/2": ("", b"HTTP/2 200 OK\r\n\r\n"),
    "a bare LF": ("", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
    "NUL": ("", reply("200 OK", "X: \0")),
    "a blank before the colon": ("", reply("200 OK", "Content-Length : 2")),
    "no colon": ("", reply("200 OK", "Content-Length 2")),
    "an underscored length": ("", reply("200 OK", "Content_Length: 2")),
    "a continued status line": ("", reply("200 OK", " x: 2")),
    "too many headers": ("", reply("200 OK", *(f"X-{n}: y" for n in range(101)))),
    "an SMTP server": ("", b"220 mail.example.com ESMTP\r\n500 what?\r\n\r\n"),
}


@pytest.mark.parametrize(("headers", "answer"), REPLIES.values(), ids=REPLIES.keys())
def test_replies_that_cannot_be_read(headers: str, answer: bytes) -> None:
    asked = GET.replace(b"\r\n\r\n", b"\r\n" + headers.encode() + b"\r\n")
    outcome = talk(("client", asked), ("server", answer + OK))
    assert outcome.closed
    assert outcome.to_client == (OK if answer.startswith(OK) else b"")
    assert "the server sent" in errors(outcome.log)[0]


def test_a_reply_to_no_request_at_all() -> None:
    outcome = talk(("server", b"H"))
    assert (outcome.to_client, outcome.closed) == (b"", True)


def test_what_is_owed_is_bounded() -> None:
    host = Host("http")
    passed = 0
    while not host.closed:
        passed += len(host.client(request("GET /" + "x" * 1000) * 10))
    assert passed < 4 << 20
    assert "to remember of requests that wait" in errors(host.log)[0]


def test_denials_that_wait_are_bounded() -> None:
    host = Host("http", [{"path": "/public"}])
    host.client(GET)
    sent = 0
    while not host.closed:
        host.client(PRIVATE * 100)
        sent += 100
    assert 5_000 < sent < 70_000
