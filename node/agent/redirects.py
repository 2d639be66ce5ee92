"""Which parsers judge whose connections, and at which proxy port an Envoy takes these.

A redirect is a listener of its own for each parser, direction and TLS context that some
endpoint's policy asks for.  Where a parser is asked for in both directions there is one
more, which judges by both policies in one pass: for connections between two endpoints
of this node.  What an endpoint asks for is looked at again only when its policy changes.
A redirect whose secrets are not there has no listener, and so no connection: it gets one
when they come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from node.agent.secrets import TlsSecrets
from proxylib.errors import ConfigError
from xds.ads.clusters import Upstream
from xds.ads.ports import ProxyPorts
from xds.ads.redirects import Redirects
from xds.ads.resources import Direction, NodeConfig, Redirect
from xds.ads.secrets import TlsSecret
from xds.engine import Changes, Engine
from xds.explain import has_judge
from xds.policy import TLSContext
from xds.server import DiscoveryServer
from xds.world import Resource

Built = Mapping[str, Mapping[str, Resource]]

UPSTREAM = "upstream"
"""What the one server is called that all redirects lead to, if there is one."""


class Kind(NamedTuple):
    """What a listener of its own is for."""

    parser: str
    direction: Direction
    terminating: TLSContext | None = None
    originating: TLSContext | None = None


class Wanted(NamedTuple):
    """Connections of an endpoint to `port` (to `end_port`), and who judges them."""

    port: int
    end_port: int
    kind: Kind


class Listeners(NamedTuple):
    """What there is to be: redirects, their secrets by name, and why a kind has none."""

    redirects: Mapping[Kind, Redirect]
    secrets: Mapping[str, TlsSecret]
    problems: Mapping[Kind, str]


class NodeRedirects:
    """The redirects of one node. ports: which proxy ports they may have.

    upstream: the server that they all lead to (host, port); None: where a connection was
    meant to go. one_pass: whether somebody can redirect by two policies at once.
    """

    def __init__(
        self,
        node: NodeConfig,
        ports: ProxyPorts,
        server: DiscoveryServer,
        secrets: TlsSecrets,
        upstream: tuple[str, int] | None = None,
        *,
        one_pass: bool = False,
    ) -> None:
        self._server = server
        self._one_pass = one_pass
        self._secrets = secrets
        self._upstream = upstream
        self._built: Built = {}
        self._redirects = Redirects(node, ports, self._take)
        self._wanted: dict[int, tuple[Wanted, ...]] = {}
        self._users: Counter[Kind] = Counter()
        self._listeners = Listeners({}, {}, {})

    def of(self, endpoint: int) -> tuple[Wanted, ...]:
        """What the policy of an endpoint asks for."""
        return self._wanted.get(endpoint, ())

    def ports(self) -> Mapping[Kind, int]:
        """The proxy port of each kind that has a listener."""
        realized = self._redirects.realized()
        found = self._listeners.redirects.items()
        return {kind: realized[item.name] for kind, item in found if item.name in realized}

    def problems(self) -> Mapping[Kind, str]:
        """Why a kind has no listener."""
        return self._listeners.problems

    def users(self, kinds: Collection[Kind]) -> set[int]:
        """The endpoints that ask for one of `kinds`."""
        return {n for n, items in self._wanted.items() if any(w.kind in kinds for w in items)}

    def update(self, engine: Engine, changes: Changes) -> Built:
        """What Envoy has to have after `changes`. Raises ConfigError if no port is left."""
        for number in changes.removed:
            self._want(number, ())
        for number in changes.endpoints:
            self._want(number, tuple(sorted(set(wanted_of(engine, number)), key=_order)))
        self._put(self._gather())
        return self._built

    def resolve(self) -> None:
        """Take up other secrets, and move redirects whose port somebody else has.

        Not while something changes. Raises ConfigError if no port is left.
        """
        before = self._built
        self._redirects.resolve(self._server.streams())
        listeners = self._gather()
        if listeners != self._listeners:
            self._put(listeners)
        if self._built != before:
            self._server.publish(self._built, revision=self._server.revision)

    def _take(self, built: Built) -> None:
        self._built = built

    def _want(self, endpoint: int, wanted: tuple[Wanted, ...]) -> None:
        """Note what an endpoint asks for, so that nobody has to ask all of them."""
        for item in self._wanted.pop(endpoint, ()):
            self._users[item.kind] -= 1
            if not self._users[item.kind]:
                del self._users[item.kind]
        if wanted:
            self._wanted[endpoint] = wanted
            self._users.update(item.kind for item in wanted)

    def _put(self, listeners: Listeners) -> None:
        upstreams = [Upstream(UPSTREAM, (self._upstream,))] if self._upstream else []
        self._redirects.put(listeners.redirects.values(), upstreams, listeners.secrets.values())
        self._listeners = listeners

    def _gather(self) -> Listeners:
        """A listener for every kind that can have one."""
        redirects: dict[Kind, Redirect] = {}
        secrets: dict[str, TlsSecret] = {}
        problems: dict[Kind, str] = {}
        for kind in self._kinds():
            try:
                redirects[kind] = self._redirect(kind, secrets)
            except ConfigError as error:
                problems[kind] = str(error)
        return Listeners(redirects, secrets, problems)

    def _kinds(self) -> Iterator[Kind]:
        yield from self._users
        if self._one_pass:
            for kind in self._users:
                if kind.direction is Direction.EGRESS and ingress_of(kind) in self._users:
                    yield both_of(kind)

    def _redirect(self, kind: Kind, secrets: dict[str, TlsSecret]) -> Redirect:
        """The redirect of a kind; its secrets go to `secrets`. Raises ConfigError."""
        http = kind.parser == "http"
        if kind.originating and not kind.terminating and not http:
            raise ConfigError(
                "which name the server must have is known only from the client's TLS; "
                "originatingTLS needs terminatingTLS beside it, or HTTP"
            )
        shown = self._secrets.identity(kind.terminating) if kind.terminating else None
        trusted = self._secrets.trust(kind.originating) if kind.originating else None
        secrets |= {secret.name: secret for secret in (shown, trusted) if secret}
        return Redirect(
            kind.parser,
            kind.direction,
            0,
            http=http,
            upstream=UPSTREAM if self._upstream else "",
            destination=_host_port(*self._upstream) if self._upstream else "",
            terminating=shown.name if shown else "",
            originating=trusted.name if trusted else "",
        )


def ingress_of(kind: Kind) -> Kind:
    """The same at the server's side."""
    return kind._replace(direction=Direction.INGRESS)


def both_of(kind: Kind) -> Kind:
    """The same at both sides, in one pass."""
    return kind._replace(direction=Direction.BOTH)


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def wanted_of(engine: Engine, number: int) -> Iterator[Wanted]:
    """What the policy of an endpoint asks for; what is in audit mode is asked for too."""
    policy = engine.policy(number)
    for tables in filter(None, (policy.tables, policy.would_be)):
        for direction, table in (
            (Direction.INGRESS, tables.ingress),
            (Direction.EGRESS, tables.egress),
        ):
            for key, lines in table.items():
                for line in lines:
                    # What has no parser has no listener: a DNS proxy's rules, say.
                    if has_judge(line.proto) and key.protocol in ("", "TCP") and not line.deny:
                        tls = (line.terminating_tls, line.originating_tls)
                        kind = Kind(line.proto, direction, *tls)
                        yield Wanted(key.port, key.end_port or key.port, kind)


def _order(wanted: Wanted) -> tuple[str, int, int, str, str]:
    kind = wanted.kind
    tls = f"{kind.terminating} {kind.originating}"
    return (kind.direction.value, wanted.port, wanted.end_port, kind.parser, tls)
