"""What becomes of a stream that its parser has failed on: close, deny, pass through.

And of all streams of a parser that fails again and again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from proxylib import limits
from proxylib.sandbox import OnError, Settings
from proxylib.testing import Host
from proxylib.testing.host import ENDPOINT, policy_map
from tests.faults import misbehaving
from tests.faults.envoy import Running, address, envoy, receive
from tests.faults.misbehaving import TABLE, Factory
from tests.native.services import wait_for

MODULE = [str(Path(misbehaving.__file__))]
FAULTS = ("raises-value", "appends-zero", "appends-error", "spins")
POSTURES = {"close": OnError.CLOSE, "deny": OnError.DENY, "pass-through": OnError.PASS_THROUGH}
PASSED = "Passed unparsed from here on: "


def open_host(fault: str, on_error: OnError) -> Host:
    row = next(row for row in TABLE if row.name == fault)
    settings = Settings(on_error, time_budget=misbehaving.BUDGET)
    return Host(row.parser, factory=Factory(row), settings=settings)


def statuses(host: Host) -> list[tuple[str, str]]:
    return [(record.entry_type.name, str(record.fields["status"])) for record in host.log]


@pytest.mark.parametrize("fault", FAULTS)
def test_close(fault: str) -> None:
    host = open_host(fault, OnError.CLOSE)
    assert host.client(b"ok\n!\nmore\n") == b"ok\n"
    assert host.closed
    ((entry_type, _),) = statuses(host)
    assert entry_type == "Denied"


@pytest.mark.parametrize("fault", FAULTS)
def test_deny(fault: str) -> None:
    host = open_host(fault, OnError.DENY)
    assert host.client(b"ok\n!\nmore\n") == b"ok\n"
    assert host.take(reply=True) == b"unparsable\n"
    assert not host.closed
    assert host.client(b"more\n") == b""
    assert host.server(b"an answer\n") == b"an answer\n"
    ((entry_type, _),) = statuses(host)
    assert entry_type == "Denied"


@pytest.mark.parametrize("fault", FAULTS)
def test_pass_through(fault: str) -> None:
    host = open_host(fault, OnError.PASS_THROUGH)
    assert host.client(b"ok\n!\nmore\n") == b"ok\n!\nmore\n"
    assert host.client(b"still\n") == b"still\n"
    assert host.server(b"an answer\n") == b"an answer\n"
    ((entry_type, status),) = statuses(host)
    assert entry_type == "Request"
    assert status.startswith(PASSED)


def test_where_a_policy_is_in_audit_mode_nothing_is_cut() -> None:
    policy = policy_map("test.passer", None)
    endpoint = policy.endpoints[ENDPOINT]
    policy.endpoints[ENDPOINT] = replace(endpoint, audit=policy_map("r2d2", []).endpoints[ENDPOINT])
    row = TABLE[0]
    observed = Host(row.parser, factory=Factory(row), policy=policy)
    assert observed.client(b"ok\n!\nmore\n") == b"ok\n!\nmore\n"
    ((_, status),) = statuses(observed)
    assert status.startswith(PASSED)
    settings = Settings(OnError.CLOSE)
    enforced = Host(row.parser, factory=Factory(row), policy=policy, settings=settings)
    assert enforced.client(b"ok\n!\nmore\n") == b"ok\n"
    assert enforced.closed


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    configs: dict[str, dict[str, object]] = {
        f"{fault}.{posture}": {
            "parser": f"fault.{fault}",
            "parser_modules": MODULE,
            "on_error": posture,
        }
        for fault in FAULTS
        for posture in POSTURES
    }
    breaker = {"parser_modules": MODULE, "breaker_panics": 2, "breaker_period": 2}
    configs["begins-badly"] = {
        "parser": "fault.fails-to-begin",
        "parser_modules": MODULE,
        "on_error": "pass-through",
    }
    configs["broken"] = {"parser": "fault.raises-base", **breaker}
    configs["observed"] = {
        "parser": "fault.raises-group",
        "on_error": "pass-through",
        "time_budget": 1,
        **breaker,
    }
    with envoy(tmp_path_factory.mktemp("on-error"), configs) as running:
        yield running


@pytest.mark.parametrize("fault", FAULTS)
def test_close_in_envoy(running: Running, fault: str) -> None:
    since = len(running.log.entries)
    with running.connect(f"{fault}.close") as connection:
        who = address(connection)
        connection.sendall(b"close-%s\n!\nnever-%s\n" % (fault.encode(), fault.encode()))
        assert b"<open>" not in receive(connection)
    wait_for(lambda: b"close-%s\n" % fault.encode() in running.echo.received, "the line before")
    running.wait_status(who, fault, since)
    assert b"never-%s\n" % fault.encode() not in running.echo.received


@pytest.mark.parametrize("fault", FAULTS)
def test_deny_in_envoy(running: Running, fault: str) -> None:
    since = len(running.log.entries)
    with running.connect(f"{fault}.deny") as connection:
        who = address(connection)
        connection.sendall(b"before\n!\nnot-%s\n" % fault.encode())
        got = receive(connection, b"unparsable\n")
        if b"before\n" not in got:
            got += receive(connection, b"before\n")
        assert sorted(got.splitlines()) == [b"before", b"unparsable"]
        connection.sendall(b"not-%s\n" % fault.encode())
        running.wait_status(who, fault, since)
        connection.shutdown(1)
        receive(connection)
    assert b"not-%s\n" % fault.encode() not in running.echo.received


@pytest.mark.parametrize("fault", FAULTS)
def test_pass_through_in_envoy(running: Running, fault: str) -> None:
    since = len(running.log.entries)
    with running.connect(f"{fault}.pass-through") as connection:
        who = address(connection)
        connection.sendall(b"before\n!\nafter\n")
        assert receive(connection, b"after\n") == b"before\n!\nafter\n"
        connection.sendall(b"still\n")
        assert receive(connection, b"still\n") == b"still\n"
        assert running.wait_status(who, fault, since).startswith(PASSED)


def test_a_parser_that_cannot_begin_lets_pass(running: Running) -> None:
    with running.connect("begins-badly") as connection:
        connection.sendall(b"!\n")
        assert receive(connection, b"!\n") == b"!\n"


def panic(running: Running, listener: str) -> tuple[str, int]:
    """Have the parser panic; returns the client's address, and where the log was."""
    since = len(running.log.entries)
    with running.connect(listener) as connection:
        connection.sendall(b"!\n")
        receive(connection, b"!\n")
        who = address(connection)
        running.wait_status(who, "a panic", since)
        return who, since


def test_a_parser_that_panics_too_often_is_taken_out_and_tried_again(running: Running) -> None:
    last = [panic(running, "broken") for _ in range(3)][-1]
    told = wait_for(lambda: running.statuses(*last)[1:], "the breaker to open")
    assert "taken out for 5 s, after 3 panics" in told[0]
    since = len(running.log.entries)
    with running.connect("broken") as connection:
        assert receive(connection) == b""
        status = running.wait_status(address(connection), "the breaker", since)
        assert status == "Circuit breaker: parser 'fault.raises-base' is out"
    time.sleep(limits.BREAKER_PAUSE)
    with running.connect("broken") as connection:
        connection.sendall(b"on trial\n")
        assert receive(connection, b"on trial\n") == b"on trial\n"

    def admitted() -> bool:
        with running.connect("broken") as connection:
            connection.sendall(b"again\n")
            return receive(connection, b"again\n") == b"again\n"

    wait_for(admitted, "the breaker to close")


def test_traffic_of_a_parser_that_is_out_passes_if_the_operator_says_so(running: Running) -> None:
    for _ in range(3):
        panic(running, "observed")
    since = len(running.log.entries)
    with running.connect("observed") as connection:
        who = address(connection)
        connection.sendall(b"!\n")
        assert receive(connection, b"!\n") == b"!\n"
        status = running.wait_status(who, "the breaker", since)
        assert status == f"{PASSED}Circuit breaker: parser 'fault.raises-group' is out"
