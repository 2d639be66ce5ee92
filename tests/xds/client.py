"""A plain gRPC subscriber that says what it is told to say."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import grpc

from proxylib.npds import HOSTS_METHOD, HOSTS_TYPE, POLICY_METHOD, POLICY_TYPE
from proxylib.proto import discovery_pb2 as discovery

METHODS = {POLICY_TYPE: POLICY_METHOD, HOSTS_TYPE: HOSTS_METHOD}


class Subscriber:
    """One stream of type `url`. Sends bytes, so that it can send anything.

    target: where to connect instead of the Unix socket at `path`.
    """

    def __init__(
        self,
        path: Path,
        url: str = POLICY_TYPE,
        *,
        node: str = "n1",
        method: str = "",
        target: str = "",
    ):
        self.url, self.node = url, node
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(
            target or f"unix:{quote(str(path))}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.call: Any = self._channel.stream_stream(method or METHODS[url], None, None)(
            iter(self._requests.get, None), timeout=30
        )
        self._responses: Iterator[bytes] = iter(self.call)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._requests.put(None)
        self.call.cancel()
        self._channel.close()

    def raw(self, data: bytes) -> None:
        self._requests.put(data)

    def send(self, nonce: str = "", version: str = "", error: str = "") -> None:
        request = discovery.DiscoveryRequest(
            node=discovery.Node(id=self.node),
            type_url=self.url,
            version_info=version,
            response_nonce=nonce,
        )
        if error:
            request.error_detail.message = error
        self.raw(request.SerializeToString())

    def receive(self) -> discovery.DiscoveryResponse:
        return discovery.DiscoveryResponse.FromString(next(self._responses))

    def subscribe(self) -> discovery.DiscoveryResponse:
        self.send()
        return self.receive()

    def ack(self, response: discovery.DiscoveryResponse) -> None:
        self.send(response.nonce, response.version_info)

    def end(self) -> tuple[grpc.StatusCode, str]:
        """Wait for the server to end the stream: its status and words."""
        try:
            for _ in self._responses:
                raise AssertionError("a response where the end was expected")
        except grpc.RpcError:
            pass
        return self.call.code(), self.call.details()
