"""Two generations of one node ask the same control server: neither confuses it."""

from __future__ import annotations

import os
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from proxylib.proto import accesslog_pb2
from tests.native.services import LogSocket, wait_for
from tests.node.proxy.scene import Droid, Scene, Traffic, connecting, free_port, scene
from xds.ads.types import LISTENER

PATIENCE = 20.0


def test_while_one_drains_both_have_what_is_in_force(node: Scene) -> None:
    proxy = node.proxy(node.config(parent_shutdown_time=60))
    server = node.control.server
    log = LogSocket(node.folder / "log.sock")
    node.stack.callback(log.close)
    first = proxy.start()
    with Droid(node.port) as old:
        assert old.ask() == b"HALT"
        proxy.reload()
        second = proxy.wait(lambda s: s.epoch == 1, 30)
        with Droid(node.port) as new:
            node.allow("{l7proto: r2d2, l7: [{cmd: RESET}]}")
            assert server.wait(server.revision, PATIENCE)
            for droid in (old, new):
                assert (droid.ask(b"RESET"), droid.ask(b"HALT")) == (b"RESET", b"ERROR")
        denied = accesslog_pb2.EntryType.Denied

        def logged() -> set[str]:
            entries = list(log.entries)
            return {entry.source_address for entry in entries if entry.entry_type == denied}

        wait_for(lambda: len(logged()) == 2, "entries of both")

        # The one that drains has no listeners any more, and takes new ones all the same.
        port = free_port()
        node.publish(node.redirect(), node.redirect("memcache", port))
        assert server.wait(server.revision, PATIENCE), server.streams()
        found = [s for s in server.streams() if s.type_url == LISTENER]
        assert [(s.node_id, s.connected, s.reason) for s in found] == [("node", True, "")] * 2

        # It is gone between a change and its answer: nobody waits for it.
        os.kill(first.pid, signal.SIGSTOP)
        node.allow()
        assert not server.wait(server.revision, 0.5)
        os.kill(first.pid, signal.SIGKILL)
        assert server.wait(server.revision, PATIENCE), server.streams()
        assert all(status.connected for status in server.streams())
    assert proxy.status.pid == second.pid
    with Droid(node.port) as droid:
        assert droid.ask() == b"HALT"


def test_without_listeners_nothing_takes_over(node: Scene) -> None:
    """The control server is away: the new one waits for it, and the old one serves on."""
    proxy = node.proxy()
    proxy.start()
    node.control.stop()
    proxy.reload()
    status = proxy.wait(lambda s: s.pid == 0 or s.epoch == 1, 2)
    assert (status.state, status.epoch) == ("reloading", 0)
    with Droid(node.port) as droid:
        assert droid.ask() == b"HALT"
    node.control.start()
    assert proxy.wait(lambda s: s.epoch == 1, 30).epoch == 1
    with Droid(node.port) as droid:
        assert droid.ask() == b"HALT"


class _Late(socketserver.BaseRequestHandler):
    """Passes on what it hears at once, and what is answered late, the greeting too."""

    def handle(self) -> None:
        delay, target = self.server.way  # type: ignore[attr-defined]
        with suppress(OSError), socket.socket(socket.AF_UNIX) as there:
            there.connect(os.fspath(target))
            back = threading.Thread(target=_pump, args=(there, self.request, delay))
            back.start()
            _pump(self.request, there, 0)
            back.join()


def _pump(source: socket.socket, sink: socket.socket, delay: float) -> None:
    with suppress(OSError):
        time.sleep(delay)
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def late(path: Path, target: Path, delay: float) -> Iterator[None]:
    with socketserver.ThreadingUnixStreamServer(str(path), _Late) as server:
        server.way = (delay, target)  # type: ignore[attr-defined]
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_a_policy_that_comes_late_costs_no_request() -> None:
    """The library of the new one has no policy at first: it does not serve before it has."""
    with TemporaryDirectory(prefix="px") as name:
        folder = Path(name)
        with (
            late(folder / "late.sock", folder / "xds.sock", 1.5),
            scene(folder, xds_path=folder / "late.sock") as node,
        ):
            # The time of an old one begins when the new one begins to wait.
            proxy = node.proxy(node.config(parent_shutdown_time=8))
            proxy.start()
            traffic = Traffic(connecting(node.port))
            proxy.reload()
            status = proxy.wait(lambda s: s.epoch == 1, 30)
            time.sleep(0.5)
            answered, failures = traffic.stop()
            assert (status.epoch, failures) == (1, [])
            assert answered > 100
