"""One xDS stream without I/O: its node, and a subscription for each type that it names.

A stream of NPDS or NPHDS has one type; one of ADS has all of Envoy's, and an order
among them.  `receive` takes a request, `respond` gives the next response that is
due; the world that it is given is replaced as a whole when anything is published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from proxylib.proto import discovery_pb2 as discovery
from xds.ads import types
from xds.compilation import NETWORK_POLICY, NETWORK_POLICY_HOSTS
from xds.subscription import (
    Answer,
    Delta,
    Response,
    StateOfTheWorld,
    StreamError,
    StreamStatus,
    Subscription,
)
from xds.world import World

MAX_NODE_ID = 256
"""Longest node id, characters."""

MAX_IGNORED = 64
"""Types that we do not serve and a stream may ask for all the same."""


@dataclass(frozen=True, slots=True)
class Service:
    """A discovery service: which types its streams have, and in which variant."""

    types: tuple[str, ...]
    incremental: bool = False

    @property
    def only(self) -> str:
        """The one type that a stream need not name; empty if there are several."""
        return self.types[0] if len(self.types) == 1 else ""


NPDS = Service((NETWORK_POLICY,))
NPHDS = Service((NETWORK_POLICY_HOSTS,))
ADS = Service(types.TYPES)
DELTA_ADS = Service(types.TYPES, incremental=True)

_WHOLE = types.WHOLE | {NETWORK_POLICY, NETWORK_POLICY_HOSTS}


class Stream:
    """A subscriber. `clock`: seconds since 1970."""

    def __init__(self, service: Service, *, clock: Callable[[], float] = time.time) -> None:
        self.service = service
        self.node_id = ""
        self.ignored: set[str] = set()
        self._clock = clock
        self._heard = False
        self._subscriptions: dict[str, Subscription] = {}

    def receive(self, data: bytes) -> Answer | None:
        """Take a serialized request; the answer to a response that it gives, if any.

        Raises StreamError if it makes no sense.
        """
        request = self._parse(data)
        if not self._heard:
            if len(request.node.id) > MAX_NODE_ID:
                raise StreamError(f"the node id is longer than {MAX_NODE_ID} characters")
            self.node_id, self._heard = request.node.id, True
        url = request.type_url or self.service.only
        if url not in self.service.types:
            self._ignore(url)
            return None
        if url not in self._subscriptions:
            variant = Delta if self.service.incremental else StateOfTheWorld
            self._subscriptions[url] = variant(url, whole=url in _WHOLE, clock=self._clock)
        return self._subscriptions[url].take(request)

    def respond(self, world: World) -> bytes | None:
        """The serialized response that is due next, if any; it counts as sent."""
        while True:
            before = self._in_force(world)
            response = self._next(world)
            if response is not None:
                for url, name in response.refreshes:
                    if url in self._subscriptions:
                        self._subscriptions[url].refresh(name)
                return response.data
            # What has just turned out to be in force may let something else go.
            if self._in_force(world) == before:
                break
        for url in before:
            self._subscriptions[url].revision = world.revision
        return None

    def _in_force(self, world: World) -> list[str]:
        items = self._subscriptions.items()
        return [url for url, item in items if item.in_force(world.of(url))]

    def _next(self, world: World) -> Response | None:
        for url in self.service.types:
            subscription = self._subscriptions.get(url)
            if subscription is not None and self._may_send(url):
                may_remove = self._may_remove(subscription, world)
                response = subscription.respond(world.of(url), may_remove=may_remove)
                if response is not None:
                    return response
        return None

    def statuses(self) -> Sequence[StreamStatus]:
        """What the subscriber has, for each type that it has asked for."""
        return [item.status(self.node_id) for item in self._subscriptions.values()]

    def _parse(self, data: bytes) -> Any:
        incremental = self.service.incremental
        kind = discovery.DeltaDiscoveryRequest if incremental else discovery.DiscoveryRequest
        request = kind()
        try:
            request.ParseFromString(data)
        except Exception as error:
            raise StreamError(f"not a {kind.__name__}") from error
        return request

    def _ignore(self, url: str) -> None:
        shown = repr(url[:MAX_NODE_ID])
        if self.service.only:
            raise StreamError(f"this stream serves {self.service.only}, not {shown}")
        if not url:
            raise StreamError("a request on an aggregated stream must name its type_url")
        if url in self.ignored:
            return
        if len(self.ignored) >= MAX_IGNORED or len(url) > MAX_NODE_ID:
            raise StreamError(f"too many types that are not served here, the last one {shown}")
        self.ignored.add(url)

    def _may_send(self, url: str) -> bool:
        before = (self._subscriptions.get(other) for other in types.SENT_AFTER.get(url, ()))
        return all(item is None or item.answered for item in before)

    def _may_remove(self, subscription: Subscription, world: World) -> bool:
        for url in types.REMOVED_AFTER.get(subscription.type_url, ()):
            other = self._subscriptions.get(url)
            # A reconnecting Envoy names its types one after the other: what it brought
            # along is not touched before it has named those that may need it.
            if other is None and subscription.claims and url != types.ROUTES:
                return False
            if other is not None and not other.in_force(world.of(url)):
                return False
        return True
