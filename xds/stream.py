"""One xDS stream, state of the world, without I/O: what came in, what is to go out.

Every response has a nonce; a request that repeats it answers that response: ACK,
or NACK if it has an error_detail.  Anything with another nonce answers what has
been superseded and says nothing.  A version is sent once: a NACK is not retried,
and nothing is sent again until the resources change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from proxylib.errors import ProxylibError
from proxylib.proto import discovery_pb2 as discovery

MAX_REASON = 4096
"""Longest part of a NACK's reason that is kept, characters."""

MAX_NODE_ID = 256
"""Longest node id, characters."""


class StreamError(ProxylibError):
    """The peer does not speak the protocol; its stream ends with this text."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The resources of one type at one version (0 is "none published yet")."""

    type_url: str
    version: int = 0
    resources: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """What one subscriber has. Versions are 0 where there is none.

    `acked_version` is what is in force there: also after a NACK, whose `reason`
    stays until the subscriber accepts a version.
    """

    node_id: str
    type_url: str
    sent_version: int = 0
    acked_version: int = 0
    nacked_version: int = 0
    reason: str = ""
    connected: bool = True

    def gone(self) -> StreamStatus:
        """The same, of a subscriber that has left."""
        return replace(self, connected=False)


class Stream:
    """A subscriber of one type. Call `receive` for requests, `respond` when woken."""

    def __init__(self, type_url: str) -> None:
        self._type_url = type_url
        self._subscribed = False
        self._node_id = ""
        self._nonce = 0
        self._sent = 0
        self._acked = 0
        self._nacked = 0
        self._reason = ""

    def receive(self, data: bytes) -> None:
        """Take a serialized DiscoveryRequest. Raises StreamError if it makes no sense."""
        request = discovery.DiscoveryRequest()
        try:
            request.ParseFromString(data)
        except Exception as error:
            raise StreamError("not a DiscoveryRequest") from error
        if request.type_url not in ("", self._type_url):
            raise StreamError(
                f"this stream serves {self._type_url}, not {request.type_url[:MAX_NODE_ID]!r}"
            )
        if any(name != "*" for name in request.resource_names):
            raise StreamError("only all resources can be subscribed to, not single names")
        if not self._subscribed:
            # Whatever nonce it has is from another stream.
            self._subscribe(request.node.id)
        elif self._sent and request.response_nonce == str(self._nonce):
            self._answered(request)

    def _subscribe(self, node_id: str) -> None:
        if len(node_id) > MAX_NODE_ID:
            raise StreamError(f"the node id is longer than {MAX_NODE_ID} characters")
        self._node_id = node_id
        self._subscribed = True

    def _answered(self, request: discovery.DiscoveryRequest) -> None:
        if request.HasField("error_detail"):
            self._nacked = self._sent
            self._reason = request.error_detail.message[:MAX_REASON] or "no reason given"
        else:
            self._acked = self._sent
            self._nacked, self._reason = 0, ""

    def respond(self, snapshot: Snapshot) -> bytes | None:
        """The serialized DiscoveryResponse that is due, if any; it counts as sent."""
        if not self._subscribed or snapshot.version in (0, self._sent):
            return None
        self._sent = snapshot.version
        self._nonce += 1
        response = discovery.DiscoveryResponse(
            version_info=str(snapshot.version), type_url=self._type_url, nonce=str(self._nonce)
        )
        for resource in snapshot.resources:
            response.resources.add(type_url=self._type_url, value=resource)
        return response.SerializeToString()

    def status(self) -> StreamStatus | None:
        """What the subscriber has; None before its first request."""
        if not self._subscribed:
            return None
        return StreamStatus(
            self._node_id, self._type_url, self._sent, self._acked, self._nacked, self._reason
        )
