"""Envoy as the judge of resources, without a control server: ``envoy --mode validate``."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from betterproto2 import Message
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret

from node.envoy import SEARCH_PATH, find_envoy, find_library
from xds.ads.bootstrap import NodeBootstrap, build
from xds.ads.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES, SECRET
from xds.world import Resource

Built = Mapping[str, Mapping[str, Resource]]

MESSAGES: Mapping[str, type[Message]] = {
    CLUSTER: Cluster,
    ENDPOINTS: ClusterLoadAssignment,
    SECRET: Secret,
    LISTENER: Listener,
    ROUTES: RouteConfiguration,
}


def parsed(built: Built, url: str) -> dict[str, dict[str, Any]]:
    """The resources of a type as JSON, by name."""
    kind = MESSAGES[url]
    return {name: kind.parse(item.body).to_dict() for name, item in built[url].items()}


def documents(built: Built, folder: Path) -> Iterable[dict[str, Any]]:
    """Bootstraps that hold every resource where Envoy validates it in full.

    Clusters, listeners and secrets first, with secrets by their names only; then
    endpoints and routes, which Envoy looks at only where they are written out.
    """
    bootstrap = NodeBootstrap("n", folder / "xds.sock", folder / "admin.sock")
    whole = build(bootstrap).to_dict()
    static = whole["staticResources"]
    static["clusters"] += map(_static_secrets, parsed(built, CLUSTER).values())
    static["listeners"] = list(map(_static_secrets, parsed(built, LISTENER).values()))
    static["secrets"] = list(parsed(built, SECRET).values())
    yield whole
    inline = build(bootstrap).to_dict()
    static = inline["staticResources"]
    for name, cluster in parsed(built, CLUSTER).items():
        eds = cluster.pop("edsClusterConfig", None)
        if eds is not None:
            found = parsed(built, ENDPOINTS)[eds["serviceName"]]
            cluster |= {"type": "STATIC", "loadAssignment": found | {"clusterName": name}}
        cluster.pop("transportSocket", None)
        static["clusters"].append(cluster)
    static["listeners"] = [
        _http_listener(number, routes)
        for number, routes in enumerate(parsed(built, ROUTES).values())
    ]
    yield inline


def _static_secrets(value: Any) -> Any:
    """A message that names secrets of the same document.

    Envoy 1.40 dereferences null when it is to validate one that comes over ADS.
    """
    if isinstance(value, list):
        return [_static_secrets(item) for item in value]
    if isinstance(value, dict):
        return {key: _static_secrets(v) for key, v in value.items() if key != "sdsConfig"}
    return value


def _http_listener(number: int, routes: dict[str, Any]) -> dict[str, Any]:
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network"
        ".http_connection_manager.v3.HttpConnectionManager",
        "statPrefix": "validate",
        "routeConfig": routes | {"validateClusters": True},
        "httpFilters": [
            {
                "name": "envoy.filters.http.router",
                "typedConfig": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    chain = {"filters": [{"name": "http", "typedConfig": manager}]}
    where = {"socketAddress": {"address": "127.0.0.1", "portValue": 10000 + number}}
    return {"name": f"l{number}", "address": where, "filterChains": [chain]}


def refused(document: Mapping[str, Any], folder: Path) -> str:
    """Why Envoy refuses a bootstrap document; empty if it takes it."""
    path = folder / "document.json"
    path.write_text(json.dumps(document))
    done = subprocess.run(
        [find_envoy(), "--mode", "validate", "-c", path, "-l", "error"],
        env={**os.environ, SEARCH_PATH: str(find_library().parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stderr[-3000:] or "no reason" if done.returncode else ""
