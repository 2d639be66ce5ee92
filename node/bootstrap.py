"""The bootstrap document of one proxy with one upstream: configuration in, message out.

Pure functions over Envoy's own message types (envoy-data-plane), so that a field
that Envoy does not have is an error here and not a surprise there.  One listener
with the parser and tcp_proxy, one cluster with the upstream, the admin interface.
The parts are those of xds.ads, which serves the same to an Envoy that asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from envoy_data_plane.envoy.config.bootstrap.v3 import (
    Admin,
    Bootstrap,
    BootstrapStaticResources,
)
from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import Address as EnvoyAddress
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.config.listener.v3 import FilterChain, Listener

from node.address import Address
from xds.ads.bootstrap import connection_limit, to_json
from xds.ads.clusters import (
    CONNECT_TIMEOUT,
    ClusterConfig,
    address,
    circuit_breakers,
    http_circuit_breakers,
    http_options,
    load_assignment,
    pipe,
)
from xds.ads.filters import (
    CONNECT_FAILURE,
    Codec,
    FilterConfig,
    RecordConfig,
    http_chain,
    tcp_chain,
)
from xds.ads.resources import routes

__all__ = [
    "CLUSTER",
    "CONNECT_FAILURE",
    "LISTENER",
    "BootstrapConfig",
    "Codec",
    "FilterConfig",
    "RecordConfig",
    "build",
    "to_json",
]

LISTENER = "proxy"
CLUSTER = "upstream"


@dataclass(frozen=True, slots=True)
class BootstrapConfig:
    """One proxy. Addresses are numeric; `admin` may be a Unix socket's path."""

    filter: FilterConfig
    listen: Address
    upstream: Address
    admin: Address | Path
    concurrency: int = 1
    max_connections: int = 50_000
    """Accepted connections at a time; more are refused. Two descriptors each."""
    codec: Codec | None = None
    """HTTP that Envoy decodes, for the HTTP filter; None: the parser gets bytes."""


def build(config: BootstrapConfig) -> Bootstrap:
    """The whole document."""
    return Bootstrap(
        node=Node(id=config.filter.node_id, cluster="proxylib"),
        admin=Admin(address=_address(config.admin)),
        static_resources=BootstrapStaticResources(
            listeners=[_listener(config)], clusters=[_cluster(config)]
        ),
        overload_manager=connection_limit(config.max_connections),
    )


def _listener(config: BootstrapConfig) -> Listener:
    prefix = config.filter.parser
    if config.codec is None:
        chain = tcp_chain([config.filter], CLUSTER, stat_prefix=prefix)
    else:
        chain = http_chain(
            [config.filter], routes=routes(CLUSTER), stat_prefix=prefix, codec=config.codec
        )
    return Listener(
        name=LISTENER,
        address=_address(config.listen),
        filter_chains=[FilterChain(filters=chain)],
        # One socket per worker spreads connections evenly; with one worker it
        # would only let a second Envoy share the port unnoticed.
        enable_reuse_port=config.concurrency > 1,
    )


def _cluster(config: BootstrapConfig) -> Cluster:
    http = ClusterConfig(config.max_connections, http=True)
    breakers = circuit_breakers if config.codec is None else http_circuit_breakers
    return Cluster(
        name=CLUSTER,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=CONNECT_TIMEOUT,
        circuit_breakers=breakers(config.max_connections),
        typed_extension_protocol_options={} if config.codec is None else http_options(http),
        load_assignment=load_assignment(CLUSTER, [_address(config.upstream)]),
    )


def _address(where: Address | Path) -> EnvoyAddress:
    if isinstance(where, Path):
        return pipe(where, mode=0o600)
    return address(where.host, where.port)
