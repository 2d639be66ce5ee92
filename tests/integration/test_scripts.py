"""Random streams both ways at once through Envoy, and clients or servers that do not read."""

from __future__ import annotations

import random
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from node.address import Address
from node.parsers import ParserChoice
from node.run import Proxy, ProxyConfig
from proxylib import limits
from proxylib.proto.accesslog_pb2 import LogEntry
from tests.integration.waiting import until
from tests.native import scripted
from tests.native.scripted import (
    AHEAD,
    CROSS,
    HEADER,
    WHOLE,
    Script,
    frame,
    random_script,
    without_across,
)

TIMEOUT = 30
CONNECTIONS = 40


def scripts(seed: int) -> tuple[Script, Script]:
    """What the client and the server of a connection say, both with a last word."""
    rng = random.Random(seed)
    return said(rng), said(rng)


def said(rng: random.Random) -> Script:
    script, last = random_script(rng, rng.randrange(1, 60), 300_000), frame(AHEAD, b"bye")
    return Script(script.stream + last, script.out + last, script.across)


def talk(connection: socket.socket, own: Script, other: Script, rng: random.Random) -> bytes:
    """Say `own` in pieces while hearing what is left of `other`; returns what was heard."""

    def say() -> None:
        stream = own.stream
        while stream:
            size = rng.randrange(1, rng.choice((10, 5000, 500_000)))
            connection.sendall(stream[:size])
            stream = stream[size:]
            if rng.random() < 0.1:
                time.sleep(0.001)

    connection.settimeout(TIMEOUT)
    speaker = threading.Thread(target=say)
    speaker.start()
    heard = bytearray()
    expected = len(other.out) + own.across
    while len(heard) < expected and (data := connection.recv(1 << 16)):
        heard += data
    speaker.join()
    connection.shutdown(socket.SHUT_WR)
    while data := connection.recv(1 << 16):
        heard += data
    return bytes(heard)


class Speaker(socketserver.BaseRequestHandler):
    """Learns from the first frame which connection this is."""

    def handle(self) -> None:
        first = len(frame(AHEAD, b"1234"))
        self.request.settimeout(TIMEOUT)
        name = self.request.recv(first, socket.MSG_WAITALL)
        if not name:
            return  # the proxy looks whether anybody is here
        seed = int(name[-4:])
        client, server = scripts(seed)
        heard = talk(self.request, server, client, random.Random(-seed))
        self.server.heard[seed] = heard  # type: ignore[attr-defined]


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    heard: dict[int, bytes]
    request_queue_size = 100


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Speaker) as server:
        server.heard = {}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def proxy(
    parser: str, upstream: int, log: list[LogEntry] | None = None, *, workers: int = 1
) -> Proxy:
    choice = ParserChoice(parser, (Path(scripted.__file__),))
    listen = Address("127.0.0.1", 0)
    config = ProxyConfig(choice, listen, Address("127.0.0.1", upstream), concurrency=workers)
    return Proxy(config, on_entries=(log if log is not None else []).extend)


@pytest.mark.parametrize("parser", scripted.SCRIPTED)
def test_any_chunks(server: Server, parser: str) -> None:
    with proxy(parser, server.server_address[1], workers=2) as running:

        def client(seed: int) -> None:
            own, other = scripts(seed)
            address = ("127.0.0.1", running.address.port)
            with socket.create_connection(address, timeout=TIMEOUT) as connection:
                connection.sendall(frame(AHEAD, b"%04d" % seed))
                heard = talk(connection, own, other, random.Random(seed))
            assert without_across(heard) == other.out
            assert len(heard) == len(other.out) + own.across

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(client, range(CONNECTIONS)))
        for seed in range(CONNECTIONS):
            own, other = scripts(seed)
            heard = server.heard[seed]
            assert without_across(heard) == own.out
            assert len(heard) == len(own.out) + other.across


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def push(connection: socket.socket, data: bytes, most: int) -> int:
    """Send `data` again and again until nobody takes it for a second; returns how much went."""
    sent, view = 0, memoryview(data)
    connection.settimeout(1.0)
    try:
        while sent < most:
            sent += connection.send(view[sent % len(data) :])
    except (TimeoutError, ConnectionError):
        pass
    return sent


def accept(listener: socket.socket) -> socket.socket:
    """The connection of a client; the proxy's look whether anybody is there is closed already."""
    while True:
        connection, _ = listener.accept()
        connection.setblocking(False)
        try:
            if connection.recv(1, socket.MSG_PEEK):
                return connection
        except BlockingIOError:
            return connection
        connection.close()


PLENTY = 64 << 20


@pytest.fixture
def mute() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_answers_to_a_client_that_does_not_read_are_bounded(mute: socket.socket) -> None:
    """Each frame of 54 bytes is answered with 51: the client must be held up."""
    flood = frame(CROSS, b"x" * 50) * 4000
    with (
        proxy("scripted-batch", mute.getsockname()[1]) as running,
        socket.create_connection(("127.0.0.1", running.address.port)) as client,
    ):
        before = memory(running.pid)
        sent = push(client, flood, PLENTY)
        assert sent < PLENTY
        assert memory(running.pid) - before < 16 << 20
        client.settimeout(TIMEOUT)
        client.shutdown(socket.SHUT_WR)
        heard = 0
        while heard < sent // 54 * 51:
            heard += len(client.recv(1 << 20))


@pytest.mark.parametrize("reply", [False, True])
def test_a_peer_that_does_not_read_is_not_buffered_for(mute: socket.socket, reply: bool) -> None:
    with (
        proxy("scripted-batch", mute.getsockname()[1]) as running,
        socket.create_connection(("127.0.0.1", running.address.port)) as client,
        accept(mute) as upstream,
    ):
        before = memory(running.pid)
        speaker, listener = (upstream, client) if reply else (client, upstream)
        sent = push(speaker, frame(AHEAD, b"x" * (1 << 20)), 10 * PLENTY)
        assert sent < PLENTY
        assert memory(running.pid) - before < 16 << 20
        listener.settimeout(TIMEOUT)
        speaker.shutdown(socket.SHUT_WR)
        heard = 0
        while data := listener.recv(1 << 20):
            heard += len(data)
        assert heard == sent


def test_a_long_pipeline_of_denials_in_one_read(mute: socket.socket) -> None:
    """Far more answers than an inject buffer holds, to a client that does read."""
    count = 60_000
    with (
        proxy("scripted", mute.getsockname()[1]) as running,
        socket.create_connection(("127.0.0.1", running.address.port), timeout=TIMEOUT) as client,
    ):
        flood = frame(CROSS, b"x" * 99) * count
        thread = threading.Thread(target=client.sendall, args=(flood,))
        thread.start()
        heard = 0
        while heard < 100 * count and (data := client.recv(1 << 20)):
            heard += len(data)
        thread.join()
    assert heard == 100 * count


def test_what_may_be_held_is_bounded(mute: socket.socket) -> None:
    """A frame as large as the limit arrives; a larger one closes, and the log says why."""
    limit = limits.MAX_HELD - HEADER
    log: list[LogEntry] = []
    with proxy("scripted", mute.getsockname()[1], log) as running:

        def send(stream: bytes) -> int:
            """How much of it reaches the server."""
            address = ("127.0.0.1", running.address.port)
            with (
                socket.create_connection(address, timeout=TIMEOUT) as client,
                accept(mute) as upstream,
            ):
                thread = threading.Thread(target=push, args=(client, stream, len(stream)))
                thread.start()
                upstream.settimeout(TIMEOUT)
                heard = 0
                while heard < len(stream) and (data := upstream.recv(1 << 20)):
                    heard += len(data)
                thread.join()
                return heard

        assert send(frame(WHOLE, bytes(limit))) == limits.MAX_HELD
        assert send(frame(WHOLE, bytes(limit + 1))) == 0
        until(lambda: bool(log))
    assert ["limits.MAX_HELD" in entry.generic_l7.fields["status"] for entry in log] == [True]
