"""Receive access-log entries from any number of clients.

`AccessLogServer` is one epoll set of the listening socket and its clients, and
one non-blocking `read`.  Its own file descriptor is readable when there is
something to read, so that a thread can wait on it, and so can asyncio
(`AccessLog`).  Nothing is read ahead of the consumer: while it is busy entries
wait in the kernel, then in the client's bounded queue, and what is dropped there
arrives as a report (`view.is_report`).
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from google.protobuf.message import DecodeError

from proxylib.accesslog.listening import AccessLogError, listen
from proxylib.accesslog.view import REPORT_PROTO
from proxylib.proto.accesslog_pb2 import EntryType, L7LogEntry, LogEntry

__all__ = ["MAX_CLIENTS", "MAX_PACKET", "AccessLog", "AccessLogError", "AccessLogServer"]

MAX_PACKET = 64 << 10
"""Longest packet, bytes: twice what the library sends at most (limits.MAX_LOG_ENTRY).
A longer one is reported and its content is not kept."""

MAX_CLIENTS = 256
"""Most clients at a time; further ones are closed at once. Each costs a file descriptor."""

BURST = 128
"""Packets taken from one client per read, so that a busy one cannot starve others."""

MODE = 0o600
GROUP_MODE = 0o660


class AccessLogServer:
    """Listens at `path` from construction until `close`.

    group: let the group of the socket file connect too (mode 0660, not 0600).
    Raises AccessLogError if the path cannot be taken.
    """

    def __init__(self, path: Path | str, *, group: bool = False) -> None:
        self.path = Path(path).absolute()
        self.entries = 0
        """Packets received so far, reports of undecodable ones included."""
        self.undecodable = 0
        self._listener = listen(self.path, GROUP_MODE if group else MODE)
        self._inode = self.path.stat().st_ino
        self._clients: dict[int, socket.socket] = {}
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._buffer = memoryview(bytearray(MAX_PACKET + 1))

    @property
    def clients(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def fileno(self) -> int:
        """A descriptor that is readable when `read` has something to do."""
        return self._epoll.fileno()

    def read(self, timeout: float = 0) -> list[LogEntry]:
        """The entries that are there now, at most BURST per client, in order per client.

        timeout: seconds to wait for the first event; may still return nothing
        (a client came or went).
        """
        entries: list[LogEntry] = []
        for fd, _ in self._epoll.poll(timeout):
            if fd == self._listener.fileno():
                self._accept()
            else:
                self._receive(self._clients[fd], entries)
        self.entries += len(entries)
        return entries

    def __iter__(self) -> Iterator[LogEntry]:
        """Entries as they come, for ever, blocking."""
        while True:
            yield from self.read(timeout=-1)

    def close(self) -> None:
        """Close every connection and remove the socket file, if it is still ours."""
        if self._epoll.closed:
            return
        self._epoll.close()
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._listener.close()
        try:
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except OSError:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            # The client gave up, or we are out of descriptors: the next poll tries again.
            return
        if len(self._clients) >= MAX_CLIENTS:
            client.close()
            return
        client.setblocking(False)
        self._clients[client.fileno()] = client
        self._epoll.register(client, select.EPOLLIN)

    def _receive(self, client: socket.socket, entries: list[LogEntry]) -> None:
        buffer, recv_into, append = self._buffer, client.recv_into, entries.append
        decode = LogEntry.FromString
        for _ in range(BURST):
            try:
                length = recv_into(buffer)
            except BlockingIOError:
                return
            except OSError:
                length = 0
            if not length:
                del self._clients[client.fileno()]
                self._epoll.unregister(client)
                client.close()
                return
            if length > MAX_PACKET:
                append(self._bad(f"packet longer than {MAX_PACKET} bytes"))
                continue
            try:
                append(decode(bytes(buffer[:length])))
            except DecodeError:
                append(self._bad(f"packet of {length} bytes is not a cilium.LogEntry"))

    def _bad(self, reason: str) -> LogEntry:
        self.undecodable += 1
        return LogEntry(
            timestamp=time.time_ns(),
            entry_type=EntryType.Denied,
            generic_l7=L7LogEntry(
                proto=REPORT_PROTO, fields={"status": "undecodable", "reason": reason}
            ),
        )


class AccessLog:
    """The access log at `path` as an async iterator of `LogEntry`.

    It listens from construction (AccessLogError if it cannot) and is one
    consumer: iterate it from one task.
    """

    def __init__(self, path: Path | str, *, group: bool = False) -> None:
        self.server = AccessLogServer(path, group=group)
        self._ready: deque[LogEntry] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LogEntry:
        while not self._ready:
            # Also when entries are waiting: other tasks have their turn once per batch.
            await _readable(self.server.fileno())
            self._ready.extend(self.server.read())
        return self._ready.popleft()


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
