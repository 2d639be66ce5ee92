"""The library's xDS client: NPDS and NPHDS over a Unix socket.

Two state-of-the-world streams of one node. Each response is compiled as a whole
and put in force by one assignment, or refused with a NACK that says why. When the
control server goes away, what is in force stays, and the client reconnects with
back-off.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grpc

from proxylib.proto import discovery_pb2 as xds

log = logging.getLogger(__name__)

POLICY_TYPE = "type.googleapis.com/cilium.NetworkPolicy"
HOSTS_TYPE = "type.googleapis.com/cilium.NetworkPolicyHosts"
POLICY_METHOD = "/cilium.NetworkPolicyDiscoveryService/StreamNetworkPolicies"
HOSTS_METHOD = "/cilium.NetworkPolicyHostsDiscoveryService/StreamNetworkPolicyHosts"

FIRST_BACKOFF = 0.2
MAX_BACKOFF = 10.0
"""Seconds between attempts to reach the control server; doubles from first to last."""

MAX_RESPONSE = 256 << 20
"""Largest response, bytes."""

_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_RESPONSE),
    # Reconnecting is ours: gRPC's own back-off would double it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # A busy control server may take this long to greet; one that is away refuses at once.
    ("grpc.min_reconnect_backoff_ms", 20_000),
    ("grpc.max_reconnect_backoff_ms", 200),
    # Each client has its own connection, whatever else the process does.
    ("grpc.use_local_subchannel_pool", 1),
]

Apply = Callable[[str, Sequence[bytes]], None]
"""``apply(version, resources)``: puts a response in force, or raises with the reason."""

GRPC_INVALID_ARGUMENT = 3

MAX_REASON = 4096
"""Longest reason in a NACK, characters: a server takes 4 MiB at most, and a rule may
hold a value of any length."""

MAX_UNREAD = 1000
"""Most answers that wait for a control server to read them."""


@dataclass(frozen=True)
class Subscription:
    """One resource type of one stream."""

    type_url: str
    method: str
    apply: Apply


class Client:
    """Subscribes to `subscriptions` at the Unix socket `path` as node `node_id`."""

    def __init__(self, path: str, node_id: str, subscriptions: Sequence[Subscription]) -> None:
        self.refused: dict[str, str] = {}
        """By resource type, why the last response that came is not in force; empty if it is."""
        self._stopped = threading.Event()
        self._tried = [threading.Event() for _ in subscriptions]
        self._channel = grpc.insecure_channel(f"unix:{path}", options=_CHANNEL_OPTIONS)
        self._calls: dict[str, grpc.RpcContext] = {}
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(subscription, node_id, tried),
                name=f"proxylib-{subscription.type_url.rpartition('.')[2]}",
                daemon=True,
            )
            for subscription, tried in zip(subscriptions, self._tried, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def wait_first(self, timeout: float) -> None:
        """Wait until each stream has had its first response or failure, at most `timeout` s."""
        deadline = time.monotonic() + timeout
        for tried in self._tried:
            tried.wait(max(deadline - time.monotonic(), 0))

    def close(self) -> None:
        """End the streams. What they have put in force stays."""
        self._stopped.set()
        for call in list(self._calls.values()):
            call.cancel()  # type: ignore[no-untyped-call]
        self._channel.close()
        for thread in self._threads:
            thread.join(timeout=2)

    def _run(self, sub: Subscription, node_id: str, tried: threading.Event) -> None:
        backoff = FIRST_BACKOFF
        while not self._stopped.is_set():
            brought = threading.Event()
            try:
                self._stream(sub, node_id, tried, brought)
            except Exception as error:
                if not self._stopped.is_set():
                    log.warning("%s: %s", sub.type_url.rpartition(".")[2], _reason(error))
            tried.set()
            if brought.is_set():
                backoff = FIRST_BACKOFF
            self._stopped.wait(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF)

    def _stream(
        self, sub: Subscription, node_id: str, tried: threading.Event, brought: threading.Event
    ) -> None:
        """Run one stream to its end, which mostly is an error; set `brought` with a response."""
        requests: queue.SimpleQueue[xds.DiscoveryRequest | None] = queue.SimpleQueue()
        node = xds.Node(id=node_id)
        requests.put(xds.DiscoveryRequest(type_url=sub.type_url, node=node))
        call = self._channel.stream_stream(
            sub.method,
            request_serializer=xds.DiscoveryRequest.SerializeToString,
            response_deserializer=xds.DiscoveryResponse.FromString,
        )(_until_none(requests))
        self._calls[sub.type_url] = call
        accepted = ""
        try:
            if self._stopped.is_set():
                call.cancel()  # type: ignore[no-untyped-call]
            for response in call:
                brought.set()
                request = _answer(sub, response, accepted)
                self.refused[sub.type_url] = request.error_detail.message
                accepted = request.version_info
                requests.put(request)
                tried.set()
                if requests.qsize() > MAX_UNREAD:
                    raise ConnectionError("the control server does not read what we answer")
        finally:
            requests.put(None)
            call.cancel()  # type: ignore[no-untyped-call]


def _answer(
    sub: Subscription, response: xds.DiscoveryResponse, accepted: str
) -> xds.DiscoveryRequest:
    """Apply a response: the ACK, or the NACK with the reason."""
    request = xds.DiscoveryRequest(type_url=sub.type_url, response_nonce=response.nonce)
    try:
        wrong = {r.type_url for r in response.resources} - {sub.type_url}
        if response.type_url != sub.type_url or wrong:
            raise ValueError(f"not a response of {sub.type_url}: {wrong or response.type_url}")
        sub.apply(response.version_info, [r.value for r in response.resources])
        request.version_info = response.version_info
    except Exception as error:
        request.version_info = accepted
        request.error_detail.code = GRPC_INVALID_ARGUMENT
        reason = (str(error) or type(error).__name__)[:MAX_REASON]
        reason = reason.encode("utf-8", "backslashreplace").decode()
        request.error_detail.message = reason
        log.warning("version %s refused: %s", response.version_info, reason)
    return request


def _until_none(
    requests: queue.SimpleQueue[xds.DiscoveryRequest | None],
) -> Iterator[xds.DiscoveryRequest]:
    while (request := requests.get()) is not None:
        yield request


def _reason(error: object) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"
