"""What a library instance talks to: a policy server (NPDS, NPHDS) and a log socket.

Both are as small as the wire format allows, so that the tests of the library
depend on nothing of ours but the generated messages.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from proxylib.proto import accesslog_pb2, discovery_pb2, npds_pb2

NPDS = "cilium.NetworkPolicyDiscoveryService/StreamNetworkPolicies"
NPHDS = "cilium.NetworkPolicyHostsDiscoveryService/StreamNetworkPolicyHosts"
POLICY_TYPE = "type.googleapis.com/cilium.NetworkPolicy"
HOSTS_TYPE = "type.googleapis.com/cilium.NetworkPolicyHosts"
PATIENCE = 15.0
"""Seconds that a test waits for something that should take milliseconds."""


class PolicyRefused(Exception):
    """The library answered a policy with a NACK; the text is its reason."""


def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """The first true value of `condition`; fails the test if there is none in time."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience} s for {what}")
        time.sleep(0.005)
    return value


def network_policy(
    endpoint: str,
    parser: str,
    rules: Sequence[Mapping[str, str]] | None,
    *,
    deny: Sequence[Mapping[str, str]] = (),
    port: int = 80,
    remotes: Sequence[int] = (),
) -> npds_pb2.NetworkPolicy:
    """A policy for the ingress of one endpoint and port; rules None: all is allowed."""
    policy = npds_pb2.NetworkPolicy(endpoint_ips=[endpoint], endpoint_id=1)
    entry = policy.ingress_per_port_policies.add(port=port)
    rule = entry.rules.add(remote_policies=remotes)
    if rules is not None:
        rule.l7_proto = parser
        for pairs in rules:
            rule.l7_rules.l7_allow_rules.add(rule=dict(pairs))
        for pairs in deny:
            rule.l7_rules.l7_deny_rules.add(rule=dict(pairs))
    return policy


class PolicyServer:
    """Serves state-of-the-world policies on a Unix socket and knows what was ACKed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[discovery_pb2.DiscoveryRequest] = []
        """Every request for policies, in order."""
        self._version = 0
        self._resources: list[npds_pb2.NetworkPolicy] = []
        self._streams: list[queue.Queue[discovery_pb2.DiscoveryResponse | None]] = []
        self._lock = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=32))
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        self._server.add_insecure_port(f"unix:{path}")
        self._server.start()

    def close(self) -> None:
        with self._lock:
            for stream in self._streams:
                stream.put(None)
        self._server.stop(0.2).wait()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def publish(self, policies: Sequence[npds_pb2.NetworkPolicy]) -> None:
        """Put `policies` in force; returns when every stream has answered.

        Raises PolicyRefused if one answers with a NACK.
        """
        with self._lock:
            self._version += 1
            self._resources = list(policies)
            nonce = str(self._version)
            waiting = len(self._streams)
            for stream in self._streams:
                stream.put(self._response())
            answered = self._lock.wait_for(
                lambda: sum(r.response_nonce == nonce for r in self.requests) >= waiting, PATIENCE
            )
            assert answered, f"no answer to policy version {nonce}"
            for request in self.requests:
                if request.response_nonce == nonce and request.HasField("error_detail"):
                    raise PolicyRefused(request.error_detail.message)

    def _response(self) -> discovery_pb2.DiscoveryResponse:
        response = discovery_pb2.DiscoveryResponse(
            version_info=str(self._version), nonce=str(self._version), type_url=POLICY_TYPE
        )
        for policy in self._resources:
            response.resources.add(type_url=POLICY_TYPE, value=policy.SerializeToString())
        return response

    def policies(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        """The NPDS method."""
        stream: queue.Queue[discovery_pb2.DiscoveryResponse | None] = queue.Queue()
        threading.Thread(target=self._read, args=(requests, stream), daemon=True).start()
        while (response := stream.get()) is not None:
            yield response

    def _read(self, requests: Iterator[Any], stream: queue.Queue[Any]) -> None:
        try:
            for request in requests:
                with self._lock:
                    self.requests.append(request)
                    if stream not in self._streams:
                        self._streams.append(stream)
                        stream.put(self._response())
                    self._lock.notify_all()
        except grpc.RpcError:
            pass  # the client is gone
        with self._lock:
            if stream in self._streams:
                self._streams.remove(stream)
        stream.put(None)

    def hosts(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        """The NPHDS method: no host has an identity."""
        for request in requests:
            if not request.response_nonce:
                yield discovery_pb2.DiscoveryResponse(
                    version_info="1", nonce="1", type_url=HOSTS_TYPE
                )


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, server: PolicyServer) -> None:
        self._methods = {f"/{NPDS}": server.policies, f"/{NPHDS}": server.hosts}

    def service(self, details: Any) -> Any:
        method = self._methods.get(details.method)
        return method and grpc.stream_stream_rpc_method_handler(
            method,
            request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )


class LogSocket:
    """A consumer of the access log: every entry that arrived, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[accesslog_pb2.LogEntry] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(str(path))
        self._socket.listen(16)
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def wait(self, condition: Callable[[accesslog_pb2.LogEntry], bool], what: str) -> Any:
        """The first entry that fulfils `condition`."""
        return wait_for(lambda: next(filter(condition, list(self.entries)), None), what)

    def close(self) -> None:
        for each in (self._socket, *self._clients):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(PATIENCE)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                self._clients.append(client)
                thread = threading.Thread(target=self._receive, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _receive(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while packet := client.recv(1 << 16):
                self.entries.append(accesslog_pb2.LogEntry.FromString(packet))
