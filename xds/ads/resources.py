"""Redirects, upstreams and secrets, and the resources that Envoy makes of them.

One listener for each redirect; clusters for where they lead; endpoints, routes and
secrets for what these name.  Nothing here knows of policies: those reach the parsers
over NPDS, so that a change of policy touches no listener and drains no connection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path

from betterproto2 import Message
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import SocketOption, TrafficDirection
from envoy_data_plane.envoy.config.core.v3 import SocketOptionSocketState as State
from envoy_data_plane.envoy.config.listener.v3 import (
    AdditionalAddress,
    Filter,
    FilterChain,
    Listener,
    ListenerFilter,
)
from envoy_data_plane.envoy.config.route.v3 import (
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.listener.original_dst.v3 import OriginalDst
from envoy_data_plane.envoy.extensions.filters.listener.original_src.v3 import OriginalSrc
from envoy_data_plane.google.protobuf import Any

from proxylib.errors import ConfigError
from xds.ads.clusters import (
    ClusterConfig,
    Upstream,
    address,
    endpoints,
    original_destination,
    upstream_cluster,
)
from xds.ads.filters import FilterConfig, http_chain, tcp_chain
from xds.ads.secrets import TlsSecret, originating, secret_message, terminating
from xds.ads.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES, SECRET
from xds.world import Resource, resource

ORIGINAL_DESTINATION = "original-dst"

UPSTREAM_MARK = 0xA00
"""SO_MARK of connections to servers: the programs at the servers' links let them pass."""

DOWNSTREAM_MARK = 0xB00
"""SO_MARK of connections that a node's listeners have accepted: the programs at the
clients' links let Envoy's answers pass by it."""

_SOL_SOCKET, _SO_MARK = 1, 36


class Direction(Enum):
    """Whose policy a redirected connection is judged by: the client's, the server's, or both."""

    EGRESS = "egress"
    INGRESS = "ingress"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Redirect:
    """Connections that one listener takes.

    http: the parser is an HTTP filter behind a connection manager (HTTP/1, HTTP/2,
    gRPC). upstream: the name of an Upstream; empty leads to the original destination.
    terminating, originating: names of secrets, for TLS at the client's and at the
    server's side. destination: what the policy calls the server, if it is not the
    address that the client connected to.
    """

    parser: str
    direction: Direction
    port: int
    http: bool = False
    upstream: str = ""
    terminating: str = ""
    originating: str = ""
    destination: str = ""
    parser_modules: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Of its listener: everything that tells it from another, but the port."""
        upstream = f"to={self.upstream}" if self.upstream else ""
        tls = f"tls={self.terminating}" if self.terminating else ""
        parts = (self.parser, self.direction.value, upstream, tls, self._upstream_tls)
        return "/".join(filter(None, parts))

    @property
    def cluster(self) -> str:
        """Of the cluster that it leads to."""
        ingress = self.direction is Direction.INGRESS
        where = f"{ORIGINAL_DESTINATION}/ingress" if ingress else ORIGINAL_DESTINATION
        where = f"to={self.upstream}" if self.upstream else where
        return "/".join(filter(None, (where, "http" if self.http else "", self._upstream_tls)))

    @property
    def _upstream_tls(self) -> str:
        return f"upstream-tls={self.originating}" if self.originating else ""


@dataclass(frozen=True, slots=True)
class Transparency:
    """How a listener takes connections that were meant for somebody else; needs CAP_NET_ADMIN.

    upstream_mark: SO_MARK of the connection to the server, which has the client's
    address. listener_mark: SO_MARK of the listening socket, which accepted ones
    inherit; 0 sets none.
    """

    upstream_mark: int = UPSTREAM_MARK
    listener_mark: int = 0


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What all redirects of a node share.

    xds_path, access_log_path, node_id: for the library. hosts: numeric addresses to
    listen on, the first one must be there. transparency: None listens as a plain
    server does, and redirects then need upstreams. concurrency: Envoy's workers.
    secrets_path: the folder of header values that HTTP rules name.
    """

    xds_path: Path
    access_log_path: Path
    node_id: str
    hosts: tuple[str, ...] = ("127.0.0.1", "::1")
    transparency: Transparency | None = Transparency()
    concurrency: int = 1
    max_connections: int = 50_000
    secrets_path: Path | None = None


def build(
    node: NodeConfig,
    redirects: Iterable[Redirect],
    upstreams: Iterable[Upstream] = (),
    secrets: Iterable[TlsSecret] = (),
) -> dict[str, dict[str, Resource]]:
    """All resources, by type URL and name; what `DiscoveryServer.publish` takes.

    The same arguments give the same bytes, in whatever order they come. Raises
    ConfigError for redirects that share a name or a port, or name what is not there.
    """
    items = sorted(redirects, key=lambda item: item.name)
    servers = {upstream.name: upstream for upstream in upstreams}
    known = {secret.name: secret for secret in secrets}
    _check(node, items, servers, known.keys())
    lasting = _lasting(node)
    clusters = {item.cluster: cluster(node, item, servers) for item in (*lasting, *items)}
    used = {item.upstream for item in items if item.upstream}
    wanted = {name for item in items for name in (item.terminating, item.originating) if name}
    return {
        CLUSTER: _named(CLUSTER, clusters.values()),
        ENDPOINTS: _named(ENDPOINTS, (endpoints(servers[name]) for name in sorted(used))),
        SECRET: _named(SECRET, (secret_message(known[name]) for name in sorted(wanted))),
        LISTENER: _named(LISTENER, (listener(node, item) for item in items)),
        ROUTES: _named(
            ROUTES,
            map(routes, sorted({item.cluster for item in (*lasting, *items) if item.http})),
        ),
    }


def _lasting(node: NodeConfig) -> Iterable[Redirect]:
    """Stand for what has clusters in any case.

    A connection goes on when the last policy that wanted its listener is gone, and still
    has to lead somewhere.
    """
    if node.transparency is None:
        return ()
    return tuple(
        Redirect("", direction, 0, http=http)
        for direction in (Direction.EGRESS, Direction.INGRESS)
        for http in (False, True)
    )


_PASSES = {Direction.EGRESS: (False,), Direction.INGRESS: (True,), Direction.BOTH: (False, True)}
"""Which policies judge, in their order: False is the client's egress, True the server's ingress."""


def listener(node: NodeConfig, redirect: Redirect) -> Listener:
    """The listener of a redirect."""
    chain = FilterChain(filters=_filters(node, redirect))
    if redirect.terminating:
        chain.transport_socket = terminating(redirect.terminating, http=redirect.http)
    first, *others = (address(host, redirect.port) for host in node.hosts)
    ingress = redirect.direction is Direction.INGRESS
    made = Listener(
        name=redirect.name,
        address=first,
        additional_addresses=[AdditionalAddress(address=other) for other in others],
        filter_chains=[chain],
        traffic_direction=TrafficDirection.INBOUND if ingress else TrafficDirection.OUTBOUND,
        # One socket per worker spreads connections evenly; with one worker it would
        # only let a second Envoy share the port unnoticed.
        enable_reuse_port=node.concurrency > 1,
    )
    if node.transparency is not None:
        _make_transparent(made, node.transparency)
    return made


def cluster(node: NodeConfig, redirect: Redirect, upstreams: Mapping[str, Upstream]) -> Cluster:
    """The cluster that a redirect leads to."""
    tls = originating(redirect.originating, http=redirect.http) if redirect.originating else None
    config = ClusterConfig(node.max_connections, redirect.http, tls)
    if redirect.upstream:
        return upstream_cluster(redirect.cluster, upstreams[redirect.upstream], config)
    ingress = redirect.direction is Direction.INGRESS
    return original_destination(redirect.cluster, config, ingress=ingress)


def routes(cluster_name: str) -> RouteConfiguration:
    """Routes that lead everything to one cluster, for as long as it takes."""
    action = RouteAction(cluster=cluster_name, timeout=timedelta(0))
    # Not "/": the path of "OPTIONS *" has none.
    everything = Route(match=RouteMatch(prefix=""), route=action)
    host = VirtualHost(name="all", domains=["*"], routes=[everything])
    return RouteConfiguration(name=cluster_name, virtual_hosts=[host])


def _filters(node: NodeConfig, redirect: Redirect) -> list[Filter]:
    parsers = [
        FilterConfig(
            redirect.parser,
            node.xds_path,
            node.access_log_path,
            node.node_id,
            ingress=ingress,
            destination=redirect.destination,
            parser_modules=redirect.parser_modules,
            secrets_path=node.secrets_path,
        )
        for ingress in _PASSES[redirect.direction]
    ]
    if redirect.http:
        return http_chain(parsers, routes=redirect.cluster, stat_prefix=redirect.name)
    return tcp_chain(
        parsers,
        redirect.cluster,
        stat_prefix=redirect.name,
        forward_sni=bool(redirect.originating),
    )


def _make_transparent(made: Listener, transparency: Transparency) -> None:
    mark = transparency.upstream_mark
    made.transparent = True
    made.listener_filters = [
        ListenerFilter(
            name="envoy.filters.listener.original_dst", typed_config=Any.pack(OriginalDst())
        ),
        ListenerFilter(
            name="envoy.filters.listener.original_src",
            typed_config=Any.pack(OriginalSrc(mark=mark)),
        ),
    ]
    if transparency.listener_mark:
        option = SocketOption(
            description="SO_MARK",
            level=_SOL_SOCKET,
            name=_SO_MARK,
            int_value=transparency.listener_mark,
            state=State.STATE_LISTENING,
        )
        made.socket_options = [option]


def _check(
    node: NodeConfig,
    redirects: Iterable[Redirect],
    upstreams: Mapping[str, Upstream],
    secrets: Collection[str],
) -> None:
    taken: dict[object, Redirect] = {}
    for item in redirects:
        for what in (item.name, item.port):
            if taken.setdefault(what, item) is not item:
                raise ConfigError(f"two redirects are {item.name!r}, or at port {item.port}")
        for name in (item.parser, item.upstream, item.terminating, item.originating):
            if "/" in name:
                raise ConfigError(f"redirect {item.name}: no name may have a slash: {name!r}")
        if item.upstream and item.upstream not in upstreams:
            raise ConfigError(f"redirect {item.name}: there is no upstream {item.upstream!r}")
        if not item.upstream and node.transparency is None:
            raise ConfigError(
                f"redirect {item.name}: without transparency there is no original destination; "
                "name an upstream"
            )
        if item.originating and not item.terminating and not item.http:
            raise ConfigError(
                f"redirect {item.name}: which name the server must have is known only from "
                "the client's TLS; terminate that too"
            )
        for name in filter(None, (item.terminating, item.originating)):
            if name not in secrets:
                raise ConfigError(f"redirect {item.name}: there is no secret {name!r}")


def _named(url: str, messages: Iterable[Message]) -> dict[str, Resource]:
    found = {}
    for message in messages:
        name: str = getattr(message, _NAME[url])
        found[name] = resource(name, bytes(message), _refreshes(message))
    return found


_NAME = {
    CLUSTER: "name",
    ENDPOINTS: "cluster_name",
    SECRET: "name",
    LISTENER: "name",
    ROUTES: "name",
}
"""The field that a resource's name is in."""


def _refreshes(message: Message) -> tuple[tuple[str, str], ...]:
    """An updated cluster warms only with endpoints that come after it."""
    if isinstance(message, Cluster) and message.eds_cluster_config is not None:
        return ((ENDPOINTS, message.eds_cluster_config.service_name),)
    return ()
