"""New code under the connections of a real Envoy: nothing is lost, nothing restarts."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from node.address import Address
from node.parsers import choose_parser
from node.reloading import code_of, reload_everywhere
from node.run import Event, Proxy, ProxyConfig
from proxylib import registry
from proxylib.control import ask
from proxylib.errors import ProxylibError
from proxylib.proto.accesslog_pb2 import LogEntry
from tests.serving import serving

T = TypeVar("T")

CODE = """
from proxylib import FramedParser, Message, lines, parser

@parser("versioned")
class Versioned(FramedParser):
    framing = lines(b"\\n")
    version = {version}
    seen = 0

    def request(self, frame):
        self.seen += 1
        return Message(version=self.version, seen=self.seen, frame=frame)
{more}
"""

MIGRATE = """
    def migrate(self, old):
        self.seen = old.seen
        return True
"""

CONNECTIONS = 500
RELOADS = 50


def write(path: Path, version: int, more: str = "") -> None:
    path.write_text(CODE.format(version=version, more=more))


def until(true: Callable[[], T], what: str, timeout: float = 30.0) -> T:
    deadline = time.monotonic() + timeout
    while not (found := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return found


class Stage:
    """A proxy with the versioned parser in front of an echo server."""

    def __init__(self, proxy: Proxy, code: Path, log: list[LogEntry], events: list[Event]) -> None:
        self.proxy = proxy
        self.code = code
        self.log = log
        self.events = events

    def connect(self) -> socket.socket:
        return socket.create_connection((self.proxy.address.host, self.proxy.address.port), 10)

    def reload(self, drain: float | None = None) -> None:
        reload_everywhere("versioned", self.proxy.control, drain)

    def status(self) -> dict[str, Any]:
        parsers = ask(self.proxy.control, {"command": "status"})["parsers"]
        found: dict[str, Any] = parsers["versioned"]
        return found

    def generations(self) -> dict[str, int]:
        counts: dict[str, int] = self.status()["generations"]
        return counts

    def processes(self) -> dict[int, int]:
        """The connections of each process of the parser."""
        return {each["pid"]: each["connections"] for each in self.status()["processes"]}

    def versions(self) -> list[str]:
        return [entry.generic_l7.fields["version"] for entry in self.log]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: object) -> Iterator[Stage]:
    monkeypatch.setattr(registry, "_factories", {})
    code = tmp_path / "versioned_parser.py"
    write(code, 1)
    log: list[LogEntry] = []
    events: list[Event] = []
    with ExitStack() as stack:
        config = ProxyConfig(
            parser=choose_parser(str(code)),
            listen=Address.parse("127.0.0.1:0", any_port=True),
            upstream=stack.enter_context(serving()),
            **getattr(request, "param", {}),
        )
        proxy = Proxy(config, on_entries=log.extend, on_event=events.append)
        yield Stage(stack.enter_context(proxy), code, log, events)


def exchange(client: socket.socket, sent: bytes, expected: bytes) -> None:
    client.sendall(sent)
    got = b""
    while len(got) < len(expected):
        chunk = client.recv(4096)
        assert chunk, f"closed after {got!r}"
        got += chunk
    assert got == expected


def test_connections_in_the_middle_of_a_message_over_many_reloads(stage: Stage) -> None:
    """Every connection keeps its code and its half message; no byte is lost."""
    pid = stage.proxy.pid
    with ExitStack() as stack:
        clients = [stack.enter_context(stage.connect()) for _ in range(CONNECTIONS)]
        for number, client in enumerate(clients):
            exchange(client, b"first\nhalf %d" % number, b"first\n")
        for version in range(2, RELOADS + 2):
            write(stage.code, version)
            stage.reload()
            with stage.connect() as new:
                exchange(new, b"new\n", b"new\n")
        for number, client in enumerate(clients):
            exchange(client, b" whole\n", b"half %d whole\n" % number)
        assert stage.generations()["1"] == CONNECTIONS
    until(lambda: list(stage.generations()) == [str(RELOADS + 1)], "old code is still in use")
    until(lambda: len(stage.log) == 2 * CONNECTIONS + RELOADS, "log entries are missing")
    seen = [entry.generic_l7.fields for entry in stage.log]
    assert sum(fields["version"] == "1" for fields in seen) == 2 * CONNECTIONS
    assert [f["version"] for f in seen if f["frame"] == "new"] == [
        str(version) for version in range(2, RELOADS + 2)
    ]
    assert stage.proxy.pid == pid
    assert stage.proxy.envoy.returncode is None


def test_a_parser_that_migrates_takes_every_connection_over(stage: Stage) -> None:
    with stage.connect() as client:
        exchange(client, b"a\nhal", b"a\n")
        write(stage.code, 2, MIGRATE)
        stage.reload()
        # Idle connections too, at once.
        until(lambda: stage.generations() == {"2": 1}, "it has not migrated")
        exchange(client, b"f\n", b"half\n")
    until(lambda: len(stage.log) == 2, "log entries are missing")
    assert [(e.generic_l7.fields["version"], e.generic_l7.fields["seen"]) for e in stage.log] == [
        ("1", "1"),
        ("2", "2"),
    ]


def test_broken_code_is_refused_with_its_traceback(stage: Stage) -> None:
    with stage.connect() as client:
        exchange(client, b"a\n", b"a\n")
        stage.code.write_text("x = (\n")
        with pytest.raises(ProxylibError, match="SyntaxError"):
            ask(stage.proxy.control, {"command": "reload", "parser": "versioned"})
        exchange(client, b"b\n", b"b\n")
    assert list(stage.generations()) == ["1"]


def test_what_has_not_ended_when_the_drain_time_is_over_is_closed(stage: Stage) -> None:
    with stage.connect() as idle, stage.connect() as busy:
        exchange(idle, b"a\n", b"a\n")
        exchange(busy, b"a\n", b"a\n")
        write(stage.code, 2)
        stage.reload(drain=0.5)
        exchange(busy, b"b\n", b"b\n")
        idle.settimeout(10)
        assert idle.recv(10) == b""
        assert busy.recv(10) == b""
    until(lambda: len(stage.log) == 5, "log entries are missing")
    assert stage.log[-1].generic_l7.fields["status"].startswith("Connection closed: parser")


@pytest.mark.parametrize("stage", [{"reload": True}], indirect=True)
def test_edits_are_taken_up(stage: Stage) -> None:
    write(stage.code, 2)
    until(lambda: any(e.kind == "reloaded" for e in stage.events), "not reloaded")
    with stage.connect() as client:
        exchange(client, b"a\n", b"a\n")
    until(lambda: stage.versions() == ["2"], "old code")
    stage.code.write_text("x = (\n")
    until(lambda: any(e.kind == "reload-refused" for e in stage.events), "not refused")
    assert "SyntaxError" in next(e.message for e in stage.events if e.kind == "reload-refused")


def test_which_code_is_a_parsers() -> None:
    assert code_of("r2d2").name == "r2d2.py"
    assert code_of("kafka").name == "kafka"


isolated = pytest.mark.parametrize("stage", [{"sandbox": {"isolation": "process"}}], indirect=True)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@isolated
def test_connections_of_a_process_stay_with_it_until_they_end(stage: Stage) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(stage.connect()) for _ in range(20)]
        for number, client in enumerate(clients):
            exchange(client, b"first\nhalf %d" % number, b"first\n")
        (first,) = stage.processes()
        seen = [first]
        for version in range(2, 6):
            write(stage.code, version)
            stage.reload()
            with stage.connect() as new:
                exchange(new, b"new\n", b"new\n")
                newest = next(iter(stage.processes()))
                assert newest not in seen
                seen.append(newest)
        # Those between had nobody left.
        until(lambda: list(stage.processes()) == [seen[-1], first], "processes are left")
        assert all(gone(pid) for pid in seen[1:-1])
        assert stage.processes()[first] == len(clients)
        assert stage.generations() == {"5": 0, "1": len(clients)}
        for number, client in enumerate(clients):
            exchange(client, b" whole\n", b"half %d whole\n" % number)
    until(lambda: gone(first), "the first process is left")
    assert list(stage.processes()) == [seen[-1]]
    until(lambda: len(stage.log) == 44, "log entries are missing")
    fields = [entry.generic_l7.fields for entry in stage.log]
    assert sum(entry["version"] == "1" for entry in fields) == 40
    assert [f["version"] for f in fields if f["frame"] == "new"] == ["2", "3", "4", "5"]
    assert stage.proxy.envoy.returncode is None


REFUSED = {
    "x = (\n": "SyntaxError",
    "import nothing.there\n": "ModuleNotFoundError",
    "x = 1\n": "registers no parser",
    "def fails():\n    return [][1]\n\nfails()\n": "line 2, in fails\n.*\n.*\nIndexError",
    CODE.format(
        version=2,
        more="    @classmethod\n    def self_check(cls):\n        raise ValueError('unfit')",
    ): "fails its own check:\n.*\n.*\nValueError: unfit",
}


@isolated
def test_broken_code_is_refused_by_its_process(stage: Stage) -> None:
    with stage.connect() as client:
        exchange(client, b"a\n", b"a\n")
        before = stage.processes()
        for code, message in REFUSED.items():
            stage.code.write_text(code)
            with pytest.raises(ProxylibError, match=message):
                ask(stage.proxy.control, {"command": "reload", "parser": "versioned"})
            assert stage.processes() == before
        exchange(client, b"b\n", b"b\n")
        with stage.connect() as new:
            exchange(new, b"new\n", b"new\n")
    until(lambda: stage.versions() == ["1"] * 3, "log entries are missing")


@isolated
def test_a_process_ends_when_its_drain_time_is_over(stage: Stage) -> None:
    with stage.connect() as idle, stage.connect() as busy:
        exchange(idle, b"a\n", b"a\n")
        exchange(busy, b"a\n", b"a\n")
        (old,) = stage.processes()
        write(stage.code, 2)
        stage.reload(drain=0.5)
        idle.settimeout(10)
        assert idle.recv(10) == b""
        assert busy.recv(10) == b""
        until(lambda: gone(old), "the process is left")
        with stage.connect() as new:
            exchange(new, b"new\n", b"new\n")
    until(lambda: len(stage.log) == 5, "log entries are missing")
    statuses = [entry.generic_l7.fields["status"] for entry in stage.log[2:4]]
    assert all(status.startswith("Connection closed: parser") for status in statuses)
    assert stage.versions()[-1] == "2"


@isolated
def test_the_new_process_is_started_again_with_the_new_code(stage: Stage) -> None:
    write(stage.code, 2)
    stage.reload()
    (pid,) = until(lambda: len(stage.processes()) == 1 and stage.processes(), "the old process")
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid), "the process is left")

    def served() -> bool:
        with stage.connect() as client:
            client.sendall(b"a\n")
            with suppress(ConnectionResetError):
                return client.recv(10) == b"a\n"
        return False

    until(served, "no new process")
    assert pid not in stage.processes()
    until(lambda: stage.versions()[-1:] == ["2"], "old code")
