"""What goes into the policy engine, and what comes out of it, as plain values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from xds.compilation import Tables
from xds.endpoints import Endpoint
from xds.labels import LabelSet
from xds.peers import Address, Resolve
from xds.policy import Policy
from xds.roster import Mode


@dataclass(frozen=True, slots=True)
class Change:
    """Something to change. What is not named stays as it is.

    policies: by the key of their document, which is theirs alone; none takes the
        document's away.
    endpoints: by their number (a NetworkPolicy's endpoint_id); None takes it away.
    names: the addresses that a DNS name has now; none: it is forgotten.
    identities: labels of identities of other nodes; None: it is gone.
    services: says what a `Service` peer stands for from now on.
    own: the addresses of the host itself, which is no endpoint.
    mode: what holds where an endpoint asks for nothing else.
    """

    policies: Mapping[str, Sequence[Policy]] = field(default_factory=dict)
    endpoints: Mapping[int, Endpoint | None] = field(default_factory=dict)
    names: Mapping[str, Collection[Address]] = field(default_factory=dict)
    identities: Mapping[int, LabelSet | None] = field(default_factory=dict)
    services: Resolve | None = None
    own: Collection[str] | None = None
    mode: Mode | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What a change has changed. revision: how many changes there have been.

    endpoints: those whose policy is another, or that are new; removed: that are gone.
    hosts: identities whose addresses are others.
    came, gone: identities that there are, or are no more.
    maps: endpoints whose L4 policy (`Engine.map_state`) may be another. That is more than
        `endpoints`: a NetworkPolicy says nothing of ICMP and SCTP.
    """

    revision: int
    endpoints: frozenset[int]
    removed: frozenset[int]
    hosts: frozenset[int]
    came: Mapping[int, LabelSet]
    gone: frozenset[int]
    maps: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """What an endpoint enforces.

    policies: those that select it, in the order of their documents' keys.
    tables: their lines; would_be: those that hold but for audit mode (None: the same).
    ingress_enforced, egress_enforced: whether what no policy allows is denied.
    revision: of the change that made it what it is.
    resource: its serialized cilium.NetworkPolicy.
    """

    endpoint: Endpoint
    identity: int
    mode: Mode
    policies: tuple[Policy, ...]
    tables: Tables
    would_be: Tables | None
    ingress_enforced: bool
    egress_enforced: bool
    revision: int
    resource: bytes
