"""The access log as a consumer gets it, from a host without Python."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxylib import limits
from proxylib.proto import accesslog_pb2
from tests.native.chost import CHost, HostProcess, Rig


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
