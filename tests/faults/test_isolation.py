"""Parsers in a process of their own: the worst that they can do closes their connections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import misbehaving
from tests.faults.envoy import Running, Traffic, address, envoy, receive
from tests.faults.misbehaving import MILD, WORST
from tests.native.services import wait_for

MODULE = [str(Path(misbehaving.__file__))]


def isolated(**more: object) -> dict[str, object]:
    return {
        "parser": "fault.worst",
        "parser_modules": MODULE,
        "isolation": "process",
        "breaker_panics": 1000,
        # Half of it is the process's: so much that its watchdog has run in the other half.
        "time_budget": 1,
        **more,
    }


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    configs: dict[str, dict[str, object]] = {
        "worst": isolated(),
        "observed": isolated(on_error="pass-through"),
        "good": {"parser": "r2d2"},
        "good-isolated": {"parser": "r2d2", "isolation": "process"},
    }
    with envoy(tmp_path_factory.mktemp("isolation"), configs) as running:
        yield running


def lines_of(running: Running, client: str) -> list[str]:
    return [
        entry.generic_l7.fields["line"]
        for entry in list(running.log.entries)
        if entry.source_address == client and "line" in entry.generic_l7.fields
    ]


def serves(running: Running, listener: str = "worst") -> bool:
    """Whether the parser is there, and not only what passes without it."""
    with running.connect(listener) as connection:
        client, since = address(connection), len(running.log.entries)
        connection.sendall(b"there?\n")
        if receive(connection, b"there?\n") != b"there?\n":
            return False
        entry = wait_for(
            lambda: [e for e in running.log.entries[since:] if e.source_address == client],
            "the log",
        )[0]
        return "line" in entry.generic_l7.fields


def test_connections_that_come_while_a_process_starts_are_told_so(running: Running) -> None:
    wait_for(lambda: serves(running, "observed"), "the worker")
    starting = "Passed unparsed from here on: The process of parser 'fault.worst' is starting"

    def found() -> bool:
        with running.connect("observed") as crashing:
            crashing.sendall(b"!exit\n")
            receive(crashing, b"!exit\n")
            since = len(running.log.entries)
            with running.connect("observed") as early:
                client = address(early)
                early.sendall(b"early\n")
                receive(early, b"early\n")
                wait_for(lambda: len(running.log.entries) > since, "the log")
                return starting in running.statuses(client, since)

    wait_for(found, "a connection while it starts")


def test_a_good_parser(running: Running) -> None:
    with running.connect("good-isolated") as connection:
        connection.sendall(b"READ a\r\nREAD b\r\n")
        assert receive(connection, b"READ b\r\n") == b"READ a\r\nREAD b\r\n"
        big = b"READ %s\r\n" % (b"x" * 4000)
        connection.sendall(big * 1000)
        got = b""
        while len(got) < len(big) * 1000:
            got += connection.recv(1 << 20)
        assert got == big * 1000


@pytest.mark.parametrize("word", MILD)
def test_what_python_can_end_costs_one_connection(running: Running, word: bytes) -> None:
    wait_for(lambda: serves(running), "the worker")
    since = len(running.log.entries)
    with running.connect("worst") as connection, running.connect("worst") as neighbour:
        who = address(connection)
        neighbour.sendall(b"before\n")
        assert receive(neighbour, b"before\n") == b"before\n"
        connection.sendall(b"good-%s\n!%s\nnever\n" % (word, word))
        assert b"<open>" not in receive(connection)
        status = running.wait_status(who, "the panic", since)
        assert re.match(MILD[word][1], status), status
        wait_for(lambda: b"good-%s\n" % word in running.echo.received, "the line before")
        assert lines_of(running, who)[-1:] == [f"good-{word.decode()}"]
        neighbour.sendall(b"after\n")
        assert receive(neighbour, b"after\n") == b"after\n"


@pytest.mark.parametrize("word", WORST)
def test_the_worst_costs_the_connections_of_its_process(running: Running, word: bytes) -> None:
    wait_for(lambda: serves(running), "the worker")
    pid, since = running.process.pid, len(running.log.entries)
    with (
        Traffic(running, "good") as good,
        Traffic(running, "good-isolated") as other,
        running.connect("worst") as connection,
        running.connect("worst") as neighbour,
    ):
        neighbour.sendall(b"before\n")
        assert receive(neighbour, b"before\n") == b"before\n"
        connection.sendall(b"good-%s\n" % word)
        assert receive(connection, b"\n") == b"good-%s\n" % word
        connection.sendall(b"!%s\n" % word)
        # Both at once: the one that waits, and the one that is idle.
        assert b"<open>" not in receive(connection)
        assert b"<open>" not in receive(neighbour)
        for each in (connection, neighbour):
            # Once only: who asked first hears how it ended.
            client = address(each)
            (status,) = wait_for(lambda c=client: running.statuses(c, since), "the log")
            ends = f"({WORST[word][1]}|was killed|gave no)"
            assert re.match(f"Panic: the process of parser 'fault.worst' {ends}", status), status
        assert lines_of(running, address(connection))[-1:] == [f"good-{word.decode()}"]
        wait_for(lambda: serves(running), "the next process")
    assert good.lost + other.lost == []
    assert good.answered > 0
    assert other.answered > 0
    assert running.process.pid == pid
    assert running.process.poll() is None


def test_traffic_passes_if_the_operator_says_so(running: Running) -> None:
    wait_for(lambda: serves(running, "observed"), "the worker")
    since = len(running.log.entries)
    with running.connect("observed") as connection, running.connect("observed") as neighbour:
        for each in (connection, neighbour):
            each.sendall(b"before\n")
            assert receive(each, b"before\n") == b"before\n"
        connection.sendall(b"!exit\nafter\n")
        assert receive(connection, b"after\n") == b"!exit\nafter\n"
        neighbour.sendall(b"!exit\n")
        assert receive(neighbour, b"!exit\n") == b"!exit\n"
        for each in (connection, neighbour):
            status = running.wait_status(address(each), "the log", since)
            assert status.startswith(
                "Passed unparsed from here on: Panic: the process of parser"
            ), status
        with running.connect("observed") as fresh:
            fresh.sendall(b"new\n")
            assert receive(fresh, b"new\n") == b"new\n"
