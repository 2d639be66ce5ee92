"""The access log as a consumer gets it, from a host without Python."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxylib import EntryType, limits
from proxylib.parser import ClassFactory
from proxylib.proto import accesslog_pb2
from proxylib.testing import Host, LogRecord
from tests.native.chost import CHost, HostProcess, Rig
from tests.native.installed import install
from tests.native.scripted import Logger


@pytest.mark.parametrize(
    ("file", "logged"),
    [
        (b"x" * 4000, "x" * 4000),
        (b"\xff" * 1024, r"\xff" * 1024),
        (b"\xff" * 1025, r"\xff" * 1023 + r"\..."),
        ("é".encode() * 1500 + b"\xff" * 1000, "é" * 1500 + r"\xff" * 273 + r"\..."),
        (b"\xff" * 1 + "é".encode() * 2040, r"\xff" + "é" * 2040),
        (b"\xff" * 500 + "€".encode() * 800, r"\xff" * 500 + "€" * 697 + "..."),
    ],
)
def test_values_are_cut_between_characters(rig: Rig, file: bytes, logged: str) -> None:
    host = CHost(rig, "r2d2")
    host.client(b"READ " + file + b"\r\n")
    assert len(logged.encode()) <= limits.MAX_LOG_VALUE
    assert host.log[0].fields["file"] == logged


def test_several_values_are_cut(rig: Rig) -> None:
    host = CHost(rig, "memcache")
    keys = [b"k%05d" % i + b"x" * 150 for i in range(100)]
    host.client(b"get " + b" ".join(keys) + b"\r\n")
    logged = str(host.log[0].fields["keys"])
    assert logged.endswith("...")
    assert len(logged) == limits.MAX_LOG_VALUE
    assert ", ".join(key.decode() for key in keys).startswith(logged.removesuffix("..."))


class Stuck:
    """A host that logs to a consumer which has accepted and never reads, until asked to."""

    def __init__(self, program: Path, directory: Path) -> None:
        path = directory / "log.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(10)
        self.process = HostProcess(program, directory / "stderr")
        self.instance = self.process.open_module([("access-log-path", str(path))])
        self.process.new_connection(self.instance, 1, "r2d2", policy_name="10.0.0.1")
        self.requests(1)
        self.consumer, _ = self._listener.accept()
        self.consumer.settimeout(10)

    def requests(self, count: int) -> None:
        assert not self.process.io(1, False, False, b"HALT\r\n" * count).error

    def entry(self) -> accesslog_pb2.LogEntry:
        return accesslog_pb2.LogEntry.FromString(self.consumer.recv(1 << 16))

    def close(self) -> None:
        self.process.kill()
        self.consumer.close()
        self._listener.close()


@pytest.fixture
def stuck(host_program: Path, tmp_path: Path) -> Iterator[Stuck]:
    stuck = Stuck(host_program, tmp_path)
    yield stuck
    stuck.close()


def test_what_a_stuck_consumer_misses_is_counted(stuck: Stuck) -> None:
    """Traffic goes on, and every entry is either there or counted."""
    total = 1
    for _ in range(200):
        stuck.requests(500)
        total += 500
    entries = lost = 0
    while entries + lost < total:
        fields = stuck.entry().generic_l7.fields
        if "count" in fields:
            lost += int(fields["count"])
        else:
            entries += 1
    assert lost > 0
    assert entries + lost == total
    stuck.process.close_module(stuck.instance)
    assert stuck.consumer.recv(1) == b"", "nothing was counted twice"


def test_closing_does_not_wait_for_a_stuck_consumer(stuck: Stuck) -> None:
    stuck.requests(5000)
    started = time.monotonic()
    stuck.process.close_module(stuck.instance)
    assert time.monotonic() - started < 5


def test_exit_does_not_wait_for_a_stuck_consumer(stuck: Stuck) -> None:
    stuck.requests(5000)
    started = time.monotonic()
    assert stuck.process.exit() == 0
    assert time.monotonic() - started < 5


@pytest.fixture(scope="module")
def logger_rig(host_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("logger")
    rig = Rig(host_program, directory / "rig", library=install(directory / "prefix"))
    yield rig
    rig.close()


HTTP = {
    "protocol": "HTTP/1.1",
    "method": "GET",
    "scheme": "http",
    "host": "h",
    "path": "/\xff",
    "headers": ((b"a", b"1"), (b"b", b"")),
    "missing_headers": ((b"c", b"2"),),
}

TYPED: list[tuple[EntryType, dict[str, object], str, int]] = [
    (EntryType.Request, HTTP, "http", 0),
    (
        EntryType.Response,
        {**HTTP, "protocol": "HTTP/2", "status": 200, "grpc_status": "7", "rejected_headers": ()},
        "http",
        1 << 40,
    ),
    (EntryType.Denied, {"protocol": "HTTP/1.0", "path": "x" * 4000}, "http", 0),
    (
        EntryType.Response,
        {
            "correlation_id": -1,
            "error_code": 29,
            "api_version": 13,
            "api_key": 0x7FFF,
            "topics": (b"a", "é".encode()),
            "client_id": "c",
        },
        "kafka",
        5,
    ),
    (EntryType.Request, {"api_key": "no number", "topics": ()}, "kafka", 0),
    (EntryType.Response, {"status": "closed"}, "memcache", 7),
]


def test_typed_entries_are_what_the_model_says(logger_rig: Rig) -> None:
    """The native encoding against the model's record, and both against the entry's message."""
    model, host = Host("logger", factory=ClassFactory(Logger)), CHost(logger_rig, "logger")
    for entry in TYPED:
        line = repr((int(entry[0]), *entry[1:])).encode() + b"\n"
        model.client(line)
        host.client(line)
    for native, record in zip(host.log, model.log, strict=True):
        said = {key: value for key, value in record.fields.items() if value != ()}
        assert native == LogRecord(record.entry_type, record.proto, said, record.latency)
    entries = logger_rig.entries(host.endpoint)
    assert [entry.WhichOneof("l7") for entry in entries] == ["http"] * 3 + ["kafka"] * 2 + [
        "generic_l7"
    ]
    assert entries[1].http.fields == {"grpc_status": "7"}
    assert entries[3].kafka.correlation_id == -1


def test_own_name_by_default_is_no_typed_entry(logger_rig: Rig) -> None:
    """What the engine says of a connection is text, also under a parser called http."""
    host = CHost(logger_rig, "logger")
    host.client(b"(1, {'status': 'x'})\n")
    assert host.log == [LogRecord(EntryType.Response, "logger", {"status": "x"})]


def test_headers_beyond_an_entrys_room_are_left_out(logger_rig: Rig) -> None:
    headers = tuple((b"h%d" % i, b"v" * 3000) for i in range(15))
    host = CHost(logger_rig, "logger")
    host.client(
        repr((0, {"path": "/", "headers": headers, "method": "GET"}, "http")).encode() + b"\n"
    )
    ((fields),) = [record.fields for record in host.log]
    assert fields["headers"] == headers[:10]
    assert fields["method"] == "GET"
    assert fields["path"] == "/"


@pytest.mark.parametrize(
    "arguments", ["(0, {'headers': (1,)}, 'http')", "(0, {1: 2}, 'kafka')", "(0, {}, 'http', 'x')"]
)
def test_odd_entries_are_refused(logger_rig: Rig, arguments: str) -> None:
    host = CHost(logger_rig, "logger")
    host.client(arguments.encode() + b"\n")
    assert host.closed
    ((kind, fields),) = [(record.entry_type, record.fields) for record in host.log]
    assert kind == EntryType.Denied
    assert "TypeError" in str(fields["status"])
