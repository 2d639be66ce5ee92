"""etcd's v3 API over gRPC: transactions, leases and watches, and no more than that.

Several endpoints are one cluster: what one of them does not answer, the next is
asked.  All that is sent here may be sent twice, and does the same the second time.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from proxylib.errors import ConfigError
from xds.proto import etcd_pb2 as etcd

M = TypeVar("M", bound=Message)

CALL_TIMEOUT = 5.0
"""Seconds in which an endpoint must answer."""

_OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True)
class TLS:
    """PEM texts: whom to trust, and who we are (both or neither)."""

    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = None


class EtcdError(ConfigError):
    """etcd does not answer, or refuses."""


class EtcdClient:
    """One cluster. endpoints: ``host:port`` of its members. tls: None is plain text."""

    def __init__(self, endpoints: Sequence[str], tls: TLS | None = None) -> None:
        if not endpoints:
            raise ConfigError("etcd needs at least one endpoint (host:port)")
        self._names = tuple(endpoints)
        self._channels = [_channel(name, tls) for name in endpoints]
        self._first = 0
        self._watching: grpc.RpcContext | None = None

    def txn(self, request: etcd.TxnRequest) -> etcd.TxnResponse:
        """Carry out one transaction. Raises EtcdError."""
        return self._call("KV/Txn", request, etcd.TxnResponse)

    def range(self, prefix: bytes) -> etcd.RangeResponse:
        """Every key that begins with `prefix`. Raises EtcdError."""
        request = etcd.RangeRequest(key=prefix, range_end=after(prefix))
        return self._call("KV/Range", request, etcd.RangeResponse)

    def grant(self, seconds: int) -> int:
        """A new lease, which ends `seconds` after it was last renewed. Raises EtcdError."""
        request = etcd.LeaseGrantRequest(TTL=seconds)
        return self._call("Lease/LeaseGrant", request, etcd.LeaseGrantResponse).ID

    def renew(self, lease: int) -> bool:
        """Renew a lease; False if it has ended. Raises EtcdError."""
        request = etcd.LeaseKeepAliveRequest(ID=lease)

        def ask(channel: grpc.Channel) -> etcd.LeaseKeepAliveResponse:
            call = channel.stream_stream(
                "/etcdserverpb.Lease/LeaseKeepAlive",
                request_serializer=etcd.LeaseKeepAliveRequest.SerializeToString,
                response_deserializer=etcd.LeaseKeepAliveResponse.FromString,
            )(iter([request]), timeout=CALL_TIMEOUT)
            try:
                for response in call:
                    answer: etcd.LeaseKeepAliveResponse = response
                    return answer
                raise EtcdError("etcd does not renew leases")
            finally:
                call.cancel()  # type: ignore[no-untyped-call]

        return self._of_any(ask).TTL > 0

    def revoke(self, lease: int) -> None:
        """End a lease, and remove what is bound to it. Raises EtcdError."""
        request = etcd.LeaseRevokeRequest(ID=lease)
        self._call("Lease/LeaseRevoke", request, etcd.LeaseRevokeResponse)

    def watch(self, prefix: bytes, revision: int) -> Iterator[etcd.WatchResponse]:
        """Changes of keys that begin with `prefix`, from `revision` on; one such at a time.

        Raises EtcdError when the stream breaks, `end_watch` is called, or `revision`
        has been compacted.
        """
        create = etcd.WatchCreateRequest(
            key=prefix, range_end=after(prefix), start_revision=revision
        )
        requests: queue.SimpleQueue[etcd.WatchRequest | None] = queue.SimpleQueue()
        requests.put(etcd.WatchRequest(create_request=create))
        call = self._channels[self._first].stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=etcd.WatchRequest.SerializeToString,
            response_deserializer=etcd.WatchResponse.FromString,
        )(iter(requests.get, None))
        self._watching = call
        try:
            for response in call:
                if response.canceled or response.compact_revision:
                    raise EtcdError(f"etcd ends a watch: {response.cancel_reason or 'compacted'}")
                yield response
        except grpc.RpcError as error:
            name = self._names[self._first]
            self._first = (self._first + 1) % len(self._channels)
            raise EtcdError(f"etcd at {name}: {_said(error)}") from error
        finally:
            requests.put(None)
            call.cancel()  # type: ignore[no-untyped-call]

    def end_watch(self) -> None:
        """Break the watch, if there is one."""
        if self._watching is not None:
            self._watching.cancel()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close every connection."""
        for channel in self._channels:
            channel.close()

    def _call(self, method: str, request: Message, response: type[M]) -> M:
        def ask(channel: grpc.Channel) -> M:
            call = channel.unary_unary(
                f"/etcdserverpb.{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
            answer: M = call(request, timeout=CALL_TIMEOUT)
            return answer

        return self._of_any(ask)

    def _of_any(self, ask: Callable[[grpc.Channel], M]) -> M:
        """What the first endpoint answers that does, from the one that last did."""
        error: grpc.RpcError | None = None
        for turn in range(len(self._channels)):
            index = (self._first + turn) % len(self._channels)
            try:
                answer = ask(self._channels[index])
            except grpc.RpcError as failed:
                error = failed
                if failed.code() not in _GONE:
                    break
            else:
                self._first = index
                return answer
        raise EtcdError(f"etcd at {', '.join(self._names)}: {_said(error)}") from error


def after(prefix: bytes) -> bytes:
    """The end of the range of keys that begin with `prefix`, which ends in a character."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _channel(name: str, tls: TLS | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(name, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    return grpc.secure_channel(name, credentials, options=_OPTIONS)


def _said(error: object) -> str:
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else str(error)
