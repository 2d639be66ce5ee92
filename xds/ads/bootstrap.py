"""The bootstrap of a node's Envoy: everything it needs to ask us for the rest.

Pure functions over Envoy's own message types. `envoy_configs/node.yaml` is the same
document for people; a test holds the two together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from envoy_data_plane.envoy.config.bootstrap.v3 import (
    Admin,
    Bootstrap,
    BootstrapDynamicResources,
    BootstrapStaticResources,
    ClusterManager,
)
from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import (
    ApiConfigSource,
    ApiConfigSourceApiType,
    ApiVersion,
    BindConfig,
    ConfigSource,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    Http2ProtocolOptions,
    Node,
)
from envoy_data_plane.envoy.config.overload.v3 import (
    OverloadAction,
    OverloadManager,
    ResourceMonitor,
    ThresholdTrigger,
    Trigger,
)
from envoy_data_plane.envoy.extensions.resource_monitors.downstream_connections.v3 import (
    DownstreamConnectionsConfig,
)
from envoy_data_plane.envoy.extensions.resource_monitors.fixed_heap.v3 import FixedHeapConfig
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.google.protobuf import Any

from xds.ads.clusters import (
    CONNECT_TIMEOUT,
    HTTP_OPTIONS,
    load_assignment,
    pipe,
    ports_chosen,
)
from xds.ads.filters import ads_source

CLUSTER = "xds"
"""The cluster that is us."""


_HEAP_MONITOR = "envoy.resource_monitors.fixed_heap"

_HEAP_ACTIONS = {"shrink_heap": 0.9, "stop_accepting_connections": 0.95}
"""What Envoy does from which part of its heap on: connections that it has go on."""


@dataclass(frozen=True, slots=True)
class NodeBootstrap:
    """One node's Envoy. incremental: which variant of ADS it speaks; state of the world
    is for comparison, since only the incremental one says what is there already when it
    reconnects. max_connections: accepted ones at a time, two descriptors each. max_heap:
    bytes of Envoy's heap, 0 for as many as there are; Python's objects are beside it.
    sidecar: it shares a network namespace with the server that its ingress is for. Its
    connection to that must not have the port that a client has: the server's socket would be
    the same as Envoy's own towards the client. So it takes what clients seldom have, odd ports."""

    node_id: str
    xds_path: Path
    admin_path: Path
    incremental: bool = True
    max_connections: int = 50_000
    max_heap: int = 0
    sidecar: bool = False


def build(config: NodeBootstrap) -> Bootstrap:
    """The whole document."""
    kind = ApiConfigSourceApiType
    return Bootstrap(
        node=Node(id=config.node_id, cluster="proxylib"),
        admin=Admin(address=pipe(config.admin_path, mode=0o600)),
        dynamic_resources=BootstrapDynamicResources(
            ads_config=ApiConfigSource(
                api_type=kind.DELTA_GRPC if config.incremental else kind.GRPC,
                transport_api_version=ApiVersion.V3,
                grpc_services=[GrpcService(envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=CLUSTER))],
                set_node_on_first_message_only=True,
            ),
            lds_config=_awaited(),
            cds_config=_awaited(),
        ),
        static_resources=BootstrapStaticResources(clusters=[_xds_cluster(config)]),
        overload_manager=_overload_manager(config),
        cluster_manager=(
            ClusterManager(upstream_bind_config=ports_chosen(at_connect=False))
            if config.sidecar
            else None
        ),
    )


def to_json(bootstrap: Bootstrap) -> str:
    """The document as Envoy reads it from a file whose name ends in .json."""
    return json.dumps(bootstrap.to_dict(), indent=2) + "\n"


def _awaited() -> ConfigSource:
    """Listeners and clusters are waited for without end. An Envoy that took over from
    another one before it had any would cut all connections off."""
    source = ads_source()
    source.initial_fetch_timeout = timedelta(0)
    return source


def _overload_manager(config: NodeBootstrap) -> OverloadManager:
    made = connection_limit(config.max_connections)
    if config.max_heap:
        monitor, limit = _HEAP_MONITOR, FixedHeapConfig(max_heap_size_bytes=config.max_heap)
        made.resource_monitors.append(ResourceMonitor(monitor, typed_config=Any.pack(limit)))
        made.actions = [
            OverloadAction(
                name=f"envoy.overload_actions.{action}",
                triggers=[Trigger(name=monitor, threshold=ThresholdTrigger(value=fraction))],
            )
            for action, fraction in _HEAP_ACTIONS.items()
        ]
    return made


def connection_limit(most: int) -> OverloadManager:
    """Refuses connections beyond `most`, so that a flood cannot take all descriptors."""
    limit = DownstreamConnectionsConfig(max_active_downstream_connections=most)
    return OverloadManager(
        resource_monitors=[
            ResourceMonitor(
                name="envoy.resource_monitors.global_downstream_max_connections",
                typed_config=Any.pack(limit),
            )
        ]
    )


def _xds_cluster(config: NodeBootstrap) -> Cluster:
    http2 = HttpProtocolOptions(
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(
            http2_protocol_options=Http2ProtocolOptions()
        )
    )
    return Cluster(
        name=CLUSTER,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=CONNECT_TIMEOUT,
        typed_extension_protocol_options={HTTP_OPTIONS: Any.pack(http2)},
        load_assignment=load_assignment(CLUSTER, [pipe(config.xds_path)]),
        # In place of the bootstrap's: a Unix socket has no such options.
        upstream_bind_config=BindConfig() if config.sidecar else None,
    )
