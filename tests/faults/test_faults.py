"""Every misbehaving parser of the table, in the engine, through the C ABI, in a real Envoy.

In Envoy good traffic runs beside them, through a parser of its own, and through
another connection of the misbehaving parser: nothing of it is lost.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proxylib import FilterResult
from proxylib.sandbox import Settings
from proxylib.testing import Host, HostClosed
from tests.faults import misbehaving
from tests.faults.envoy import Running, Traffic, address, envoy, receive
from tests.faults.misbehaving import BUDGET, TABLE, Factory, Fault
from tests.native.chost import Rig
from tests.native.installed import install
from tests.native.services import network_policy, wait_for


def rows(level: str) -> list[object]:
    return [pytest.param(row, id=row.name) for row in TABLE if level in row.levels]


def check_status(row: Fault, status: str) -> None:
    assert re.match(row.status, status), status


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 40
    assert len({row.name for row in TABLE}) == len(TABLE)


# The engine, in Python.


# What interrupts a parser, or its deep recursion, may meet a weak reference's callback.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("row", rows("python"))
def test_in_python(row: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(time_budget=BUDGET)
    if row.when == "create":
        host = Host("test.passer", settings=settings)
        log = host.log
        assert host.connection.create(Factory(row)) == FilterResult.PARSER_ERROR
    else:
        host = Host(row.parser, factory=Factory(row), settings=settings)
        log = host.log
        out = host.client(b"ok\n!\nmore\n")
        if row.when == "close":
            assert out == b"ok\n!\nmore\n"
            host.connection.close()
        else:
            assert out.startswith(b"ok\n")
            assert b"more" not in out
            assert host.closed == row.ends
            with pytest.raises(HostClosed):
                host.client(b"more\n")
    statuses = [str(record.fields["status"]) for record in log if "status" in record.fields]
    check_status(row, statuses[0])


# The C ABI.


@pytest.fixture(scope="module")
def fault_rig(host_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("faults")
    library = install(directory / "prefix", [misbehaving])
    rig = Rig(host_program, directory / "rig", library=library)
    yield rig
    rig.close()


@pytest.mark.parametrize("row", rows("c-abi"))
def test_through_the_c_abi(fault_rig: Rig, row: Fault) -> None:
    rig, process = fault_rig, fault_rig.process
    number, endpoint = rig.endpoint()
    neighbour, _ = rig.endpoint()
    rig.set_policy(endpoint, network_policy(endpoint, row.parser, None))
    where = {"policy_name": endpoint, "dst_addr": f"{endpoint}:80"}
    opened = process.new_connection(rig.instance, number, row.parser, **where)
    if row.when == "create":
        assert opened == FilterResult.PARSER_ERROR
    else:
        process.new_connection(rig.instance, neighbour, row.parser, **where)
        assert opened == FilterResult.OK
        event = process.io(number, False, False, b"ok\n!\n")
        assert event.error == ""
        assert event.out[0].startswith(b"ok\n")
        if row.ends:
            after = process.io(number, False, False, b"more\n")
            assert after.error in ("result", "error-op")
            assert after.out[0] in (b"", b"!\n")
            process.close(number)
        else:
            process.close(number)
        assert process.io(neighbour, False, False, b"fine\n").out[0] == b"fine\n"
        if row.when != "close":
            process.close(neighbour)
    statuses = [
        entry.generic_l7.fields["status"]
        for entry in rig.entries(endpoint)
        if "status" in entry.generic_l7.fields
    ]
    check_status(row, statuses[0])


# A real Envoy, under traffic.


def _misbehave(running: Running, row: Fault) -> str:
    """Drive one fault; returns what is wrong with what came of it, or nothing."""
    since = len(running.log.entries)
    if row.when == "create":
        with running.connect(row.parser) as connection:
            who = address(connection)
            if receive(connection):
                return "it was answered"
        status = running.wait_status(who, row.name, since)
        return "" if re.match(row.status, status) else status
    with running.connect(row.parser) as connection, running.connect(row.parser) as neighbour:
        who, token = address(connection), b"ok %s\n" % row.name.encode()
        neighbour.sendall(b"before\n")
        if receive(neighbour, b"before\n") != b"before\n":
            return "its neighbour was not answered"
        connection.sendall(token + b"!\n")
        if row.ends:
            if b"<open>" in receive(connection):
                return "it was not closed"
        else:
            receive(connection, b"!\n")
            connection.close()
        status = running.wait_status(who, row.name, since)
        if not re.match(row.status, status):
            return status
        wait_for(lambda: token in running.echo.received, f"{row.name}: the line before it")
        neighbour.sendall(b"after\n")
        if receive(neighbour, b"after\n") != b"after\n":
            return "its neighbour was not answered afterwards"
    return ""


def test_in_envoy(tmp_path: Path) -> None:
    module = str(Path(misbehaving.__file__))
    selected = [row for row in TABLE if "envoy" in row.levels]
    configs: dict[str, dict[str, object]] = {
        row.parser: {"parser": row.parser, "parser_modules": [module]} for row in selected
    }
    configs["good"] = {"parser": "r2d2"}
    with envoy(tmp_path, configs) as running:
        pid = running.process.pid
        with (
            Traffic(running, "good") as first,
            Traffic(running, "good") as second,
            ThreadPoolExecutor(4) as pool,
        ):
            wrong = list(pool.map(lambda row: (row.name, _misbehave(running, row)), selected))
        failed = "\n".join(f"{name}: {text}" for name, text in wrong if text)
        assert not failed, failed
        assert first.lost + second.lost == []
        assert first.answered > 100
        assert second.answered > 100
        assert running.process.poll() is None
        assert running.process.pid == pid
        assert threading.active_count() < 200
