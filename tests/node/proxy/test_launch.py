"""Where an Envoy runs, and what it may do: its namespace, its limits, its log."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from demos.namespaces import Lab
from node.envoy import ask
from node.errors import SetupError
from node.proxy import launch
from node.proxy.process import Process
from tests.native.services import wait_for
from tests.node.proxy.scene import Droid, Scene, Traffic, connecting, scene, script
from xds.ads.resources import Transparency


def namespace_of(pid: int | str) -> os.stat_result:
    return os.stat(f"/proc/{pid}/ns/net")


def test_it_lives_in_its_namespace_over_a_hot_restart(make_lab: Callable[..., Lab]) -> None:
    """With transparent listeners, which are not everybody's to have."""
    lab = make_lab()
    there = lab.node
    with ExitStack() as stack:
        with there.entered():
            node = stack.enter_context(
                scene(lab.folder, transparency=Transparency(listener_mark=0xB00))
            )
        path = node.folder / "netns"
        path.symlink_to(there.path)
        proxy = node.proxy(node.config(netns=path))
        first = proxy.start()
        assert namespace_of(first.pid).st_ino == there.path.stat().st_ino
        assert namespace_of("self").st_ino != there.path.stat().st_ino
        with there.entered():
            traffic = Traffic(connecting(node.port))
        path.unlink()
        proxy.reload()
        second = proxy.wait(lambda s: s.epoch == 1, 30)
        assert namespace_of(second.pid).st_ino == there.path.stat().st_ino
        answered, failures = traffic.stop()
        assert (answered > 10, failures) == (True, [])


def test_a_namespace_that_is_gone(node: Scene) -> None:
    proxy = node.proxy(node.config(netns=Path("/run/netns/nowhere")))
    with pytest.raises(SetupError, match=r"nsenter: cannot open /run/netns/nowhere: No such"):
        proxy.start()


def test_its_session_and_its_limits(node: Scene) -> None:
    proxy = node.proxy()
    with (node.folder / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        pid = proxy.start().pid
        files = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        assert ours.name not in files
    assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) != os.getsid(0)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    assert soft == hard >= resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def test_its_heap_is_limited(node: Scene) -> None:
    """One that has too much takes no more connections, and says so."""
    config = node.config()
    small = replace(config, bootstrap=replace(config.bootstrap, max_heap=1 << 20))
    admin = node.proxy(small).start().admin
    assert admin is not None
    active = "overload.envoy.overload_actions.stop_accepting_connections.active: 1"
    wait_for(lambda: active in ask(admin, "/stats?filter=overload")[1], "the limit")
    with pytest.raises(TimeoutError), Droid(node.port, timeout=0.5) as droid:
        droid.ask()


def test_a_flood_of_log_is_bounded(node: Scene) -> None:
    """Nobody looks after the log: what is too much is lost, and Envoy goes on."""
    limit = 1 << 20
    flood = script(node.folder / "binary", 'yes "a line of log" >&2 & exec "$REAL" "$@"')
    proxy = node.proxy(node.config(binary=flood, log_limit=limit))
    proxy.start()
    log = proxy.places.log
    proxy.close()
    wait_for(lambda: log.stat().st_size == limit, "a full log")
    with Droid(node.port) as droid:
        assert droid.ask() == b"HALT"


def test_a_log_that_has_grown_is_rotated(node: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.proxy.supervisor.LOOK_EVERY", 0.2)
    limit = 1 << 20
    talks = script(node.folder / "binary", 'seq 100000 >&2; exec "$REAL" "$@"')
    proxy = node.proxy(node.config(binary=talks, log_limit=limit))
    proxy.start()
    log = proxy.places.log
    before = log.with_name("envoy.log.1")
    wait_for(lambda: before.exists() and log.stat().st_size == 0, "another log")
    assert before.read_text().endswith("100000\n")


def test_it_does_not_begin_before_it_is_on_the_disk(tmp_path: Path) -> None:
    """Whoever starts it may be killed at any moment: then it is known, or it ends."""
    began = tmp_path / "began"
    command = ["/bin/sh", "-c", f"touch {began}; exec sleep 60"]
    seen: list[Process] = []

    def refuse(process: Process) -> None:
        time.sleep(0.1)
        assert not began.exists()
        again = Process.open(process.pid, process.started)
        assert again is not None
        seen.append(again)
        raise SetupError("the disk is full")

    with pytest.raises(SetupError, match="the disk is full"):
        launch.start(
            command,
            environment=dict(os.environ),
            log=tmp_path / "log",
            log_limit=1 << 20,
            netns=None,
            register=refuse,
        )
    assert seen[0].wait(10)
    seen[0].close()
    assert not began.exists()
