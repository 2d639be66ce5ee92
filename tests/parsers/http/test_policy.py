"""What rules do to requests besides allowing them, and what an operator may choose."""

from __future__ import annotations

import json

import pytest

from proxylib import HeaderEdits, OnError
from proxylib.sandbox import Settings
from proxylib.testing import Host
from tests.parsers.http.talk import (
    BAD_REQUEST,
    DENIED,
    GET,
    OK,
    PRIVATE,
    PUBLIC,
    errors,
    request,
    talk,
)


def matching(name: str, value: str, mismatch: str = "") -> dict[str, str]:
    """A rule with one item of headerMatches."""
    item = {"name": name, "value": value, **({"mismatch": mismatch} if mismatch else {})}
    return {"path": "/public.*", "headerMatches": json.dumps(item)}


def sent(mismatch: str, *headers: str) -> bytes:
    """What of a request with `headers` goes on, under a rule that wants ``X-Role: user``."""
    outcome = talk(
        ("client", request("GET /public", *headers) + GET),
        ("server", OK),
        rules=[matching("X-Role", "user", mismatch)],
    )
    return outcome.to_server.removesuffix(
        GET if mismatch not in ("ADD", "REPLACE") else request("GET /public", "x-role: user")
    )


@pytest.mark.parametrize("mismatch", ["LOG", "ADD", "DELETE", "REPLACE"])
def test_a_header_that_is_right_stays(mismatch: str) -> None:
    assert sent(mismatch, "X-Role: user", "Y: 1") == request("GET /public", "X-Role: user", "Y: 1")


@pytest.mark.parametrize(
    ("mismatch", "headers"),
    [
        ("LOG", ["X-Role: admin", "Y: 1"]),
        ("ADD", ["X-Role: admin", "Y: 1", "x-role: user"]),
        ("DELETE", ["Y: 1"]),
        ("REPLACE", ["Y: 1", "x-role: user"]),
    ],
)
def test_a_header_that_is_wrong(mismatch: str, headers: list[str]) -> None:
    assert sent(mismatch, "X-Role: admin", "Y: 1") == request("GET /public", *headers)


def test_a_header_in_other_spelling_is_removed_too() -> None:
    assert sent("REPLACE", "x-RoLe: admin", "X-ROLE:root", "Y: 1") == request(
        "GET /public", "Y: 1", "x-role: user"
    )


def test_a_folded_header_is_one() -> None:
    assert sent("DELETE", "X-Role: user\r\n admin", "Y: 1") == request("GET /public", "Y: 1")


def test_a_mismatch_may_deny() -> None:
    rules = [matching("X-Role", "user")]
    allowed = request("GET /public", "X-Role: user")
    outcome = talk(("client", GET + allowed), ("server", OK), rules=rules)
    assert (outcome.to_server, outcome.to_client) == (allowed, DENIED + OK)


def test_the_body_of_a_changed_request_passes() -> None:
    rules = [matching("X-Role", "user", "ADD")]
    chunks = b"5\r\nhello\r\n0\r\n\r\n"
    first = request("POST /public", "Content-Length: 5", body=b"hello")
    second = request("POST /public", "Transfer-Encoding: chunked", body=chunks)
    outcome = talk(("client", first + second), rules=rules)
    assert outcome.to_server == (
        first.replace(b"\r\n\r\n", b"\r\nx-role: user\r\n\r\n")
        + second.replace(b"chunked\r\n\r\n", b"chunked\r\nx-role: user\r\n\r\n")
    )


def test_path_and_headers_change_together() -> None:
    outcome = talk(
        ("client", request("POST /x/../public", "Expect: 100-continue", "Content-Length: 0")),
        rules=[matching("X-Role", "user", "ADD")],
    )
    assert outcome.to_server == request("POST /public", "Content-Length: 0", "x-role: user")


@pytest.mark.parametrize(
    "edits",
    [
        HeaderEdits(True, remove=(b"host",)),
        HeaderEdits(True, remove=(b"content-length",)),
        HeaderEdits(True, add=((b"transfer-encoding", b"chunked"),)),
        HeaderEdits(True, add=((b"content-length", b"1"),)),
        HeaderEdits(True, add=((b"x", b"1\r\nHost: b"),)),
        HeaderEdits(True, add=((b"x", b"1\r\n\r\nGET /private HTTP/1.1"),)),
        HeaderEdits(True, add=((b"expect", b"100-continue"),)),
        HeaderEdits(True, remove=(b"host",), add=((b"host", b"b"),)),
    ],
    ids=repr,
)
def test_no_edit_may_change_what_a_request_means_to_http(
    edits: HeaderEdits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No policy gets as far as this; if one did, its requests are denied."""
    host = Host("http")
    matcher = property(lambda connection: lambda message: edits)
    monkeypatch.setattr(type(host.connection), "matcher", matcher)
    assert host.client(request("POST /public", "Content-Length: 4", body=b"body")) == b""
    assert host.take(reply=True) == DENIED


BAD = b"GET /public HTTP/1.1\nHost: a\n\n"


def test_who_only_observes_does_not_cut() -> None:
    host = Host("http", PUBLIC, settings=Settings(on_error=OnError.PASS_THROUGH))
    assert host.client(GET + BAD + PRIVATE) == GET + BAD + PRIVATE
    assert host.server(OK + b"\0") == OK + b"\0"
    assert host.take(reply=True) == b""
    assert not host.closed
    assert "Passed unparsed" in str(host.log[-1].fields["status"])


def test_who_denies_what_cannot_be_read_answers_in_turn() -> None:
    host = Host("http", PUBLIC, settings=Settings(on_error=OnError.DENY))
    assert host.client(GET + BAD + PRIVATE) == GET
    assert host.server(OK) == OK + BAD_REQUEST
    assert host.closed
    assert len(errors(host.log)) == 1
