"""Endpoints as the agent keeps them: a number, addresses, labels, and who they are outside.

An endpoint with an interface has its traffic judged by the programs there; one without
is known by its addresses only, and others send its connections to a proxy port.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Literal

from node.agent.documents import show_label
from xds.endpoints import Endpoint, Enforcement, NamedPort, endpoint_labels
from xds.labels import RESERVED, LabelSet, label_set, parse_label
from xds.services import normal_address

if TYPE_CHECKING:
    from node.links.discovery import Attachment

MAX_ENDPOINT_ID = 65535
"""Endpoints are numbered with 16 bits, on each node by itself."""

EXTERNAL = ("cni-attachment-id", "container-id", "k8s-namespace", "k8s-pod-name", "pod-name")
"""What an endpoint may be called by others."""


Placement = Literal["node", "sidecar"]
"""Which Envoy judges an endpoint: the node's, or one inside its own network namespace."""


class EndpointError(ValueError):
    """An endpoint cannot be as asked for; the text says why."""


class UnknownEndpoint(LookupError):
    """There is no such endpoint."""


class AddressTaken(EndpointError):
    """Another endpoint has the address, or the number."""


@dataclass(frozen=True, slots=True)
class NodeEndpoint:
    """One endpoint of this node. Labels are text, ``source:key=value``, sorted.

    attachment: its link; None: its packets do not pass our programs. mode: whether these
    are at the node's end of the link, or inside its network namespace with an Envoy.
    sockmap: bytes between sockets of this node may pass the TCP stack by.
    """

    id: int
    addresses: tuple[str, ...]
    labels: tuple[str, ...]
    external: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[NamedPort, ...] = ()
    enforcement: Enforcement = "default"
    audit: bool = False
    attachment: Attachment | None = None
    mode: Placement = "node"
    sockmap: bool = False

    def label_set(self) -> LabelSet:
        return label_set(map(parse_label, self.labels))

    def for_engine(self) -> Endpoint:
        """As the engine knows it."""
        return Endpoint(
            self.addresses,
            self.label_set(),
            ports=self.ports,
            enforcement=self.enforcement,
            audit=self.audit,
        )

    def address(self, version: int) -> str:
        """Its IPv4 or IPv6 address; empty if it has none."""
        return next((a for a in self.addresses if ip_address(a).version == version), "")

    def to_json(self) -> dict[str, Any]:
        return {
            "addresses": list(self.addresses),
            "labels": list(self.labels),
            "external": dict(self.external),
            "ports": [asdict(port) for port in self.ports],
            "enforcement": self.enforcement,
            "audit": self.audit,
            "attachment": None if self.attachment is None else asdict(self.attachment),
            "mode": self.mode,
            "sockmap": self.sockmap,
        }

    @classmethod
    def from_json(cls, number: int, value: Mapping[str, Any]) -> NodeEndpoint:
        return cls(
            number,
            tuple(value["addresses"]),
            tuple(value["labels"]),
            value["external"],
            tuple(NamedPort(**port) for port in value["ports"]),
            value["enforcement"],
            value["audit"],
            # An agent of an earlier version wrote none of these.
            _attachment(value.get("attachment")),
            value.get("mode", "node"),
            value.get("sockmap", False),
        )


def _attachment(value: Mapping[str, Any] | None) -> Attachment | None:
    if value is None:
        return None
    # Not before it is needed: netlink's library takes its time to load.
    from node.links.discovery import Attachment

    return Attachment(**dict(value) | {"addresses": tuple(value["addresses"])})


def make_endpoint(
    number: int,
    addresses: Iterable[str],
    labels: Iterable[str],
    external: Mapping[str, str],
    ports: Iterable[NamedPort] = (),
    enforcement: Enforcement = "default",
    audit: bool = False,
    *,
    attachment: Attachment | None = None,
    mode: Placement = "node",
    sockmap: bool = False,
) -> NodeEndpoint:
    """An endpoint from what a user gave. Raises EndpointError."""
    if not 0 < number <= MAX_ENDPOINT_ID:
        raise EndpointError(f"an endpoint's number is from 1 to {MAX_ENDPOINT_ID}, not {number}")
    try:
        normal = tuple(normal_address(address) for address in addresses)
    except ValueError as error:
        raise EndpointError(str(error)) from error
    versions = [ip_address(address).version for address in normal]
    if not normal or len(set(versions)) != len(versions):
        raise EndpointError("an endpoint has one IPv4 address, one IPv6 address, or one of each")
    unknown = [key for key in external if key not in EXTERNAL]
    if unknown:
        raise EndpointError(
            f"{unknown[0]!r} is no external identifier (known: {', '.join(EXTERNAL)})"
        )
    odd = [key for key, value in external.items() if not value.isprintable()]
    if odd:
        raise EndpointError(f"{odd[0]} {external[odd[0]]!r} has a control character in it")
    named = tuple(ports)
    if len({port.name for port in named}) != len(named):
        raise EndpointError("two ports have one name")
    if attachment is None and (mode == "sidecar" or sockmap):
        raise EndpointError("a sidecar and sockmap are for endpoints with an interface")
    return NodeEndpoint(
        number,
        normal,
        normal_labels(labels),
        dict(external),
        named,
        enforcement,
        audit,
        attachment,
        mode,
        sockmap,
    )


_NOBODYS = (
    ("is_unspecified", "stands for every address"),
    ("is_loopback", "is a loopback address: every network namespace has it"),
    ("is_multicast", "is a multicast address"),
    ("is_link_local", "is link-local: other links have it, too"),
)
"""What addresses are not one endpoint's, by the names of `ipaddress`; and why."""

_BROADCAST = ip_address("255.255.255.255")


def refuse_addresses(endpoint: NodeEndpoint, own: Collection[str] | None) -> None:
    """Raises EndpointError for an address that no endpoint can have.

    own: the node's addresses, None if they may be endpoints' (`opening.node_addresses`).
    """
    # This is how the node itself gets labels beside reserved:host.
    is_node = endpoint.attachment is None and any(
        (label.source, label.key) == (RESERVED, "host") for label in endpoint.label_set()
    )
    for text in endpoint.addresses:
        address = ip_address(text)
        for name, why in _NOBODYS:
            # Listeners that lead to one upstream are on loopback, and that is where it is asked
            # who is judged.
            if getattr(address, name) and not (address.is_loopback and own is None):
                raise EndpointError(f"{text} {why}: no endpoint can have it")
        if address == _BROADCAST:
            raise EndpointError(f"{text} is the broadcast address: no endpoint can have it")
        if own is not None and text in own and not is_node:
            raise EndpointError(
                f"{text} is an address of this node itself: no endpoint can have it"
            )


def normal_labels(texts: Iterable[str]) -> tuple[str, ...]:
    """Labels in their normal spelling, sorted. Raises EndpointError."""
    try:
        labels = endpoint_labels(map(parse_label, texts))
    except ValueError as error:
        raise EndpointError(str(error)) from error
    return tuple(show_label(label) for label in labels)
