"""Entities: names for groups of peers that have no labels of their own making."""

from __future__ import annotations

from collections.abc import Mapping

from xds.labels import CLUSTER, RESERVED, Operator, Selector, requirement

LOCAL_CLUSTER = "default"
"""The name of a cluster that nobody named."""

_RESERVED = (
    *("host", "init", "ingress", "health", "unmanaged", "kube-apiserver", "remote-node"),
    *("world", "world-ipv4", "world-ipv6"),
)
_OF_CLUSTER = _RESERVED[:7]


def reserved_selector(name: str) -> Selector:
    """The selector of ``reserved:NAME``."""
    return Selector(frozenset([requirement(f"{RESERVED}:{name}", Operator.EXISTS)]))


_CLUSTER = (
    *map(reserved_selector, _OF_CLUSTER),
    # Endpoints without the label are of the only cluster that there is.
    Selector(frozenset([requirement(CLUSTER, Operator.DOES_NOT_EXIST)])),
    Selector(frozenset([requirement(CLUSTER, Operator.IN, [LOCAL_CLUSTER])])),
)

ENTITIES: Mapping[str, tuple[Selector, ...] | None] = {
    "all": None,
    "none": (),
    "cluster": _CLUSTER,
    **{name: (reserved_selector(name),) for name in _RESERVED},
}
"""What each entity selects: None is anybody at all."""
