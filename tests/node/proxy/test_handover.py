"""One generation takes over from another, under load, and when something goes wrong."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from node.envoy import ask
from node.proxy import handover
from node.proxy.process import with_argument
from node.proxy.state import with_bootstrap
from node.proxy.status import ProxyState
from tests.integration.test_ads import web_server
from tests.native.services import wait_for
from tests.node.proxy.scene import HOST, Droid, Scene, Traffic, agent, connecting, scene, script


@pytest.mark.timeout(120)
def test_hot_restarts_lose_nothing(node: Scene) -> None:
    proxy = node.proxy()
    proxy.start()
    traffic = [Traffic(connecting(node.port)), Traffic(connecting(node.port))]
    try:
        for epoch in (1, 2, 3):
            proxy.reload()
            status = proxy.wait(lambda s, epoch=epoch: s.epoch == epoch, 30)
            assert status.epoch == epoch, status
    finally:
        found = [item.stop() for item in traffic]
    assert [failures for _, failures in found] == [[], []]
    assert min(answered for answered, _ in found) > 100
    assert not node.told("proxy-died")


@pytest.mark.timeout(60)
def test_nothing_is_lost_with_several_sockets_for_a_listener(node: Scene) -> None:
    """One for each worker and address: all of them change hands. A neighbour on the same
    machine does the same at the same time."""
    neighbour = node.proxy()
    neighbour.ensure()
    with (
        TemporaryDirectory(prefix="py") as folder,
        scene(Path(folder), concurrency=2, hosts=(HOST, "::1")) as other,
    ):
        proxy = other.proxy()
        assert proxy.start().pid != neighbour.start().pid
        traffic = [Traffic(connecting(other.port, host)) for host in (HOST, "::1")]
        for each in (proxy, neighbour):
            each.reload()
        epochs = [each.wait(lambda s: s.epoch == 1, 30).epoch for each in (proxy, neighbour)]
        proxy.wait(lambda s: not s.draining, 30)
        found = [item.stop() for item in traffic]
    assert epochs == [1, 1]
    assert [failures for _, failures in found] == [[], []]
    assert min(answered for answered, _ in found) > 100


@pytest.mark.timeout(60)
def test_http_clients_are_told_to_come_again() -> None:
    with (
        TemporaryDirectory(prefix="px") as folder,
        web_server() as web,
        scene(Path(folder), web) as node,
        closing(HTTPConnection(HOST, node.port, timeout=10)) as connection,
    ):
        node.allow("{http: [{method: GET}]}")
        node.publish(node.redirect("http", http=True))

        def request() -> None:
            """On the same connection, as long as the proxy does not say that it closes."""
            connection.request("GET", "/")
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status

        proxy = node.proxy()
        proxy.start()
        traffic = Traffic(request)
        proxy.reload()
        status = proxy.wait(lambda s: s.epoch == 1, 30)
        proxy.wait(lambda s: not s.draining, 30)
        answered, failures = traffic.stop()
        assert (status.epoch, failures) == (1, [])
        assert answered > 100


def test_a_connection_lives_until_the_old_one_ends(node: Scene) -> None:
    proxy = node.proxy(node.config(parent_shutdown_time=6))
    proxy.start()
    with Droid(node.port) as old:
        assert old.ask() == b"HALT"
        proxy.reload()
        (draining,) = proxy.wait(lambda s: s.epoch == 1, 30).draining
        assert draining.ends > time.time()
        proxy.reload()
        while not proxy.status.reload_waits:
            assert old.ask() == b"HALT"
        assert proxy.status.epoch == 1, "a third one would end the first"
        while time.time() < draining.ends - 4:
            assert old.ask() == b"HALT"
        assert proxy.wait(lambda s: not s.draining, 10).draining == ()
        assert old.ask() == b""
    assert proxy.wait(lambda s: s.epoch == 2, 30).epoch == 2


FAILS = {
    "crashes at once": 'case "$*" in *validate*) exec "$REAL" "$@";; esac; exit 9',
    "crashes when it has begun": (
        'case "$*" in *validate*) exec "$REAL" "$@";; esac; '
        # Not ready at first: it waits for its listeners, and is killed meanwhile.
        'sed -i s,/xds.sock,/none.sock, "$2"; timeout -s KILL 1 "$REAL" "$@"; exit 9'
    ),
}


@pytest.mark.parametrize("how", FAILS)
def test_a_failed_one_leaves_the_old_one_serving(node: Scene, how: str) -> None:
    binary = script(node.folder / "binary", 'exec "$REAL" "$@"')
    proxy = node.proxy(node.config(binary=binary))
    first = proxy.start()
    script(binary, FAILS[how])
    with Droid(node.port) as old:
        proxy.reload()
        status = proxy.wait(lambda s: s.last_error != "", 30)
        assert "the old Envoy goes on: the new Envoy" in status.last_error, status
        assert (status.pid, status.failures, status.restarts) == (first.pid, 0, 0)
        assert old.ask() == b"HALT"
    with Droid(node.port) as new:
        assert new.ask() == b"HALT"
    script(binary, 'exec "$REAL" "$@" ')
    proxy.reload()
    status = proxy.wait(lambda s: s.epoch == 1, 30)
    assert (status.state, status.last_error) == (ProxyState.RUNNING, ""), status


def test_a_library_that_cannot_be_loaded_is_not_let_near(
    node: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = node.proxy()
    first = proxy.start()
    broken = node.folder / "broken" / "libproxylib.so"
    broken.parent.mkdir()
    broken.write_bytes(b"\x7fELF and no more")
    monkeypatch.setattr("node.proxy.plan.find_library", lambda: broken)
    proxy.reload()
    status = proxy.wait(lambda s: s.last_error != "", 30)
    assert "the old Envoy goes on: the new Envoy refuses to serve" in status.last_error
    assert "libproxylib.so" in status.last_error
    assert (status.pid, status.epoch) == (first.pid, 0)
    assert first.admin is not None
    assert ask(first.admin, "/ready")[0] == 200, "it was never asked to close it"


def test_another_binary_takes_over_by_itself(node: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """And if something is in its way, as soon as that is gone."""
    monkeypatch.setattr("node.proxy.supervisor.LOOK_EVERY", 0.2)
    monkeypatch.setattr("node.proxy.supervisor.RELOAD_AGAIN", 0.5)
    binary = script(node.folder / "binary", 'exec "$REAL" "$@"')
    proxy = node.proxy(node.config(binary=binary))
    proxy.start()
    there = node.folder / "there"
    script(binary, f'[ -e {there} ] || exit 9; exec "$REAL" "$@"')
    assert "refuses to serve" in proxy.wait(lambda s: s.last_error != "", 30).last_error
    there.touch()
    assert proxy.wait(lambda s: s.epoch == 1, 30).last_error == ""
    assert set(node.told("proxy-outdated")) == {"Envoy's binary changed"}
    proxy.close()
    node.events.clear()
    again = node.proxy(node.config(binary=binary, log_level="info"))
    assert again.wait(lambda s: s.epoch == 2, 30).epoch == 2
    assert node.told("proxy-outdated") == ["Envoy's bootstrap changed"]


def test_an_old_one_that_dies_early_takes_nobody_along(node: Scene) -> None:
    """Its successor tells it to end when its time comes: somebody has to be there. Envoy
    would wait for it, deaf to everything, and give up with a crash."""
    proxy = node.proxy()
    first = proxy.start()
    proxy.reload()
    status = proxy.wait(lambda s: s.epoch == 1, 30)
    (draining,) = status.draining
    os.kill(first.pid, signal.SIGKILL)
    proxy.wait(lambda s: not s.draining, 10)
    time.sleep(max(draining.ends + 1 - time.time(), 0))
    assert status.admin is not None
    assert ask(status.admin, "/ready", timeout=3)[0] == 200
    assert proxy.status.pid == status.pid
    # And the next one takes over from it as from any other.
    proxy.reload()
    assert proxy.wait(lambda s: s.epoch == 2, 30).epoch == 2
    with Droid(node.port) as droid:
        assert droid.ask() == b"HALT"


def test_the_new_one_dies_while_the_old_one_drains(
    node: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.proxy.supervisor.LOOK_EVERY", 0.2)
    monkeypatch.setattr("node.proxy.generations.DRAIN_GRACE", 0.2)
    proxy = node.proxy()
    proxy.start()
    with Droid(node.port) as old:
        assert old.ask() == b"HALT"
        proxy.reload()
        second = proxy.wait(lambda s: s.epoch == 1, 30)
        os.kill(second.pid, signal.SIGKILL)
        third = proxy.wait(lambda s: s.pid not in (0, second.pid), 30)
        assert (third.epoch, third.restarts) == (0, 1)
        assert old.ask() == b"HALT"
        with Droid(node.port) as new:
            assert new.ask() == b"HALT"
        assert len(third.draining) == 1
        # Nobody but us ends it now.
        assert proxy.wait(lambda s: not s.draining, 30).draining == ()


def test_one_that_dies_when_it_has_just_taken_over(
    node: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has seen it serve, but the old one accepts no connections any more."""
    monkeypatch.setattr("node.proxy.supervisor.READY_EVERY", 5.0)
    proxy = node.proxy()
    proxy.start()
    proxy.reload()
    wait_for(lambda: len(with_bootstrap(proxy.places)) == 2, "the new one")
    base, epoch = max(with_bootstrap(proxy.places))
    admin = proxy.places.admin(base, epoch)
    wait_for(lambda: admin.exists() and handover.taken_over(base), "the take-over")
    (new,) = with_argument(os.fspath(proxy.places.bootstrap(base, epoch)))
    assert proxy.status.epoch == 0
    monkeypatch.undo()
    os.kill(new.pid, signal.SIGKILL)
    new.close()
    status = proxy.wait(lambda s: s.pid != 0 and s.restarts == 1, 30)
    assert (status.epoch, len(status.draining)) == (0, 1), status
    with Droid(node.port) as droid:
        assert droid.ask() == b"HALT"


def test_its_agent_is_killed_while_one_takes_over(node: Scene) -> None:
    """The next agent sees both, and brings it to an end."""
    with agent(node) as (process, first):
        assert process.stdin is not None
        traffic = Traffic(connecting(node.port))
        try:
            places = node.config().places
            process.stdin.write("now\n")
            process.stdin.flush()
            wait_for(lambda: len(with_bootstrap(places)) == 2, "the successor")
            admin = places.admin(*max(with_bootstrap(places)))
            wait_for(admin.exists, "its beginning")
            process.kill()
            process.wait()
            proxy = node.proxy()
            assert proxy.status.pid == first
            status = proxy.wait(lambda s: s.epoch == 1, 30)
        finally:
            answered, failures = traffic.stop()
    assert (status.epoch, [item.pid for item in status.draining]) == (1, [first])
    assert (answered > 0, failures) == (True, [])
    # And when nobody has written down who is who.
    proxy.close()
    places.state.unlink()
    again = node.proxy().wait(lambda s: s.epoch == 1, 30)
    assert (again.pid, again.restarts) == (status.pid, 0)
