"""The redirects of a node: who wants which, at which port, and published.

What changes here is rare: a parser that a policy names for the first time in a
direction, or for the last time.  Everything else about a policy goes over NPDS, and
`put` with the same redirects publishes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from xds.ads.clusters import Upstream
from xds.ads.ports import ProxyPorts
from xds.ads.resources import NodeConfig, Redirect, build
from xds.ads.secrets import TlsSecret
from xds.ads.types import LISTENER
from xds.subscription import StreamStatus
from xds.world import Resource

_IN_USE = "Address already in use"
"""What Envoy says of a listener whose port somebody else has."""


class Redirects:
    """Gives redirects their ports, and publishes what Envoy needs for them.

    publish: takes resources, as `DiscoveryServer.publish` does. Safe for threads.
    """

    def __init__(
        self,
        node: NodeConfig,
        ports: ProxyPorts,
        publish: Callable[[Mapping[str, Mapping[str, Resource]]], object],
    ) -> None:
        self._node = node
        self._ports = ports
        self._publish = publish
        self._lock = threading.Lock()
        self._redirects: dict[str, Redirect] = {}
        self._upstreams: Sequence[Upstream] = ()
        self._secrets: Sequence[TlsSecret] = ()

    def put(
        self,
        redirects: Iterable[Redirect],
        upstreams: Iterable[Upstream] = (),
        secrets: Iterable[TlsSecret] = (),
    ) -> Mapping[str, int]:
        """Have exactly these redirects; their ports by name.

        Those with port 0 get one of the proxy ports, the same again each time.  Raises
        ConfigError for what contradicts itself, and if no port is left; what was
        there then stays.
        """
        with self._lock:
            wanted = list(redirects)
            upstreams, secrets = tuple(upstreams), tuple(secrets)
            before = self._ports.assigned()
            try:
                placed = [
                    item if item.port else replace(item, port=self._ports.allocate(item.name))
                    for item in wanted
                ]
                built = build(self._node, placed, upstreams, secrets)
            except Exception:
                for name in self._ports.assigned().keys() - before.keys():
                    self._ports.release(name)
                raise
            self._redirects = {item.name: item for item in placed}
            self._upstreams, self._secrets = upstreams, secrets
            self._publish(built)
            for name in self._ports.assigned().keys() - self._redirects.keys():
                self._ports.release(name)
            return self._realized()

    def realized(self) -> Mapping[str, int]:
        """The proxy port of each redirect, by name."""
        with self._lock:
            return self._realized()

    def resolve(self, statuses: Iterable[StreamStatus]) -> Mapping[str, int]:
        """Other ports for redirects whose port somebody else has, as their Envoys say.

        statuses: `DiscoveryServer.streams()`. Returns those that have moved. Raises as
        `put` does.
        """
        with self._lock:
            ours = self._ports.assigned()
            moved = {
                name: self._ports.move(name)
                for status in statuses
                if status.type_url == LISTENER and status.connected and _IN_USE in status.reason
                for name in status.refused
                if name in self._redirects and ours.get(name) == self._redirects[name].port
                # Of several listeners, only that one is to blame whose port is named.
                if f":{ours[name]}'" in status.reason
            }
            if moved:
                for name, port in moved.items():
                    self._redirects[name] = replace(self._redirects[name], port=port)
                items = self._redirects.values()
                self._publish(build(self._node, items, self._upstreams, self._secrets))
            return moved

    def _realized(self) -> Mapping[str, int]:
        return {name: item.port for name, item in sorted(self._redirects.items())}
