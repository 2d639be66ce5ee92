"""What policies say, free of how documents spell it: the compiler's input.

Whatever kind of document it came from, a policy chooses endpoints and gives them
rules per direction.  A rule names its peers in one of four ways, and each reduces
to identities: a `Selector` by labels (entities and nodes are selectors of
``reserved:`` labels), a `Cidr` by the identities that prefixes get, a `Fqdn` by
addresses learnt at run time, a `Service` by what a service table knows of it.

What a document leaves to defaults is worked out here: a direction is a white
list (`Policy.default_deny`) if the document says so or has a rule in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal, TypeAlias

from xds.fqdn import Fqdn
from xds.labels import Label, Selector
from xds.source import Origin, Problem

Protocol = Literal["TCP", "UDP", "SCTP", "ANY"]

Prefix: TypeAlias = IPv4Network | IPv6Network

Network: TypeAlias = tuple[int, int, int]
"""A prefix in numbers: IP version, length, and the bits that it fixes."""

L7Pairs = tuple[tuple[str, str], ...]
"""One L7 rule: its keys and values, in the document's order."""


@dataclass(frozen=True, slots=True)
class Cidr:
    """Addresses of `prefix` without those of `excepts` that belong to no endpoint and no node.

    `prefix` and each of `excepts` need an identity of their own, with the labels
    ``cidr:…`` and ``reserved:world``; an address has that of its longest prefix.
    """

    prefix: Prefix
    excepts: tuple[Prefix, ...] = ()
    # There may be thousands of exceptions, each with an identity to be asked about.
    _without: frozenset[Network] = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_without", frozenset(map(network_of, self.excepts)))
        object.__setattr__(self, "_hash", hash((self.prefix, self._without)))

    def __hash__(self) -> int:
        return self._hash

    def selects(self, prefix: Prefix) -> bool:
        """True if the identity of `prefix` is one of this rule's."""
        return _within(prefix, self.prefix) and self._without.isdisjoint(networks_around(prefix))

    def __str__(self) -> str:
        if not self.excepts:
            return str(self.prefix)
        return f"{self.prefix} except {', '.join(map(str, self.excepts))}"


def network_of(prefix: Prefix) -> Network:
    """`prefix` in numbers."""
    length = prefix.prefixlen
    return prefix.version, length, int(prefix.network_address) >> (prefix.max_prefixlen - length)


def networks_around(prefix: Prefix) -> Iterator[Network]:
    """Every network that `prefix` lies in, itself too."""
    version, own, bits = network_of(prefix)
    return ((version, length, bits >> (own - length)) for length in range(own + 1))


def _within(inner: Prefix, outer: Prefix) -> bool:
    if isinstance(inner, IPv4Network) and isinstance(outer, IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, IPv6Network) and isinstance(outer, IPv6Network):
        return inner.subnet_of(outer)
    return False


@dataclass(frozen=True, slots=True)
class Service:
    """A Kubernetes service by name, or every one whose labels `selector` selects.

    namespace: where to look; "" is every namespace.
    `xds.services.ServiceTable.resolve` turns it into selectors and CIDRs.
    """

    name: str = ""
    namespace: str = ""
    selector: Selector | None = None

    def __str__(self) -> str:
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"service {self.name or self.selector}{where}"


Peer: TypeAlias = Selector | Cidr | Fqdn | Service


@dataclass(frozen=True, slots=True)
class Port:
    """A port, a range of them (end_port > 0), every port (0), or one by its name.

    A name is looked up among the ports of whoever is connected to: the subject
    for ingress, the peer for egress; whom it names nothing, it opens nothing.
    """

    port: int | str
    end_port: int = 0
    protocol: Protocol = "ANY"


@dataclass(frozen=True, slots=True)
class Icmp:
    """An ICMP type of one family; such packets never reach a proxy."""

    family: Literal["IPv4", "IPv6"]
    type: int


@dataclass(frozen=True, slots=True, eq=False)
class L7:
    """Rules for a parser; without any, all that it can parse is allowed.

    proto "dns" has no parser: its rules (matchName, matchPattern) are for a DNS proxy.
    """

    proto: str
    rules: tuple[L7Pairs, ...]
    origin: Origin
    """Where the parser is named."""
    items: Origin
    """Where the list of rules is."""


@dataclass(frozen=True, slots=True)
class TLSContext:
    """One side of TLS interception: a secret, and which of its items are what."""

    namespace: str
    secret: str
    trusted_ca: str = ""
    certificate: str = ""
    private_key: str = ""


@dataclass(frozen=True, slots=True)
class Listener:
    """An Envoy listener of somebody else's, to which the connections are to go."""

    kind: str
    config: str
    name: str
    priority: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class PortRule:
    """Ports, and what may be said on them (l7 None: anything).

    terminating_tls: towards the client; originating_tls: towards the server.
    server_names: the connection's SNI must be one of these; none: any or no TLS.
    """

    ports: tuple[Port, ...]
    l7: L7 | None
    terminating_tls: TLSContext | None = None
    originating_tls: TLSContext | None = None
    server_names: tuple[str, ...] = ()
    listener: Listener | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One item of ingress, egress, ingressDeny or egressDeny.

    peers: whom it is about; None is anybody, an empty tuple nobody.
    ports: None is every port and protocol, an empty tuple none (beside icmps).
    peer_field: the document's field that names the peers, "" if none does.
    requires: what every rule of this direction (of this document and of others, and
        denying as this one is) says of fromEndpoints or toEndpoints, it says only of
        those that these select too, for the endpoints that this policy selects.
    quarantined: what is wrong with the rule as it was written, of which only what
        closes is left here: an allow rule's place in the white list, a denial of more.
    """

    deny: bool
    peers: tuple[Peer, ...] | None
    ports: tuple[PortRule, ...] | None
    origin: Origin
    peer_field: str = ""
    requires: tuple[Selector, ...] = ()
    icmps: tuple[Icmp, ...] = ()
    quarantined: Problem | None = None

    @property
    def empty(self) -> bool:
        """True for ``- {}``: it makes the white list, and is about nobody."""
        return self.peers == ()


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """One spec: the endpoints (or nodes) it is about, and their rules.

    default_deny_ingress, default_deny_egress: an endpoint of `subject` may only do
        what some policy allows. Without any such policy the direction is open, but
        for what is denied.
    audit: it decides nothing. Where the verdict would be another with it than
        without it, the log says so.
    labels: the policy's own, for finding it again.
    """

    name: str
    subject: Selector
    ingress: tuple[Rule, ...]
    egress: tuple[Rule, ...]
    origin: Origin
    default_deny_ingress: bool = True
    default_deny_egress: bool = True
    namespace: str = ""
    kind: str = "CiliumNetworkPolicy"
    audit: bool = False
    labels: tuple[Label, ...] = ()
    description: str = ""

    def rules(self, *, ingress: bool) -> tuple[Rule, ...]:
        return self.ingress if ingress else self.egress

    def default_deny(self, *, ingress: bool) -> bool:
        return self.default_deny_ingress if ingress else self.default_deny_egress
