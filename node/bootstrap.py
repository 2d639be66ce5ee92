"""Envoy's bootstrap document: configuration in, message out.

Pure functions over Envoy's own message types (envoy-data-plane), so that a field
that Envoy does not have is an error here and not a surprise there.  One listener
with the parser and tcp_proxy, one cluster with the upstream, the admin interface.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from betterproto2 import Message
from envoy_data_plane.envoy.config.accesslog.v3 import (
    AccessLog,
    AccessLogFilter,
    ResponseFlagFilter,
)
from envoy_data_plane.envoy.config.bootstrap.v3 import (
    Admin,
    Bootstrap,
    BootstrapStaticResources,
)
from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterDiscoveryType,
)
from envoy_data_plane.envoy.config.core.v3 import Address as EnvoyAddress
from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    Node,
    Pipe,
    SocketAddress,
    SubstitutionFormatString,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.overload.v3 import OverloadManager, ResourceMonitor
from envoy_data_plane.envoy.extensions.access_loggers.stream.v3 import StderrAccessLog
from envoy_data_plane.envoy.extensions.dynamic_modules.v3 import DynamicModuleConfig
from envoy_data_plane.envoy.extensions.filters.network.dynamic_modules.v3 import (
    DynamicModuleNetworkFilter,
)
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import TcpProxy
from envoy_data_plane.envoy.extensions.resource_monitors.downstream_connections.v3 import (
    DownstreamConnectionsConfig,
)
from envoy_data_plane.google.protobuf import Any, StringValue

from node.address import Address

MODULE = "proxylib"
"""Envoy loads ``libproxylib.so`` from its dynamic-module search path."""

LISTENER = "proxy"
CLUSTER = "upstream"

CONNECT_TIMEOUT = timedelta(seconds=5)


CONNECT_FAILURE = "connect-failure:"
"""Starts the line in Envoy's log that tells why a client's connection got no upstream."""


@dataclass(frozen=True, slots=True)
class RecordConfig:
    """Where connections are recorded, a file each (proxylib.tap).

    limit: bytes of each; connections: how many; redact: regular expressions of what
    is made unreadable.
    """

    folder: Path
    limit: int
    connections: int
    redact: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """What the parser's filter is told; the JSON that the library reads.

    destination: what the policy and the log call the destination, if it is not
    the connection's own local address.
    """

    parser: str
    xds_path: Path
    access_log_path: Path
    node_id: str
    ingress: bool = True
    policy_name: str = ""
    destination: Address | None = None
    parser_modules: tuple[Path, ...] = ()
    record: RecordConfig | None = None

    def to_json(self) -> str:
        values: dict[str, object] = {
            "parser": self.parser,
            "xds_path": str(self.xds_path),
            "access_log_path": str(self.access_log_path),
            "node_id": self.node_id,
            "ingress": self.ingress,
        }
        if self.policy_name:
            values["policy_name"] = self.policy_name
        if self.destination is not None:
            values["destination"] = str(self.destination)
        if self.parser_modules:
            values["parser_modules"] = [str(path) for path in self.parser_modules]
        if self.record is not None:
            values["record"] = {**asdict(self.record), "folder": str(self.record.folder)}
        return json.dumps(values)


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


def build(config: BootstrapConfig) -> Bootstrap:
    """The whole document."""
    return Bootstrap(
        node=Node(id=config.filter.node_id, cluster="proxylib"),
        admin=Admin(address=_address(config.admin)),
        static_resources=BootstrapStaticResources(
            listeners=[_listener(config)], clusters=[_cluster(config)]
        ),
        overload_manager=OverloadManager(
            resource_monitors=[
                ResourceMonitor(
                    name="envoy.resource_monitors.global_downstream_max_connections",
                    typed_config=Any.pack(
                        DownstreamConnectionsConfig(
                            max_active_downstream_connections=config.max_connections
                        )
                    ),
                )
            ]
        ),
    )


def to_json(bootstrap: Bootstrap) -> str:
    """The document as Envoy reads it from a file whose name ends in .json."""
    return json.dumps(bootstrap.to_dict(), indent=2) + "\n"


def parser_filter(config: FilterConfig) -> Filter:
    """The network filter that hands a connection to its parser."""
    return _filter(
        "envoy.filters.network.dynamic_modules",
        DynamicModuleNetworkFilter(
            # Python cannot be unloaded, and its extension modules need its symbols.
            dynamic_module_config=DynamicModuleConfig(
                name=MODULE, do_not_close=True, load_globally=True
            ),
            filter_name=config.parser,
            filter_config=Any.pack(StringValue(value=config.to_json())),
        ),
    )


def _listener(config: BootstrapConfig) -> Listener:
    tcp_proxy = TcpProxy(
        stat_prefix=config.filter.parser,
        cluster=CLUSTER,
        # Protocols with long silences are none of the proxy's business.
        idle_timeout=timedelta(0),
        access_log=[_connect_failures()],
    )
    return Listener(
        name=LISTENER,
        address=_address(config.listen),
        filter_chains=[
            FilterChain(
                filters=[
                    parser_filter(config.filter),
                    _filter("envoy.filters.network.tcp_proxy", tcp_proxy),
                ]
            )
        ],
        # One socket per worker spreads connections evenly; with one worker it
        # would only let a second Envoy share the port unnoticed.
        enable_reuse_port=config.concurrency > 1,
    )


def _connect_failures() -> AccessLog:
    """Envoy's own log line for a connection that found no upstream."""
    line = (
        f"{CONNECT_FAILURE} %UPSTREAM_TRANSPORT_FAILURE_REASON% (%RESPONSE_FLAGS_LONG%), "
        "client %DOWNSTREAM_REMOTE_ADDRESS% was disconnected\n"
    )
    text = SubstitutionFormatString(text_format_source=DataSource(inline_string=line))
    return AccessLog(
        name="envoy.access_loggers.stderr",
        filter=AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=["UF", "UH", "UO"])),
        typed_config=Any.pack(StderrAccessLog(log_format=text)),
    )


def _cluster(config: BootstrapConfig) -> Cluster:
    endpoint = LbEndpoint(endpoint=Endpoint(address=_address(config.upstream)))
    return Cluster(
        name=CLUSTER,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=CONNECT_TIMEOUT,
        # What was accepted is connected: Envoy's default of 1,024 would refuse the rest.
        circuit_breakers=CircuitBreakers(
            thresholds=[
                CircuitBreakersThresholds(
                    max_connections=config.max_connections,
                    max_pending_requests=config.max_connections,
                )
            ]
        ),
        load_assignment=ClusterLoadAssignment(
            cluster_name=CLUSTER, endpoints=[LocalityLbEndpoints(lb_endpoints=[endpoint])]
        ),
    )


def _filter(name: str, config: Message) -> Filter:
    return Filter(name=name, typed_config=Any.pack(config))


def _address(address: Address | Path) -> EnvoyAddress:
    if isinstance(address, Path):
        return EnvoyAddress(pipe=Pipe(path=str(address), mode=0o600))
    return EnvoyAddress(socket_address=SocketAddress(address=address.host, port_value=address.port))
