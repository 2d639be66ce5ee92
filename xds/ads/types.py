"""The resource types of ADS, and the order in which they may change.

Make before break (xDS protocol, "Eventual consistency considerations"): what is
referred to is there before what refers to it, and goes after it.  Envoy holds its
ACK of clusters back until the last of them is warm, so that waiting for the
answer is waiting for that; endpoints and secrets never wait, because the warming
waits for them.
"""

from __future__ import annotations

from collections.abc import Mapping

_TYPE = "type.googleapis.com/envoy."

CLUSTER = _TYPE + "config.cluster.v3.Cluster"
ENDPOINTS = _TYPE + "config.endpoint.v3.ClusterLoadAssignment"
SECRET = _TYPE + "extensions.transport_sockets.tls.v3.Secret"
LISTENER = _TYPE + "config.listener.v3.Listener"
ROUTES = _TYPE + "config.route.v3.RouteConfiguration"

TYPES = (CLUSTER, ENDPOINTS, SECRET, LISTENER, ROUTES)
"""In the order in which one wake of a stream looks at them."""

SHORT_NAMES: Mapping[str, str] = {
    CLUSTER: "CDS",
    ENDPOINTS: "EDS",
    SECRET: "SDS",
    LISTENER: "LDS",
    ROUTES: "RDS",
    "type.googleapis.com/cilium.NetworkPolicy": "NPDS",
    "type.googleapis.com/cilium.NetworkPolicyHosts": "NPHDS",
}
"""What people call the discovery of each type."""

WHOLE = frozenset((CLUSTER, LISTENER))
"""State of the world: a response holds all resources, and what is not in it is gone."""

SENT_AFTER: Mapping[str, tuple[str, ...]] = {LISTENER: (CLUSTER,), ROUTES: (CLUSTER, LISTENER)}
"""Nothing of a type is sent while a response of one of these waits for its answer.
A refusal is an answer: one bad cluster does not hold everybody's listeners up."""

REMOVED_AFTER: Mapping[str, tuple[str, ...]] = {
    ROUTES: (LISTENER,),
    CLUSTER: (LISTENER, ROUTES),
    ENDPOINTS: (CLUSTER,),
    SECRET: (CLUSTER, LISTENER),
}
"""Nothing of a type is removed until the newest of these is in force: after a refusal
the last good listener still needs its cluster."""
