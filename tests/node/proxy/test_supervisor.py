"""Envoys that really run: started, killed, taken over, replaced."""

from __future__ import annotations

import os
import signal

import pytest

from node.proxy.process import Process
from node.proxy.status import ProxyState
from tests.node.proxy.scene import Droid, Scene, Traffic


def test_it_serves_and_stops(node: Scene) -> None:
    proxy = node.proxy()
    assert proxy.status.state is ProxyState.STOPPED
    status = proxy.start()
    assert (status.state, status.epoch, status.failures) == (ProxyState.RUNNING, 0, 0)
    with Droid(node.port) as droid:
        assert droid.ask() == b"HALT"
        assert droid.ask(b"RESET") == b"ERROR"
    proxy.stop()
    assert Process.open(status.pid) is None


def test_killed_it_is_back(node: Scene) -> None:
    proxy = node.proxy()
    first = proxy.start()
    os.kill(first.pid, signal.SIGKILL)
    again = proxy.wait(lambda s: s.pid not in (0, first.pid), 30)
    assert (again.restarts, again.failures) == (1, 1)
    with Droid(node.port) as droid:
        assert droid.ask() == b"HALT"
    assert "was killed by SIGKILL" in node.told("proxy-died")[0]


@pytest.mark.timeout(60)
def test_hot_restarts_lose_nothing(node: Scene) -> None:
    proxy = node.proxy()
    proxy.start()
    with Droid(node.port) as long_lived:
        assert long_lived.ask() == b"HALT"
    traffic = [Traffic(node.port, keep=False), Traffic(node.port, keep=False)]
    for epoch in (1, 2, 3):
        proxy.reload()
        with Droid(node.port) as droid:
            status = proxy.wait(lambda s, epoch=epoch: s.epoch == epoch, 30)
            assert status.epoch == epoch, status
            assert droid.ask() == b"HALT"
    for item in traffic:
        answered, failures = item.stop()
        print(answered, failures)
        assert not failures
    assert not node.told("proxy-died")
