"""The gRPC server: NPDS, NPHDS and ADS streams on a Unix socket, and on TCP if wanted.

An event loop in a thread of its own runs one coroutine per stream; each wakes up
when its peer says something or when resources are published, and sends what
`Stream` finds due.  A slow peer skips versions, it never queues them; one that
says too much is read at a bounded pace.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from proxylib.errors import ConfigError
from xds.ads.types import SHORT_NAMES, TYPES
from xds.compilation import NETWORK_POLICY, NETWORK_POLICY_HOSTS
from xds.listening import bind_tcp, bind_unix, check_socket, inode
from xds.pace import Pace
from xds.stream import ADS, DELTA_ADS, NPDS, NPHDS, Service, Stream
from xds.subscription import Answer, StreamError, StreamStatus
from xds.world import Resource, Snapshot, World, resource

log = logging.getLogger(__name__)

METHODS: Mapping[str, tuple[tuple[str, Service], ...]] = {
    "cilium.NetworkPolicyDiscoveryService": (("StreamNetworkPolicies", NPDS),),
    "cilium.NetworkPolicyHostsDiscoveryService": (("StreamNetworkPolicyHosts", NPHDS),),
    "envoy.service.discovery.v3.AggregatedDiscoveryService": (
        ("StreamAggregatedResources", ADS),
        ("DeltaAggregatedResources", DELTA_ADS),
    ),
}
"""gRPC service -> its methods, and what their streams have."""

MAX_STREAMS = 256
"""Open streams, of all peers together; more are refused with RESOURCE_EXHAUSTED.
A library instance uses two, an Envoy one."""

MAX_REQUEST = 1 << 20
"""Largest request, bytes: ten thousand names with their versions fit."""

MAX_GONE = 256
"""Nodes that are gone and still shown by `streams`, the latest ones."""

REQUESTS_PER_SECOND, REQUEST_BURST = 100.0, 500
"""What is read of one stream; a peer that says more has to wait. An Envoy says one
thing per response and a few per type when it starts."""

EVENTS_PER_SECOND, EVENT_BURST = 5.0, 100
"""Lines about peers in our log; what a hostile one would add is left out."""

ANSWER_TIMEOUT = 30.0
"""Seconds after which an unanswered response is an event in the log. Envoy answers when
its clusters are warm: 15 s at most, by its own default."""

_START_TIMEOUT = 10.0
"""Seconds in which the event loop must answer; it has nothing to wait for."""

Resources = Mapping[str, Iterable[bytes] | Mapping[str, Resource]]
"""By type URL: serialized messages, or named resources."""


class DiscoveryServer:
    """Serves what `publish` was last given to every subscriber.

    socket_path: where to listen. mode: the socket's permissions. group: the group
    that it is given to, a number; None leaves it ours.
    tcp: also ``host:port``, a numeric address; port 0 takes a free one. Without
    `credentials` only a loopback address is taken, since anybody who connects is served.
    """

    def __init__(
        self,
        socket_path: Path,
        *,
        mode: int = 0o600,
        group: int | None = None,
        tcp: str = "",
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._path = socket_path.absolute()
        self._mode = mode
        self._group = group
        self._tcp = tcp
        self._credentials = credentials
        self._tcp_port = 0
        # Guards what other threads read: the world, streams, and the list of the gone.
        self._changed = threading.Condition()
        self._waiters: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._world = World(
            0, {url: Snapshot(url) for url in (NETWORK_POLICY, NETWORK_POLICY_HOSTS, *TYPES)}
        )
        self._streams: dict[Stream, asyncio.Event] = {}
        self._gone: OrderedDict[tuple[str, str], StreamStatus] = OrderedDict()
        self._events = Pace(EVENTS_PER_SECOND, EVENT_BURST)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: grpc.aio.Server | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._inode: tuple[int, int] | None = None

    def start(self) -> None:
        """Listen. Raises ConfigError if the socket or the address cannot be had."""
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
        if self._inode is not None and inode(self._path) == self._inode:
            self._path.unlink(missing_ok=True)
        self._inode = None
        with self._changed:
            self._notify()

    @property
    def tcp_port(self) -> int:
        """The TCP port that it listens on; 0 if it does not."""
        return self._tcp_port

    @property
    def revision(self) -> int:
        """The newest revision that was published."""
        with self._changed:
            return self._world.revision

    def publish(self, resources: Resources, *, revision: int | None = None) -> bool:
        """Make `resources` (by type URL) current; other types stay as they are.

        Types that did not change keep their version; False if none did. revision:
        what this state is called from now on, by default the next number if anything
        changed. Raises ValueError for one that is lower than the last.
        """
        with self._changed:
            before = self._world
            snapshots = dict(before.snapshots)
            for url, given in resources.items():
                old = snapshots[url]
                items = _named(given, old.resources)
                if old.version == 0 or list(items.items()) != list(old.resources.items()):
                    snapshots[url] = Snapshot(url, old.version + 1, items)
            changed = any(snapshots[url] is not before.snapshots[url] for url in snapshots)
            number = before.revision + changed if revision is None else revision
            if number < before.revision:
                raise ValueError(f"revision {number} after revision {before.revision}")
            self._world = World(number, snapshots)
            self._notify()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake_all)
        return changed

    def versions(self) -> dict[str, int]:
        """The current version of each type that was published."""
        with self._changed:
            snapshots = self._world.snapshots.items()
            return {url: snapshot.version for url, snapshot in snapshots if snapshot.version}

    def streams(self) -> list[StreamStatus]:
        """What every subscriber has of each type, and the latest subscribers that are gone."""
        with self._changed:
            live = list(self._live())
            back = {(status.node_id, status.type_url) for status in live}
            return live + [status for key, status in self._gone.items() if key not in back]

    def wait(self, revision: int, timeout: float, *, types: Collection[str] = ()) -> bool:
        """Wait until `revision` is in force everywhere; False after `timeout` seconds.

        That is: every connected subscriber has accepted all of it that concerns it.
        One that refuses it is not reached; `streams` has its reason.
        types: type URLs that at least one subscriber each must have asked for.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._reached(revision, types), timeout=timeout)

    async def wait_async(
        self, revision: int, timeout: float, *, types: Collection[str] = ()
    ) -> bool:
        """`wait` for a coroutine, on any event loop; it holds no thread."""
        event = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                with self._changed:
                    self._waiters[event] = asyncio.get_running_loop()
                try:
                    while not self._reached(revision, types):
                        await event.wait()
                        event.clear()
                finally:
                    with self._changed:
                        del self._waiters[event]
        return self._reached(revision, types)

    def wait_until(
        self, check: Callable[[list[StreamStatus], dict[str, int]], bool], timeout: float
    ) -> bool:
        """Wait up to `timeout` seconds until `check(streams, versions)` is true."""
        with self._changed:
            return self._changed.wait_for(
                lambda: check(self.streams(), self.versions()), timeout=timeout
            )

    def _reached(self, revision: int, types: Collection[str]) -> bool:
        with self._changed:
            live = list(self._live())
        return {status.type_url for status in live} >= set(types) and all(
            status.revision >= revision for status in live
        )

    def _notify(self) -> None:
        """Wake everybody who waits; the condition is held."""
        self._changed.notify_all()
        for event, loop in self._waiters.items():
            with contextlib.suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(event.set)

    def _live(self) -> Iterator[StreamStatus]:
        for stream in self._streams:
            yield from stream.statuses()

    # -- the event loop's thread ---------------------------------------------------------

    async def _listen(self) -> None:
        server = grpc.aio.server(
            maximum_concurrent_rpcs=MAX_STREAMS,
            options=[
                ("grpc.max_receive_message_length", MAX_REQUEST),
                # The state of the world grows with the number of endpoints.
                ("grpc.max_send_message_length", -1),
                # A port that somebody has is an error, not to be shared.
                ("grpc.so_reuseport", 0),
            ],
        )
        server.add_generic_rpc_handlers(tuple(self._handlers()))
        where = str(self._path)
        try:
            bind_unix(server, self._path, mode=self._mode, group=self._group)
            self._inode = inode(self._path)
            if self._tcp:
                where = self._tcp
                self._tcp_port = bind_tcp(server, self._tcp, self._credentials)
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"{where}: cannot listen there: {error}") from error
        await server.start()
        self._server = server
        self._watcher = asyncio.create_task(self._watch_answers())

    async def _close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None

    def _wake_all(self) -> None:
        for wake in self._streams.values():
            wake.set()

    def _handlers(self) -> Iterator[grpc.GenericRpcHandler[bytes, bytes]]:
        for name, methods in METHODS.items():
            handlers = {
                # Raw bytes: Stream parses, and answers garbage in words.
                method: grpc.stream_stream_rpc_method_handler(self._behaviour(service))
                for method, service in methods
            }
            yield grpc.method_handlers_generic_handler(name, handlers)

    def _behaviour(self, service: Service) -> Callable[[AsyncIterator[bytes], Any], Any]:
        async def serve(requests: AsyncIterator[bytes], context: Any) -> None:
            await self._serve(service, requests, context)

        return serve

    async def _serve(self, service: Service, requests: AsyncIterator[bytes], context: Any) -> None:
        stream, wake = Stream(service), asyncio.Event()
        with self._changed:
            self._streams[stream] = wake
        reader = asyncio.create_task(self._read(stream, requests, wake))
        try:
            while not reader.done():
                wake.clear()
                with self._changed:
                    response = stream.respond(self._world)
                    self._notify()
                if response is not None:
                    await context.write(response)
                else:
                    await wake.wait()
            error = reader.exception()
            if isinstance(error, StreamError):
                self._event("%s: stream ended: %s", _name(stream), error)
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            reader.cancel()
            with contextlib.suppress(BaseException):
                await reader
            self._forget(stream)

    async def _read(
        self, stream: Stream, requests: AsyncIterator[bytes], wake: asyncio.Event
    ) -> None:
        pace, slowed = Pace(REQUESTS_PER_SECOND, REQUEST_BURST), False
        try:
            async for data in requests:
                with self._changed:
                    ignored = len(stream.ignored)
                    answer = stream.receive(data)
                    self._notify()
                wake.set()
                if answer is not None:
                    self._answered(stream, answer)
                if len(stream.ignored) > ignored:
                    self._event("%s: asks for a type not served here", _name(stream))
                delay = pace.delay(time.monotonic())
                if delay:
                    if not slowed:
                        self._event("%s: too many requests, slowed down", _name(stream))
                    slowed = True
                    await asyncio.sleep(delay)
        finally:
            wake.set()

    async def _watch_answers(self) -> None:
        told: set[tuple[Stream, str, float]] = set()
        while True:
            await asyncio.sleep(ANSWER_TIMEOUT / 2)
            before = time.time() - ANSWER_TIMEOUT
            with self._changed:
                late = {
                    (stream, status.type_url, status.pending_since)
                    for stream in self._streams
                    for status in stream.statuses()
                    if status.pending_since is not None and status.pending_since < before
                }
            for stream, url, _ in late - told:
                self._event("%s: %s sent and not answered", _name(stream), SHORT_NAMES[url])
            told = late

    def _answered(self, stream: Stream, answer: Answer) -> None:
        if answer.reason:
            what = f"{SHORT_NAMES[answer.type_url]} version {answer.version}"
            reason = " ".join(answer.reason.split())
            self._event("%s: refuses %s: %s", _name(stream), what, reason)

    def _event(self, message: str, *arguments: object) -> None:
        if self._events.allows(time.monotonic()):
            log.warning(message, *arguments)

    def _forget(self, stream: Stream) -> None:
        with self._changed:
            del self._streams[stream]
            for status in stream.statuses():
                key = (status.node_id, status.type_url)
                self._gone.pop(key, None)
                self._gone[key] = status.gone()
                while len(self._gone) > MAX_GONE:
                    self._gone.popitem(last=False)
            self._notify()


def _named(
    items: Iterable[bytes] | Mapping[str, Resource], before: Mapping[str, Resource]
) -> Mapping[str, Resource]:
    """Resources by name; those without one by their place. What `before` has is not made anew."""
    if isinstance(items, Mapping):
        return dict(items)
    found = {}
    for number, body in enumerate(items):
        name = str(number)
        had = before.get(name)
        found[name] = had if had is not None and had.body == body else resource(name, body)
    return found


def _name(stream: Stream) -> str:
    """The peer, as the log calls it. Its id is its own invention: quoted."""
    return f"node {stream.node_id!r}"


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
