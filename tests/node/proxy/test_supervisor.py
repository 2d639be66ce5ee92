"""Envoys that really run: started, killed, taken over from agents that are gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from node.errors import SetupError
from node.proxy.ending import stop
from node.proxy.handover import MAX_BASE, shared_memory
from node.proxy.process import Process
from node.proxy.state import with_bootstrap
from node.proxy.status import ProxyState
from tests.node.proxy.scene import Droid, Scene, agent, script


def test_it_serves_and_leaves_nothing_behind(node: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    base = MAX_BASE - os.getpid() % 10_000
    monkeypatch.setattr("random.randint", lambda first, last: base)
    proxy = node.proxy()
    assert proxy.status.state is ProxyState.STOPPED
    status = proxy.start()
    assert (status.state, status.epoch, status.failures) == (ProxyState.RUNNING, 0, 0)
    assert with_bootstrap(proxy.places) == [(base, 0)]
    assert shared_memory(base).exists()
    with Droid(node.port) as droid:
        assert droid.ask() == b"HALT"
        assert droid.ask(b"RESET") == b"ERROR"
    proxy.stop()
    assert Process.open(status.pid) is None
    assert not shared_memory(base).exists()
    assert list((node.folder / "envoy").iterdir()) == []


def test_it_is_ended_by_what_it_left_on_the_disk(node: Scene) -> None:
    proxy = node.proxy()
    pid = proxy.start().pid
    folder, run_dir = proxy.places.folder, proxy.places.run_dir
    with pytest.raises(SetupError, match="an agent looks after"):
        stop(folder, run_dir)
    proxy.close()
    ((base, _),) = with_bootstrap(proxy.places)
    proxy.places.state.write_text("{")
    assert stop(folder, run_dir) == [pid]
    assert Process.open(pid) is None
    assert not shared_memory(base).exists()
    assert list((node.folder / "envoy").iterdir()) == []
    assert stop(folder, run_dir) == []


def test_killed_it_is_back(node: Scene) -> None:
    proxy = node.proxy()
    first = proxy.start()
    os.kill(first.pid, signal.SIGKILL)
    again = proxy.wait(lambda s: s.pid not in (0, first.pid), 30)
    assert (again.restarts, again.failures) == (1, 1)
    with Droid(node.port) as droid:
        assert droid.ask() == b"HALT"
    assert "was killed by SIGKILL" in node.told("proxy-died")[0]
    assert len(with_bootstrap(proxy.places)) == 1


def test_it_survives_its_agent_and_the_next_one_has_it(node: Scene) -> None:
    with agent(node) as (process, pid):
        with pytest.raises(SetupError, match="an agent looks after the Envoy there"):
            node.proxy()
        with Droid(node.port) as droid:
            assert droid.ask() == b"HALT"
            process.kill()
            process.wait()
            assert droid.ask() == b"HALT"
            proxy = node.proxy()
            assert (proxy.status.pid, proxy.status.epoch) == (pid, 0)
            # Its parent's death is nothing to it, and it is watched as if it were ours.
            assert droid.ask() == b"HALT"
        os.kill(pid, signal.SIGSEGV)
        again = proxy.wait(lambda s: s.pid not in (0, pid), 30)
        assert again.restarts == 1
        assert f"process {pid}, was killed by SIGSEGV" in node.told("proxy-died")[0]


@pytest.mark.parametrize("damage", ["cut", "gone", "garbage", "another format", "huge"])
def test_a_damaged_state_leads_to_the_same_envoy(node: Scene, damage: str) -> None:
    first = node.proxy()
    pid = first.start().pid
    first.close()
    path = first.places.state
    text = path.read_bytes()
    before = json.loads(text)["generations"]
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {
                "cut": text[: len(text) // 2],
                "garbage": b"\xff\x00[",
                "another format": text.replace(b'"format": 1', b'"format": 77'),
                "huge": b" " * (2 << 20),
            }[damage]
        )
    proxy = node.proxy()
    status = proxy.wait(lambda s: s.pid > 0, 30)
    assert (status.pid, status.restarts) == (pid, 0)
    proxy.close()
    (known,) = json.loads(path.read_text())["generations"]
    assert known | {"since": 0} == before[0] | {"since": 0}, "it is not taken for another one"
    assert bool(node.told("proxy-state")) is (damage != "gone")
    with Droid(node.port) as droid:
        assert droid.ask() == b"HALT"


def test_somebody_else_s_process_is_let_alone(node: Scene) -> None:
    first = node.proxy()
    pid = first.start().pid
    first.close()
    os.kill(pid, signal.SIGKILL)
    with subprocess.Popen(["sleep", "60"]) as other:
        found = Process.open(other.pid)
        assert found is not None
        value = json.loads(first.places.state.read_text())
        value["generations"][0].update(pid=other.pid, started=found.started)
        first.places.state.write_text(json.dumps(value))
        found.close()
        assert stop(first.config.folder, first.config.run_dir) == []
        assert other.poll() is None
        other.kill()


def test_a_crash_loop_is_slow_and_seen(node: Scene) -> None:
    broken = script(node.folder / "binary", 'echo "no disk" >&2; exit 7')
    proxy = node.proxy(node.config(binary=broken))
    with pytest.raises(SetupError, match=r"ended with exit status 7.*\n  envoy: no disk"):
        proxy.start()
    status = proxy.wait(lambda s: s.failures >= 3, 30)
    assert (status.state, status.pid) == (ProxyState.WAITING, 0)
    assert status.next_start > time.time()
    script(node.folder / "binary", 'exec "$REAL" "$@"')
    status = proxy.wait(lambda s: s.pid > 0, 30)
    assert (status.state, status.last_error) == (ProxyState.RUNNING, "")
    assert status.restarts >= 3
