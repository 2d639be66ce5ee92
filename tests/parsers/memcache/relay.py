"""A real memcached behind the parser, without Envoy: a TCP relay that runs each
connection through `proxylib.testing.Host`."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from proxylib.testing import Host, HostClosed

Rules = Sequence[Mapping[str, str]]


@dataclass
class Relay:
    """A listening relay; `hosts` are the connections so far, oldest first."""

    upstream: tuple[str, int]
    rules: Rules | None
    deny: Rules = ()
    address: tuple[str, int] = ("", 0)
    hosts: list[Host] = field(default_factory=list)
    # The loop itself forgets a task that waits for a half-closed connection.
    _tasks: set[object] = field(default_factory=set)

    async def _connection(
        self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        self._tasks.add(asyncio.current_task())
        with contextlib.closing(to_client):
            server, to_server = await asyncio.open_connection(*self.upstream)
            with contextlib.closing(to_server):
                await self._relay(client, to_client, server, to_server)

    async def _relay(
        self,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        host = Host("memcache", self.rules, deny=self.deny)
        self.hosts.append(host)

        writers = (to_server, to_client)
        ended = {False: False, True: False}

        def send(direction: bool, data: bytes) -> None:
            # Behind the end of a stream, or to a peer that has gone, nothing can be said.
            if data and not ended[direction] and not writers[direction].is_closing():
                writers[direction].write(data)

        async def pump(reply: bool, source: asyncio.StreamReader) -> None:
            try:
                while True:
                    data = await source.read(1 << 16)
                    feed = host.server if reply else host.client
                    send(reply, feed(data, end=not data))
                    send(not reply, host.take(not reply))
                    if not data or host.closed:
                        break
                    await writers[reply].drain()
                if not host.closed and not reply:
                    ended[reply] = True
                    to_server.write_eof()
                    return
            except (HostClosed, OSError):
                pass
            for writer in writers:
                writer.close()

        await asyncio.gather(pump(False, client), pump(True, server))

    async def _serve(self, ready: threading.Event, done: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.address = server.sockets[0].getsockname()
        ready.set()
        await done.wait()
        server.close()
        # A connection accepted at this very moment becomes a task only now: ask again, and let
        # each begin, so that what it holds is closed.
        await asyncio.sleep(0)
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await asyncio.sleep(0)


@contextlib.contextmanager
def relay(upstream: tuple[str, int], rules: Rules | None, deny: Rules = ()) -> Iterator[Relay]:
    """A relay to `upstream` under `rules`, in a thread of its own."""
    it = Relay(upstream, rules, deny)
    ready, loop, done = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(it._serve(ready, done)))
    thread.start()
    try:
        assert ready.wait(10)
        yield it
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
        loop.close()


@contextlib.contextmanager
def memcached(*options: str) -> Iterator[tuple[str, int]]:
    """A memcached of our own; yields its address."""
    binary = shutil.which("memcached")
    assert binary, "memcached is not installed (Debian package memcached)"
    host = "127.0.11.7"
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    command = [binary, "-l", host, "-p", str(port), "-U", "0", "-u", "nobody", "-t", "2", *options]
    process = subprocess.Popen(command)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
                break
            assert process.poll() is None, "memcached does not start"
            time.sleep(0.02)
        yield host, port
    finally:
        process.terminate()
        process.wait(10)


class Client:
    """A raw socket that says bytes and waits for the bytes that it expects."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=10)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *args: object) -> None:
        self.socket.close()

    def ask(self, request: bytes, until: bytes) -> bytes:
        """Send `request` and read until the answer ends with `until`."""
        self.socket.sendall(request)
        answer = b""
        while not answer.endswith(until):
            data = self.socket.recv(1 << 16)
            assert data, f"closed after {answer[-200:]!r}"
            answer += data
        return answer
