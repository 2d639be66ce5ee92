"""Which parsers judge whose connections, and at which proxy port an Envoy takes these.

A redirect is a listener of its own for each parser and direction that some endpoint's
policy asks for.  What an endpoint asks for is looked at again only when its policy changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from xds.ads.ports import ProxyPorts
from xds.ads.redirects import Redirects
from xds.ads.resources import Direction, NodeConfig, Redirect
from xds.engine import Changes, Engine
from xds.explain import has_judge
from xds.server import DiscoveryServer
from xds.world import Resource

Built = Mapping[str, Mapping[str, Resource]]


class Wanted(NamedTuple):
    """Connections of an endpoint to `port` (to `end_port`), and who judges them."""

    direction: Direction
    port: int
    end_port: int
    parser: str


class NodeRedirects:
    """The redirects of one node. ports: which proxy ports they may have."""

    def __init__(self, node: NodeConfig, ports: ProxyPorts, server: DiscoveryServer) -> None:
        self._server = server
        self._built: Built = {}
        self._redirects = Redirects(node, ports, self._take)
        self._wanted: dict[int, tuple[Wanted, ...]] = {}

    def of(self, endpoint: int) -> tuple[Wanted, ...]:
        """What the policy of an endpoint asks for."""
        return self._wanted.get(endpoint, ())

    def ports(self) -> Mapping[tuple[str, Direction], int]:
        """The proxy port of each parser and direction."""
        realized = self._redirects.realized()
        return {
            (parser, direction): realized[name]
            for parser, direction in self._pairs()
            if (name := _redirect(parser, direction).name) in realized
        }

    def update(self, engine: Engine, changes: Changes) -> Built:
        """What Envoy has to have after `changes`. Raises ConfigError if no port is left."""
        for number in changes.removed:
            self._wanted.pop(number, None)
        for number in changes.endpoints:
            self._wanted[number] = tuple(sorted(set(_wanted(engine, number)), key=_order))
        self._redirects.put(_redirect(*pair) for pair in self._pairs())
        return self._built

    def resolve(self) -> None:
        """Move redirects whose port somebody else has, as their Envoys say.

        Not while something changes. Raises ConfigError if no port is left.
        """
        if self._redirects.resolve(self._server.streams()):
            self._server.publish(self._built, revision=self._server.revision)

    def _take(self, built: Built) -> None:
        self._built = built

    def _pairs(self) -> Iterable[tuple[str, Direction]]:
        return {(w.parser, w.direction) for wanted in self._wanted.values() for w in wanted}


def _redirect(parser: str, direction: Direction) -> Redirect:
    return Redirect(parser, direction, 0, http=parser == "http")


def _wanted(engine: Engine, number: int) -> Iterator[Wanted]:
    tables = engine.policy(number).tables
    for direction, table in (
        (Direction.INGRESS, tables.ingress),
        (Direction.EGRESS, tables.egress),
    ):
        for key, lines in table.items():
            for line in lines:
                # What has no parser has no listener: a DNS proxy's rules, say.
                if has_judge(line.proto) and key.protocol in ("", "TCP") and not line.deny:
                    yield Wanted(direction, key.port, key.end_port or key.port, line.proto)


def _order(wanted: Wanted) -> tuple[str, int, int, str]:
    return (wanted.direction.value, wanted.port, wanted.end_port, wanted.parser)
