"""The gRPC server: NPDS and NPHDS streams on a Unix socket.

An event loop in a thread of its own runs one coroutine per stream; each wakes up
when its peer says something or when resources are published, and sends what
`Stream` finds due.  A slow peer skips versions, it never queues them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import tempfile
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio

from proxylib.errors import ConfigError
from xds.compilation import NETWORK_POLICY, NETWORK_POLICY_HOSTS
from xds.stream import Snapshot, Stream, StreamError, StreamStatus

METHODS = {
    "cilium.NetworkPolicyDiscoveryService": ("StreamNetworkPolicies", NETWORK_POLICY),
    "cilium.NetworkPolicyHostsDiscoveryService": (
        "StreamNetworkPolicyHosts",
        NETWORK_POLICY_HOSTS,
    ),
}
"""gRPC service -> its method, and the one type that it serves."""

MAX_STREAMS = 256
"""Open streams, of all peers together; more are refused with RESOURCE_EXHAUSTED.
A library instance uses two."""

MAX_REQUEST = 64 << 10
"""Largest DiscoveryRequest, bytes: the largest thing in one is a NACK's reason."""

MAX_GONE = 256
"""Nodes that are gone and still shown by `streams`, the latest ones."""

_MAX_SOCKET_PATH = 107
"""Longest path of a Unix socket, bytes (sockaddr_un)."""

_START_TIMEOUT = 10.0
"""Seconds in which the event loop must answer; it has nothing to wait for."""


class DiscoveryServer:
    """Serves what `publish` was last given to every subscriber.

    socket_path: where to listen. mode: the socket's permissions.
    """

    def __init__(self, socket_path: Path, *, mode: int = 0o600) -> None:
        self._path = socket_path.absolute()
        self._mode = mode
        # Guards what other threads read: snapshots, streams, and the list of the gone.
        self._changed = threading.Condition()
        self._snapshots = {url: Snapshot(url) for _, url in METHODS.values()}
        self._streams: dict[Stream, asyncio.Event] = {}
        self._gone: OrderedDict[tuple[str, str], StreamStatus] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: grpc.aio.Server | None = None
        self._inode: tuple[int, int] | None = None

    def start(self) -> None:
        """Listen. Raises ConfigError if the socket cannot be had."""
        if self._loop is not None:
            raise ConfigError("the control server is running already")
        check_socket(self._path)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_run_loop, args=(loop,), name="xds", daemon=True)
        thread.start()
        self._loop, self._thread = loop, thread
        try:
            asyncio.run_coroutine_threadsafe(self._listen(), loop).result(_START_TIMEOUT)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Close every stream at once and remove the socket. Harmless if not running."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._close(), loop).result(_START_TIMEOUT)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        self._loop = self._thread = None
        # Not if another server has replaced it in the meantime.
        if self._inode is not None and _inode(self._path) == self._inode:
            self._path.unlink(missing_ok=True)
        self._inode = None
        with self._changed:
            self._changed.notify_all()

    def publish(self, resources: Mapping[str, Sequence[bytes]]) -> bool:
        """Make `resources` (by type URL) current. Types that did not change keep
        their version; False if none did."""
        changed = False
        with self._changed:
            for url, items in resources.items():
                before = self._snapshots[url]
                if before.version == 0 or tuple(items) != before.resources:
                    self._snapshots[url] = Snapshot(url, before.version + 1, tuple(items))
                    changed = True
            self._changed.notify_all()
        if changed and self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake_all)
        return changed

    def versions(self) -> dict[str, int]:
        """The current version of each type."""
        with self._changed:
            return {url: snapshot.version for url, snapshot in self._snapshots.items()}

    def streams(self) -> list[StreamStatus]:
        """Every subscriber, and the latest ones that are gone."""
        with self._changed:
            live = list(self._live())
            back = {(status.node_id, status.type_url) for status in live}
            return live + [status for key, status in self._gone.items() if key not in back]

    def wait(
        self, check: Callable[[list[StreamStatus], dict[str, int]], bool], timeout: float
    ) -> bool:
        """Wait up to `timeout` seconds until `check(streams, versions)` is true."""
        with self._changed:
            return self._changed.wait_for(
                lambda: check(self.streams(), self.versions()), timeout=timeout
            )

    def _live(self) -> Iterator[StreamStatus]:
        for stream in self._streams:
            status = stream.status()
            if status is not None:
                yield status

    async def _listen(self) -> None:
        server = grpc.aio.server(
            maximum_concurrent_rpcs=MAX_STREAMS,
            options=[
                ("grpc.max_receive_message_length", MAX_REQUEST),
                # The state of the world grows with the number of endpoints.
                ("grpc.max_send_message_length", -1),
            ],
        )
        server.add_generic_rpc_handlers(tuple(self._handlers()))
        try:
            self._bind(server)
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"{self._path}: cannot listen there: {error}") from error
        self._inode = _inode(self._path)
        await server.start()
        self._server = server

    def _bind(self, server: grpc.aio.Server) -> None:
        # Bound out of others' sight, and moved into place when its permissions are right.
        # gRPC removes the name that it has bound, whoever's that is by then: not ours.
        with tempfile.TemporaryDirectory(prefix=".", dir=self._path.parent) as private:
            bound = Path(private) / "s"
            if len(os.fsencode(bound)) > _MAX_SOCKET_PATH:
                raise ConfigError(f"{self._path}: the path of its directory is too long")
            server.add_insecure_port("unix:" + quote(str(bound)))
            bound.chmod(self._mode)
            bound.rename(self._path)

    async def _close(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None

    def _wake_all(self) -> None:
        for wake in self._streams.values():
            wake.set()

    def _handlers(self) -> Iterator[grpc.GenericRpcHandler[bytes, bytes]]:
        for service, (method, url) in METHODS.items():
            # Raw bytes: Stream parses, and answers garbage in words.
            handler = grpc.stream_stream_rpc_method_handler(self._behaviour(url))
            yield grpc.method_handlers_generic_handler(service, {method: handler})

    def _behaviour(self, url: str) -> Callable[[AsyncIterator[bytes], Any], Any]:
        async def serve(requests: AsyncIterator[bytes], context: Any) -> None:
            await self._serve(url, requests, context)

        return serve

    async def _serve(self, url: str, requests: AsyncIterator[bytes], context: Any) -> None:
        stream, wake = Stream(url), asyncio.Event()
        with self._changed:
            self._streams[stream] = wake
        reader = asyncio.create_task(self._read(stream, requests, wake))
        try:
            while not reader.done():
                wake.clear()
                with self._changed:
                    response = stream.respond(self._snapshots[url])
                    self._changed.notify_all()
                if response is not None:
                    await context.write(response)
                else:
                    await wake.wait()
            error = reader.exception()
            if isinstance(error, StreamError):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            reader.cancel()
            with contextlib.suppress(BaseException):
                await reader
            self._forget(stream)

    async def _read(
        self, stream: Stream, requests: AsyncIterator[bytes], wake: asyncio.Event
    ) -> None:
        try:
            async for data in requests:
                with self._changed:
                    stream.receive(data)
                    self._changed.notify_all()
                wake.set()
        finally:
            wake.set()

    def _forget(self, stream: Stream) -> None:
        with self._changed:
            del self._streams[stream]
            status = stream.status()
            if status is not None:
                key = (status.node_id, status.type_url)
                self._gone.pop(key, None)
                self._gone[key] = status.gone()
                while len(self._gone) > MAX_GONE:
                    self._gone.popitem(last=False)
            self._changed.notify_all()


def check_socket(path: Path) -> None:
    """Raise ConfigError, saying what to do, unless a socket can be put at `path`.

    One that nobody listens on may be replaced; anything else that is there not.
    """
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise ConfigError(f"{path}: a socket's path is at most {_MAX_SOCKET_PATH} bytes long")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the directory {path.parent} does not exist")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path}: is there already, and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise ConfigError(f"{path}: cannot be taken over: {error.strerror}") from error
        else:
            raise ConfigError(f"{path}: another server listens there; stop it or use another path")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
