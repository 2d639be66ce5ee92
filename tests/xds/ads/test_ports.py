"""Proxy ports: given, remembered, released."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxylib.errors import ConfigError
from xds.ads.ports import MAX_NAME, RELEASE_DELAY, ProxyPorts, is_free


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., ProxyPorts]


@pytest.fixture
def ports(tmp_path: Path, clock: Clock) -> Make:
    """Each call is a restart with the same state file."""

    def start(**options: object) -> ProxyPorts:
        values = {"free": lambda number: True, "clock": clock} | options
        return ProxyPorts(tmp_path / "ports.json", **values)  # type: ignore[arg-type]

    return start


def test_a_name_keeps_its_port_across_restarts(ports: Make) -> None:
    first = ports()
    assert [first.allocate(name) for name in ("a", "b", "a")] == [10000, 10001, 10000]
    assert ports().assigned() == {"a": 10000, "b": 10001}
    assert ports().allocate("b") == 10001


def test_a_released_port_is_kept_for_its_name(ports: Make, clock: Clock) -> None:
    one = ports()
    one.allocate("a")
    one.release("a")
    assert one.assigned() == {}
    assert one.allocate("b") == 10001, "not the one that was just released"
    assert ports().allocate("a") == 10000
    one = ports()
    one.release("a")
    one.release("never there")
    clock.now += RELEASE_DELAY
    assert one.allocate("c") == 10000
    assert one.allocate("a") == 10002


def test_a_clock_that_is_set_back_keeps_nothing_for_ever(ports: Make, clock: Clock) -> None:
    one = ports()
    one.allocate("a")
    one.release("a")
    clock.now -= 1e6
    assert one.allocate("b") == 10000


def test_a_port_that_somebody_else_has_is_passed_over(ports: Make) -> None:
    one = ports(free=lambda number: number not in (10000, 10002))
    assert [one.allocate(name) for name in "abc"] == [10001, 10003, 10004]
    assert one.move("a") == 10005
    assert ports().assigned() == {"a": 10005, "b": 10003, "c": 10004}


def test_all_taken(ports: Make) -> None:
    one = ports(first=10000, last=10001)
    one.allocate("a")
    one.allocate("b")
    with pytest.raises(ConfigError, match="no proxy port is left between 10000 and 10001"):
        one.allocate("c")
    assert one.assigned() == {"a": 10000, "b": 10001}


def test_a_name_is_bounded(ports: Make) -> None:
    with pytest.raises(ConfigError, match="longer than"):
        ports().allocate("x" * (MAX_NAME + 1))
    assert ports().assigned() == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"a": 10000}',
        '{"a": {"number": 10000, "more": 1}}',
        '{"a": {"number": 9999}}',
        '{"a": {"number": true}}',
        '{"a": {"number": 10000, "released": "now"}}',
        '{"a": {"number": 10000}, "b": {"number": 10000}}',
        "[" * 100_000,
        "\xff",
        " " * (5 << 20),
    ],
    ids=lambda text: text[:20],
)
def test_a_state_file_that_is_something_else(ports: Make, tmp_path: Path, text: str) -> None:
    path = tmp_path / "ports.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"ports\.json: not a file of proxy ports") as raised:
        ports()
    assert "end the node's Envoys, with the connections that they judge" in str(raised.value)
    assert path.read_text(encoding="latin-1") == text, "it is left as it is"


def test_a_state_file_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    one = ProxyPorts(folder / "ports.json", free=lambda number: True)
    folder.rmdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        one.allocate("a")
    assert one.assigned() == {}
    (tmp_path / "dir").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        ProxyPorts(tmp_path / "dir")


def test_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number: int = taken.getsockname()[1]
        assert not is_free(number, ("127.0.0.1",))
        assert not is_free(number, ("127.0.0.9", "127.0.0.1"))
        assert is_free(number, ("127.0.0.9",))
    assert is_free(number, ("127.0.0.1", "::1"))


def test_many_threads(ports: Make) -> None:
    one = ports()
    names = [f"n{number}" for number in range(40)]
    threads = [
        threading.Thread(target=lambda: [one.allocate(name) for name in names]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.assigned()) == sorted(names)
    assert len(set(one.assigned().values())) == len(names)
    assert ports().assigned() == one.assigned()


WRITER = """
import sys
from pathlib import Path
from xds.ads.ports import ProxyPorts
ports = ProxyPorts(Path(sys.argv[1]), free=lambda number: True)
for number in range(10**6):
    print(ports.allocate(f"n{number % 500}"), flush=True)
    ports.release(f"n{(number - 100) % 500}")
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """What somebody was told is on the disk, and the file can be read."""
    path = tmp_path / "ports.json"
    for lines in (1, 7, 40):
        path.unlink(missing_ok=True)
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, path],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        ) as process:
            assert process.stdout is not None
            told = [int(process.stdout.readline()) for _ in range(lines)]
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        found = ProxyPorts(path, free=lambda number: True).assigned()
        assert {found[f"n{number}"] for number in range(lines)} == set(told)
    assert all(
        set(value) == {"number", "released"} for value in json.loads(path.read_text()).values()
    )


NAMES = st.sampled_from("abcde")


class Life(RuleBasedStateMachine):
    """No port has two names, none is outside the range, a name in use keeps its port."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.ports = ProxyPorts(first=10000, last=10004, free=lambda number: True, clock=self.clock)
        self.told: dict[str, int] = {}

    @rule(name=NAMES)
    def allocate(self, name: str) -> None:
        try:
            port = self.ports.allocate(name)
        except ConfigError:
            return
        assert self.told.setdefault(name, port) == port

    @rule(name=NAMES)
    def release(self, name: str) -> None:
        self.ports.release(name)
        self.told.pop(name, None)

    @rule(name=NAMES)
    def move(self, name: str) -> None:
        before = self.told.get(name)
        try:
            self.told[name] = self.ports.move(name)
        except ConfigError:
            return
        assert self.told[name] != before

    @rule(seconds=st.sampled_from([1, 200, 400]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def distinct(self) -> None:
        assert self.ports.assigned() == self.told
        assert len(set(self.told.values())) == len(self.told)
        assert all(10000 <= port <= 10004 for port in self.told.values())


TestLife = Life.TestCase
