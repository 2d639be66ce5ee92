"""Processes by number and start time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from node.proxy.process import Process, with_argument


@contextmanager
def opened(pid: int, started: int | None = None) -> Iterator[Process]:
    process = Process.open(pid, started)
    assert process is not None
    try:
        yield process
    finally:
        process.close()


@pytest.mark.parametrize(
    ("command", "status"), [("exit 3", 3), ("kill -KILL $$", -9), ("kill -40 $$", -40)]
)
def test_how_it_ended_before_and_after_it_was_reaped(command: str, status: int) -> None:
    with (
        subprocess.Popen(["sh", "-c", f"read _; {command}"], stdin=subprocess.PIPE) as child,
        opened(child.pid) as process,
    ):
        assert process.status() is None
        assert not process.ended
        assert child.stdin is not None
        child.stdin.close()
        assert process.wait(10)
        assert process.status() == status
        child.wait()
        assert process.ended
        assert process.status() in (status, None), "older kernels forget it"
        process.send(signal.SIGTERM)
    assert Process.open(child.pid) is None


def test_another_process_with_the_same_number_is_not_it() -> None:
    with subprocess.Popen(["sleep", "60"]) as child, opened(child.pid) as process:
        assert Process.open(child.pid, process.started - 1) is None
        with opened(child.pid, process.started) as same:
            same.end(5)
        assert process.ended
        assert Process.open(child.pid, process.started) is None, "a zombie runs no more"


@pytest.mark.parametrize("pid", [0, -1, 1 << 22, 1 << 40, 1 << 70])
def test_no_process(pid: int) -> None:
    assert Process.open(pid) is None


def test_it_does_not_end_when_it_is_asked() -> None:
    with subprocess.Popen(["sh", "-c", "trap '' TERM; echo; sleep 60"], stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with opened(child.pid) as process:
            process.end(0.1)
            assert process.status() == -signal.SIGKILL
        child.stdout.close()


NAMED = """
import pathlib, sys
pathlib.Path("/proc/self/comm").write_text("a) R 1 (\\nb")
print(flush=True)
sys.stdin.read()
"""


def test_a_name_with_anything_in_it() -> None:
    command = [sys.executable, "-c", NAMED, "an argument"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = [process for process in with_argument("an arg") if process.pid == child.pid]
        with opened(child.pid) as process:
            assert [item.started for item in found] == [process.started]
            assert process.environment().get("PATH") == os.environ["PATH"]
            assert process.arguments()[:2] == [sys.executable, "-c"]
        for item in found:
            item.close()
