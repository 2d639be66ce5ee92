"""The filters of one connection: its parser, then the way on.

A parser is either a network filter in front of tcp_proxy, or an HTTP filter in
front of the router of a connection manager.  A connection that is somebody's
egress and somebody's ingress passes both in one chain, egress first.
Pure functions: configuration in, Envoy's messages out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from betterproto2 import Message
from envoy_data_plane.envoy.config.accesslog.v3 import (
    AccessLog,
    AccessLogFilter,
    ResponseFlagFilter,
)
from envoy_data_plane.envoy.config.core.v3 import (
    AggregatedConfigSource,
    ApiVersion,
    ConfigSource,
    DataSource,
    Http1ProtocolOptions,
    HttpProtocolOptions,
    SubstitutionFormatString,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration
from envoy_data_plane.envoy.extensions.access_loggers.stream.v3 import StderrAccessLog
from envoy_data_plane.envoy.extensions.dynamic_modules.v3 import DynamicModuleConfig
from envoy_data_plane.envoy.extensions.filters.common.set_filter_state.v3 import (
    FilterStateValue,
    FilterStateValueSharedWithUpstream,
)
from envoy_data_plane.envoy.extensions.filters.http.dynamic_modules.v3 import DynamicModuleFilter
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.dynamic_modules.v3 import (
    DynamicModuleNetworkFilter,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerCodecType,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerServerHeaderTransformation,
    HttpConnectionManagerUpgradeConfig,
    HttpFilter,
    Rds,
)
from envoy_data_plane.envoy.extensions.filters.network.set_filter_state.v3 import (
    Config as SetFilterState,
)
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import TcpProxy
from envoy_data_plane.google.protobuf import Any, StringValue

MODULE = "proxylib"
"""Envoy loads ``libproxylib.so`` from its dynamic-module search path."""

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

    destination: ``host:port`` that the policy and the log call the destination, if
    it is not the connection's own local address.
    """

    parser: str
    xds_path: Path
    access_log_path: Path
    node_id: str
    ingress: bool = True
    policy_name: str = ""
    destination: str = ""
    parser_modules: tuple[Path, ...] = ()
    record: RecordConfig | None = None
    secrets_path: Path | None = None
    sandbox: Mapping[str, object] = field(default_factory=dict)
    """Keys of proxylib.sandbox.settings: on_error, isolation, time_budget, ..."""
    control_path: Path | None = None

    def to_json(self) -> str:
        values: dict[str, object] = {
            "parser": self.parser,
            "xds_path": str(self.xds_path),
            "access_log_path": str(self.access_log_path),
            "node_id": self.node_id,
            "ingress": self.ingress,
            **self.sandbox,
        }
        if self.policy_name:
            values["policy_name"] = self.policy_name
        if self.destination:
            values["destination"] = self.destination
        if self.parser_modules:
            values["parser_modules"] = [str(path) for path in self.parser_modules]
        if self.secrets_path is not None:
            values["secrets_path"] = str(self.secrets_path)
        if self.record is not None:
            values["record"] = {**asdict(self.record), "folder": str(self.record.folder)}
        if self.control_path is not None:
            values["control_path"] = str(self.control_path)
        return json.dumps(values)


def parser_filter(config: FilterConfig) -> Filter:
    """The network filter that hands a connection to its parser."""
    return network_filter(
        "envoy.filters.network.dynamic_modules",
        DynamicModuleNetworkFilter(
            dynamic_module_config=_module(),
            filter_name=config.parser,
            filter_config=Any.pack(StringValue(value=config.to_json())),
        ),
    )


def parser_http_filter(config: FilterConfig, name: str) -> HttpFilter:
    """The HTTP filter that hands a request to its parser; `name` is its own in the chain."""
    return HttpFilter(
        name=name,
        typed_config=Any.pack(
            DynamicModuleFilter(
                dynamic_module_config=_module(),
                filter_name=config.parser,
                filter_config=Any.pack(StringValue(value=config.to_json())),
            )
        ),
    )


def tcp_chain(
    parsers: Sequence[FilterConfig], cluster: str, *, stat_prefix: str, forward_sni: bool = False
) -> list[Filter]:
    """The parsers, and tcp_proxy to `cluster`.

    forward_sni: the server's name that the client asked for over TLS is what the
    upstream connection asks for.
    """
    sni = [_forward_sni()] if forward_sni else []
    return [*sni, *map(parser_filter, parsers), tcp_proxy(cluster, stat_prefix=stat_prefix)]


Codec = Literal["auto", "http1", "http2"]
"""What a client may speak: HTTP/1 and HTTP/2 by its first bytes, or one of them."""


def http_chain(
    parsers: Sequence[FilterConfig],
    *,
    routes: str | RouteConfiguration,
    stat_prefix: str,
    codec: Codec = "auto",
) -> list[Filter]:
    """A connection manager with the parsers and a router; routes that are a name come by RDS.

    It changes as little as Envoy allows: no headers of its own, no timeouts. Paths take
    the one form that is matched and forwarded (proxylib/http_path.py).
    """
    rds, inline = None, None
    if isinstance(routes, str):
        rds = Rds(config_source=ads_source(), route_config_name=routes)
    else:
        inline = routes
    filters = [parser_http_filter(p, f"parser-{number}") for number, p in enumerate(parsers)]
    manager = HttpConnectionManager(
        stat_prefix=stat_prefix,
        codec_type=_CODECS[codec],
        rds=rds,
        route_config=inline,
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=(
            HttpConnectionManagerPathWithEscapedSlashesAction.REJECT_REQUEST
        ),
        http_protocol_options=Http1ProtocolOptions(accept_http_10=True),
        access_log=[_connect_failures()],
        http_filters=[
            *filters,
            HttpFilter(
                name="envoy.filters.http.router",
                typed_config=Any.pack(Router(suppress_envoy_headers=True)),
            ),
        ],
        use_remote_address=True,
        skip_xff_append=True,
        generate_request_id=False,
        server_header_transformation=HttpConnectionManagerServerHeaderTransformation.PASS_THROUGH,
        stream_idle_timeout=timedelta(0),
        common_http_protocol_options=HttpProtocolOptions(idle_timeout=timedelta(0)),
        upgrade_configs=[HttpConnectionManagerUpgradeConfig(upgrade_type="websocket")],
    )
    return [network_filter("envoy.filters.network.http_connection_manager", manager)]


_CODECS = {
    "auto": HttpConnectionManagerCodecType.AUTO,
    "http1": HttpConnectionManagerCodecType.HTTP1,
    "http2": HttpConnectionManagerCodecType.HTTP2,
}


def tcp_proxy(cluster: str, *, stat_prefix: str) -> Filter:
    """The way on to `cluster`, for any bytes."""
    return network_filter(
        "envoy.filters.network.tcp_proxy",
        TcpProxy(
            stat_prefix=stat_prefix,
            cluster=cluster,
            # Protocols with long silences are none of the proxy's business.
            idle_timeout=timedelta(0),
            access_log=[_connect_failures()],
        ),
    )


def network_filter(name: str, config: Message) -> Filter:
    """A filter of a listener's chain."""
    return Filter(name=name, typed_config=Any.pack(config))


def ads_source() -> ConfigSource:
    """Says that a resource comes over the stream that this one came over."""
    return ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3)


def _module() -> DynamicModuleConfig:
    # Python cannot be unloaded, and its extension modules need its symbols.
    return DynamicModuleConfig(name=MODULE, do_not_close=True, load_globally=True)


def _connect_failures() -> AccessLog:
    """Envoy's own log line for a connection that found no upstream."""
    line = (
        f"{CONNECT_FAILURE} %UPSTREAM_TRANSPORT_FAILURE_REASON% (%RESPONSE_FLAGS_LONG%), "
        "client %DOWNSTREAM_REMOTE_ADDRESS% was disconnected\n"
    )
    return AccessLog(
        name="envoy.access_loggers.stderr",
        filter=AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=["UF", "UH", "UO"])),
        typed_config=Any.pack(StderrAccessLog(log_format=_format(line))),
    )


def _forward_sni() -> Filter:
    value = FilterStateValue(
        object_key="envoy.network.upstream_server_name",
        format_string=_format("%REQUESTED_SERVER_NAME%"),
        shared_with_upstream=FilterStateValueSharedWithUpstream.ONCE,
        skip_if_empty=True,
    )
    return network_filter(
        "envoy.filters.network.set_filter_state",
        SetFilterState(on_downstream_tls_handshake=[value]),
    )


def _format(text: str) -> SubstitutionFormatString:
    return SubstitutionFormatString(text_format_source=DataSource(inline_string=text))
