"""r2d2 dialogues at both levels: pure Python, and the built library in a C host."""

from __future__ import annotations

import pytest

from tests.conftest import OpenHost, text_log
from tests.native.chost import CHost, Rig

DROID = [{"cmd": "READ", "file": "^/public/"}, {"cmd": "HALT"}]


def test_allowed_and_denied(open_host: OpenHost) -> None:
    host = open_host("r2d2", DROID)
    assert host.client(b"READ /public/plan\r\n") == b"READ /public/plan\r\n"
    assert host.client(b"READ /secret\r\n") == b""
    assert host.take(reply=True) == b"ERROR\r\n"
    assert host.server(b"OK\r\n") == b"OK\r\n"
    assert host.client(b"HALT\r\nRESET\r\nHALT\r\n") == b"HALT\r\nHALT\r\n"
    assert host.take(reply=True) == b"ERROR\r\n"
    assert text_log(host) == [
        ("Request", {"cmd": "READ", "file": "/public/plan"}),
        ("Denied", {"cmd": "READ", "file": "/secret"}),
        ("Request", {"cmd": "HALT", "file": ""}),
        ("Denied", {"cmd": "RESET", "file": ""}),
        ("Request", {"cmd": "HALT", "file": ""}),
    ]


def test_line_in_pieces(open_host: OpenHost) -> None:
    host = open_host("r2d2", DROID)
    request = b"READ /public/x\r\n"
    out = [host.client(request[i : i + 1]) for i in range(len(request))]
    assert b"".join(out) == request
    assert out[-1] == request, "nothing leaves before the line is whole"
    assert host.ops[-2:] == [(1, len(request)), (0, 1)]


@pytest.mark.parametrize("denials", [1, 16, 17, 146, 147, 148, 1000, 5000])
def test_many_denials_in_one_read(open_host: OpenHost, denials: int) -> None:
    host = open_host("r2d2", DROID)
    assert host.client(b"RESET\r\n" * denials) == b""
    assert host.take(reply=True) == b"ERROR\r\n" * denials
    assert not host.closed
    assert host.client(b"HALT\r\n") == b"HALT\r\n"


def test_many_denials_after_a_reply(open_host: OpenHost) -> None:
    """A host of the C ABI that waits for MORE gets the rest with its next reply event."""
    host = open_host("r2d2", DROID)
    assert host.client(b"HALT\r\n") == b"HALT\r\n"
    assert host.server(b"OK\r\n") == b"OK\r\n"
    host.client(b"RESET\r\n" * 1000)
    got = host.take(reply=True)
    assert len(got) >= 1024
    assert got + host.server(b"OK\r\n") == b"ERROR\r\n" * 1000 + b"OK\r\n"


def test_denial_while_a_reply_is_half_here(open_host: OpenHost) -> None:
    host = open_host("r2d2", DROID)
    assert host.server(b"O") == b""
    assert host.client(b"RESET\r\n") == b""
    assert host.take(reply=True) == b"ERROR\r\n"
    assert host.server(b"K\r\n") == b"OK\r\n"


def test_many_requests_in_one_read(open_host: OpenHost) -> None:
    host = open_host("r2d2", DROID)
    stream = b"".join(b"READ /public/%d\r\nRESET\r\n" % i for i in range(500))
    assert host.client(stream) == stream.replace(b"RESET\r\n", b"")
    assert host.take(reply=True) == b"ERROR\r\n" * 500
    assert len(host.log) == 1000


def test_policy_changes_under_the_connection(open_host: OpenHost) -> None:
    host = open_host("r2d2", DROID)
    assert host.client(b"HALT\r\n") == b"HALT\r\n"
    host.set_policy("r2d2", [{"cmd": "RESET"}])
    assert host.client(b"HALT\r\nRESET\r\n") == b"RESET\r\n"
    host.set_policy("r2d2", None)
    assert host.client(b"HALT\r\n") == b"HALT\r\n"


def test_deny_rules_beat_allow_rules(open_host: OpenHost) -> None:
    host = open_host("r2d2", [{}], deny=[{"file": "secret"}])
    assert host.client(b"READ a\r\nREAD secret\r\nHALT\r\n") == b"READ a\r\nHALT\r\n"


def test_line_too_long_closes(open_host: OpenHost) -> None:
    host = open_host("r2d2", DROID)
    host.client(b"READ " + b"x" * 5000)
    assert host.closed
    ((kind, fields),) = text_log(host)
    assert kind == "Denied"
    assert "line longer than 4096 bytes" in fields["status"]


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\x00", b"READ \x00", b"READ \xed\xa0\x80", b"", b" ", b"READ a b", b"\r"]
)
def test_odd_lines_are_denied_and_logged(open_host: OpenHost, line: bytes) -> None:
    host = open_host("r2d2", DROID)
    assert host.client(line + b"\r\n") == b""
    assert host.take(reply=True) == b"ERROR\r\n"
    assert [record.entry_type.name for record in host.log] == ["Denied"]
    assert host.client(b"HALT\r\n") == b"HALT\r\n"


def test_end_of_stream(open_host: OpenHost) -> None:
    host = open_host("r2d2", DROID)
    assert host.client(b"HALT\r\n", end=True) == b"HALT\r\n"
    assert host.server(b"OK\r\n", end=True) == b"OK\r\n"
    assert not host.closed


def test_scattered_input_is_one_stream(rig: Rig) -> None:
    host = CHost(rig, "r2d2", DROID)
    stream = b"READ /public/a\r\nRESET\r\nHALT\r\n"
    event = host.feed(False, False, *(stream[i : i + 1] for i in range(len(stream))))
    assert event.out == (b"READ /public/a\r\nHALT\r\n", b"ERROR\r\n")
    host.close()


def test_log_entry_over_the_socket(rig: Rig) -> None:
    host = CHost(rig, "r2d2", DROID)
    host.client(b"READ \xff\r\n")
    (entry,) = rig.entries(host.endpoint)
    assert entry.policy_name == host.endpoint
    assert entry.source_security_id == 100
    assert entry.destination_security_id == 1
    assert entry.source_address == "10.0.0.2:34567"
    assert entry.destination_address == f"{host.endpoint}:80"
    assert entry.is_ingress
    assert entry.timestamp > 1_700_000_000 * 10**9
    assert entry.generic_l7.proto == "r2d2"
    assert "xff" in entry.generic_l7.fields["file"].lower(), "escaped, not lost"
    host.close()
