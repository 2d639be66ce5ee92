"""Entities: names for groups of peers that have no labels of their own making."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network

from xds.labels import CLUSTER, RESERVED, Operator, Selector, requirement
from xds.policy import Cidr

LOCAL_CLUSTER = "default"
"""The name of a cluster that nobody named."""

_OF_CLUSTER = ("host", "init", "ingress", "health", "unmanaged", "kube-apiserver", "remote-node")


def reserved_selector(name: str) -> Selector:
    """The selector of ``reserved:NAME``."""
    return Selector(frozenset([requirement(f"{RESERVED}:{name}", Operator.EXISTS)]))


_CLUSTER = (
    *map(reserved_selector, _OF_CLUSTER),
    # Endpoints without the label are of the only cluster that there is.
    Selector(frozenset([requirement(CLUSTER, Operator.DOES_NOT_EXIST)])),
    Selector(frozenset([requirement(CLUSTER, Operator.IN, [LOCAL_CLUSTER])])),
)

ENTITIES: Mapping[str, tuple[Selector | Cidr, ...] | None] = {
    "all": None,
    "none": (),
    "cluster": _CLUSTER,
    "world": (reserved_selector("world"),),
    "world-ipv4": (Cidr(ip_network("0.0.0.0/0")),),
    "world-ipv6": (Cidr(ip_network("::/0")),),
    **{name: (reserved_selector(name),) for name in _OF_CLUSTER},
}
"""What each entity selects: None is anybody at all."""
