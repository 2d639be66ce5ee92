"""A client of ADS that does what the xDS protocol says, and complains about what breaks it.

It talks to a `Stream` directly.  `accepts` tells what it makes of a resource; what
it has put in force is in `cache`, and `referenced` looks for what Envoy would miss.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from proxylib.proto import discovery_pb2 as discovery
from xds.ads.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES, SECRET, TYPES, WHOLE
from xds.stream import ADS, DELTA_ADS, Stream
from xds.world import Resource, Snapshot, World, resource

Cache = dict[str, dict[str, bytes]]


def make(contents: Mapping[str, Mapping[str, bytes]], revision: int, before: World) -> World:
    """A world of these contents, numbered after `before`."""
    snapshots = {}
    for url in TYPES:
        items = {name: resource(name, body) for name, body in contents.get(url, {}).items()}
        old = before.of(url)
        same = old.version and items == old.resources
        snapshots[url] = old if same else Snapshot(url, old.version + 1, items)
    return World(revision, snapshots)


def accept_all(url: str, name: str, body: bytes) -> bool:
    return True


class Client:
    """One stream's other end. `cache`: what it knows from before, if it reconnects."""

    def __init__(
        self,
        incremental: bool,
        cache: Cache | None = None,
        accepts: Callable[[str, str, bytes], bool] = accept_all,
    ) -> None:
        self.incremental = incremental
        self.stream = Stream(DELTA_ADS if incremental else ADS, clock=lambda: 0.0)
        self.cache: Cache = {url: dict((cache or {}).get(url, {})) for url in TYPES}
        self.accepts = accepts
        self.world = World()
        self.named: dict[str, set[str]] = {}
        self.nonces: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.answers: deque[tuple[str, str, str]] = deque()
        self.history: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        self.refused: dict[str, set[str]] = {url: set() for url in TYPES}

    # -- what it says ----------------------------------------------------------------

    def subscribe(self, url: str, names: set[str] | None = None) -> None:
        """Ask for a type: all of it, or exactly `names` from now on."""
        before = self.named.get(url)
        names = names or set()
        if names == before:
            return
        self.named[url] = names
        if self.incremental:
            request = discovery.DeltaDiscoveryRequest(type_url=url)
            request.resource_names_subscribe.extend(sorted(names - (before or set())))
            request.resource_names_unsubscribe.extend(sorted((before or set()) - names))
            if before is None:
                for name, body in self.cache[url].items():
                    request.initial_resource_versions[name] = resource(name, body).version
        else:
            request = discovery.DiscoveryRequest(
                type_url=url,
                resource_names=sorted(names),
                response_nonce=self.nonces.get(url, ""),
                version_info=self.versions.get(url, ""),
            )
        if url not in WHOLE:
            self.cache[url] = {n: b for n, b in self.cache[url].items() if n in names}
        request.node.id = "model"
        self.stream.receive(request.SerializeToString())

    def answer(self) -> bool:
        """Send the oldest ACK or NACK that it owes; False if it owes none."""
        if not self.answers:
            return False
        url, nonce, error = self.answers.popleft()
        if self.incremental:
            request = discovery.DeltaDiscoveryRequest(type_url=url, response_nonce=nonce)
        else:
            request = discovery.DiscoveryRequest(
                type_url=url,
                response_nonce=nonce,
                resource_names=sorted(self.named[url]),
                version_info=self.versions.get(url, ""),
            )
        if error:
            request.error_detail.message = error
        self.stream.receive(request.SerializeToString())
        return True

    # -- what it hears ----------------------------------------------------------------

    def hear(self) -> bool:
        """Take the next response, put it in force or refuse it; False if there is none."""
        data = self.stream.respond(self.world)
        if data is None:
            return False
        if self.incremental:
            self._hear_delta(discovery.DeltaDiscoveryResponse.FromString(data))
        else:
            self._hear_all(discovery.DiscoveryResponse.FromString(data))
        return True

    def settle(self) -> None:
        """Listen and answer until there is nothing left to say."""
        for _ in range(1000):
            if not (self.hear() or self.answer()):
                return
        raise AssertionError("it never ends")

    def _hear_delta(self, response: discovery.DeltaDiscoveryResponse) -> None:
        url = response.type_url
        items = {item.name: item.resource.value for item in response.resources}
        assert len(items) == len(response.resources), "a name twice in one response"
        assert not items.keys() & set(response.removed_resources)
        self._take(url, response.nonce, items, tuple(response.removed_resources))

    def _hear_all(self, response: discovery.DiscoveryResponse) -> None:
        url = response.type_url
        by_body = {item.body: name for name, item in self._known(url).items()}
        items = {by_body[item.value]: item.value for item in response.resources}
        assert len(items) == len(response.resources), "a name twice in one response"
        removed = tuple(self.cache[url].keys() - items.keys()) if url in WHOLE else ()
        self._take(url, response.nonce, items, removed)
        self.nonces[url] = response.nonce
        if not self.refused[url]:
            self.versions[url] = response.version_info

    def _known(self, url: str) -> Mapping[str, Resource]:
        old = {name: resource(name, body) for name, body in self.cache[url].items()}
        return old | dict(self.world.of(url).resources)

    def _take(
        self, url: str, nonce: str, items: dict[str, bytes], removed: tuple[str, ...]
    ) -> None:
        self.history.append((url, tuple(sorted(items)), removed))
        bad = {name for name, body in items.items() if not self.accepts(url, name, body)}
        for name in removed:
            self.cache[url].pop(name, None)
        self.cache[url].update({n: b for n, b in items.items() if n not in bad})
        self.refused[url] = bad
        reason = f"Error adding/updating: {', '.join(sorted(bad))}: no good" if bad else ""
        self.answers.append((url, nonce, reason))
        if url == LISTENER and ROUTES in self.named:
            # Routes are wanted for as long as a listener has them.
            self.subscribe(ROUTES, set(self.cache[LISTENER]))
        # Envoy's rule: what a listener or a route names must be there before it.
        for where in (LISTENER, ROUTES):
            for body in self.cache[where].values():
                if body.startswith(b"->"):
                    target = body[2:].split(b"#")[0].decode()
                    assert target in self.cache[CLUSTER], f"{where} without cluster {target}"


__all__ = ["CLUSTER", "ENDPOINTS", "LISTENER", "ROUTES", "SECRET", "Client", "make"]
