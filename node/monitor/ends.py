"""Who the two ends of a connection are: endpoint numbers and labels, as they are now.

Nothing here waits: whoever asks reads the access log or a ring buffer, and must not
stand behind a change of policies that takes a second.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypedDict

from node.agent.documents import show_label
from xds.engine import Engine
from xds.labels import LabelSet

UNKNOWN = ("reserved:unknown",)
"""The labels of an identity that nobody here knows (any more)."""


class End(TypedDict):
    """One end of a connection. endpoint: 0: none of this node. address: with its port."""

    address: str
    endpoint: int
    identity: int
    labels: list[str]


class Ends:
    """Says who has an address, as an engine knows it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def endpoint(self, address: str) -> int:
        """The endpoint that has an address, given with a port (``[fd00::1]:80``) or without."""
        return self._engine.endpoint_at(host_of(address))

    def identity(self, endpoint: int) -> int:
        """The identity of an endpoint; 0 for endpoint 0, and for one that has gone."""
        return self._engine.identity_of(endpoint)

    def labels(self, identity: int) -> tuple[str, ...]:
        """The labels of an identity as text, sorted."""
        labels = self._engine.labels_of(identity)
        return UNKNOWN if labels is None else _texts(labels)

    def end(self, address: str, endpoint: int, identity: int) -> End:
        return {
            "address": address,
            "endpoint": endpoint,
            "identity": identity,
            "labels": list(self.labels(identity)),
        }


def host_of(address: str) -> str:
    """The address alone of ``10.0.0.1:80``, ``[fd00::1]:80``, ``10.0.0.1`` or ``fd00::1``."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, colon, _ = address.partition(":")
    # More than one colon and no bracket: an IPv6 address without a port.
    return address if colon and address.count(":") > 1 else host


@lru_cache(maxsize=4096)
def _texts(labels: LabelSet) -> tuple[str, ...]:
    return tuple(sorted(map(show_label, labels)))
