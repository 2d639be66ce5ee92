"""Where connections go on to: their original destination, or servers that are named.

Pure functions: configuration in, Envoy's messages out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterDiscoveryType,
    ClusterEdsClusterConfig,
    ClusterLbPolicy,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    BindConfig,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    Pipe,
    SocketAddress,
    SocketOption,
    TransportSocket,
    UpstreamHttpProtocolOptions,
)
from envoy_data_plane.envoy.config.core.v3 import SocketOptionSocketState as State
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsUseDownstreamHttpConfig,
)
from envoy_data_plane.google.protobuf import Any

from xds.ads.filters import ads_source

CONNECT_TIMEOUT = timedelta(seconds=5)

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
"""Under this name a cluster has its HTTP version."""

_IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT = 0, 24


@dataclass(frozen=True, slots=True)
class Upstream:
    """Servers that share the load of what is sent to `name`: numeric hosts and ports."""

    name: str
    servers: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """What clusters share. max_connections: per cluster; Envoy's own default of 1,024
    would refuse what listeners have accepted beyond it."""

    max_connections: int
    http: bool = False
    tls: TransportSocket | None = None


def original_destination(name: str, config: ClusterConfig, *, ingress: bool) -> Cluster:
    """To where the client wanted to go, one upstream connection for each of its own.

    ingress: the server is one that Envoy may share a network namespace with; when its
    connections get their ports is for Envoy's bootstrap to say (`ports_chosen`).
    """
    cluster = _cluster(name, config)
    if not ingress:
        cluster.upstream_bind_config = ports_chosen(at_connect=True)
    cluster.type = ClusterDiscoveryType.ORIGINAL_DST
    cluster.lb_policy = ClusterLbPolicy.CLUSTER_PROVIDED
    # The server sees the client's address: two clients never share a connection.
    cluster.connection_pool_per_downstream_connection = config.http
    return cluster


def ports_chosen(*, at_connect: bool) -> BindConfig:
    """When connections from a client's address get their port: at connect, or at bind.

    ip(7), IP_BIND_ADDRESS_NO_PORT. Linux gives even ports at connect, as long as there
    are some, and odd ones at bind (net/ipv4: inet_hashtables.c, inet_connection_sock.c).
    """
    option = SocketOption(
        description="IP_BIND_ADDRESS_NO_PORT",
        level=_IPPROTO_IP,
        name=_IP_BIND_ADDRESS_NO_PORT,
        int_value=int(at_connect),
        state=State.STATE_PREBIND,
    )
    return BindConfig(socket_options=[option])


def upstream_cluster(name: str, upstream: Upstream, config: ClusterConfig) -> Cluster:
    """To `upstream`'s servers, which come by EDS."""
    cluster = _cluster(name, config)
    cluster.type = ClusterDiscoveryType.EDS
    cluster.eds_cluster_config = ClusterEdsClusterConfig(
        eds_config=ads_source(), service_name=upstream.name
    )
    return cluster


def endpoints(upstream: Upstream) -> ClusterLoadAssignment:
    """Its servers."""
    return load_assignment(upstream.name, [address(*server) for server in upstream.servers])


def load_assignment(name: str, addresses: Sequence[Address]) -> ClusterLoadAssignment:
    """The servers of cluster `name`, all alike."""
    items = [LbEndpoint(endpoint=Endpoint(address=item)) for item in addresses]
    return ClusterLoadAssignment(
        cluster_name=name, endpoints=[LocalityLbEndpoints(lb_endpoints=items)]
    )


def circuit_breakers(most: int) -> CircuitBreakers:
    """As many connections, and requests that wait for one, as there may be clients."""
    return CircuitBreakers(
        thresholds=[CircuitBreakersThresholds(max_connections=most, max_pending_requests=most)]
    )


def http_circuit_breakers(most: int) -> CircuitBreakers:
    """The same for requests that share connections."""
    breakers = circuit_breakers(most)
    breakers.thresholds[0].max_requests = most
    return breakers


def address(host: str, port: int) -> Address:
    """A TCP address; the host is numeric."""
    return Address(socket_address=SocketAddress(address=host, port_value=port))


def pipe(path: Path, mode: int = 0) -> Address:
    """A Unix socket; `mode`: the permissions it is made with."""
    return Address(pipe=Pipe(path=str(path), mode=mode))


def _cluster(name: str, config: ClusterConfig) -> Cluster:
    breakers = http_circuit_breakers if config.http else circuit_breakers
    return Cluster(
        name=name,
        connect_timeout=CONNECT_TIMEOUT,
        circuit_breakers=breakers(config.max_connections),
        transport_socket=config.tls,
        typed_extension_protocol_options=http_options(config) if config.http else {},
    )


def http_options(config: ClusterConfig) -> dict[str, Any]:
    """Upstream speaks the version of HTTP that the client speaks."""
    names = UpstreamHttpProtocolOptions(auto_sni=True, auto_san_validation=True)
    options = HttpProtocolOptions(
        upstream_http_protocol_options=names if config.tls is not None else None,
        use_downstream_protocol_config=HttpProtocolOptionsUseDownstreamHttpConfig(
            http_protocol_options=Http1ProtocolOptions(),
            http2_protocol_options=Http2ProtocolOptions(),
        ),
    )
    return {HTTP_OPTIONS: Any.pack(options)}
