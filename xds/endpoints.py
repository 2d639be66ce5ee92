"""The endpoints file: which address has which labels, and what services there are.

::

    endpoints:
      - address: 127.0.0.10            # or addresses: [an IPv4 one, an IPv6 one]
        labels: {app: memcached}       # or a list: ["k8s:app=memcached"]
        namespace: default             # the same as its label
        ports: {memcache: 11211}       # what policies may call them
        enforcement: default           # or always, or never
        audit: false                   # true: log what would be denied, deny nothing
    services:                          # what xds/services.py reads
      - {name: cache, namespace: default, selector: {app: memcached}}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from xds.identity import RESERVED_IDENTITIES
from xds.labels import K8S, POD_NAMESPACE, RESERVED, Label, LabelSet, label_set
from xds.model_peers import MAX_PORT, MAX_PORT_NAME, PORT_NAME, KubernetesName
from xds.services import (
    Address,
    Labels,
    ServiceEntry,
    ServiceTable,
    is_list,
    labels_of,
    normal_address,
)
from xds.shape import Fields, Many, Optional, Shape, check
from xds.source import Document, DocumentError, Place, Problem

Enforcement = Literal["default", "always", "never"]


@dataclass(frozen=True, slots=True)
class NamedPort:
    """What an endpoint calls one of its ports."""

    name: str
    port: int
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A workload, or a node: one or two addresses, and its labels.

    enforcement: "default" makes a direction a white list if a policy does so,
        "always" in any case, "never" lets everything pass.
    audit: what policies deny is logged and passes.
    """

    addresses: tuple[str, ...]
    labels: LabelSet
    place: Place | None = None
    ports: tuple[NamedPort, ...] = ()
    enforcement: Enforcement = "default"
    audit: bool = False


def _port_name(text: str) -> str:
    if len(text) > MAX_PORT_NAME or not PORT_NAME.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a port name (at most {MAX_PORT_NAME} of a-z0-9-)")
    return text


PortName = Annotated[str, AfterValidator(_port_name)]
PortNumber = Annotated[int, Field(ge=1, le=MAX_PORT)]


class _NamedPort(Shape):
    name: PortName
    port: PortNumber
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


_Ports = Annotated[
    Annotated[dict[PortName, PortNumber], Tag("<mapping>")]
    | Annotated[list[_NamedPort], Tag("<list>")],
    Discriminator(is_list),
]


class _Endpoint(Shape):
    address: Optional[Address] = None
    addresses: Optional[Annotated[list[Address], Field(min_length=1, max_length=2)]] = None
    labels: Optional[Labels] = None
    namespace: Optional[KubernetesName] = None
    ports: Optional[_Ports] = None
    enforcement: Enforcement = "default"
    audit: bool = False

    @model_validator(mode="after")
    def _has_addresses(self) -> Self:
        if (self.address is None) == (self.addresses is None):
            raise PydanticCustomError("address", "needs either 'address' or 'addresses'")
        return self

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        self.label_set()
        return self

    def label_set(self) -> LabelSet:
        """Raises ValueError for two labels of one key, or a reserved one beside others.

        Nodes have labels beside theirs, for a nodeSelector to choose by.
        """
        labels = labels_of(self.labels)
        if self.namespace is not None:
            labels.append(Label(POD_NAMESPACE, self.namespace, K8S))
        return endpoint_labels(labels)

    def named_ports(self) -> tuple[NamedPort, ...]:
        if isinstance(self.ports, dict):
            return tuple(NamedPort(*item) for item in self.ports.items())
        return tuple(NamedPort(p.name, p.port, p.protocol) for p in self.ports or ())


_NODES = ("host", "remote-node")
"""The reserved labels that a node's own labels may stand beside."""

_BESIDE = ("kube-apiserver", "ingress")
"""Reserved labels without a number of their own: alone, or beside a node's."""


_OF_ADDRESSES = ("cidr", "fqdn")
"""Sources of labels that say what an address is, and so are not for others to hand out."""


def endpoint_labels(labels: Iterable[Label]) -> LabelSet:
    """`labels` as those of an endpoint.

    Raises ValueError for two of one key, for those of addresses outside, and for a
    reserved one beside others that it cannot stand beside.
    """
    found = label_set(labels)
    for label in found:
        if label.source in _OF_ADDRESSES:
            raise ValueError(f"{label}: labels of {label.source}: are those of addresses outside")
    reserved = [label for label in found if label.source == RESERVED]
    own = [label for label in reserved if label.key not in _BESIDE]
    for label in reserved:
        if label.value or label.key not in (*RESERVED_IDENTITIES, *_BESIDE):
            known = ", ".join((*RESERVED_IDENTITIES, *_BESIDE))
            raise ValueError(f"{label} is no reserved label; these are {known}")
    if len(own) > 1:
        raise ValueError(f"{own[0]} and {own[1]} are two identities")
    if own and len(found.labels) > 1 and own[0].key not in _NODES:
        raise ValueError(f"{own[0]} stands alone; only {' and '.join(_NODES)} have others")
    return found


MAX_ENDPOINTS = 65535
"""Most endpoints of a file, and so of a node: their numbers have 16 bits."""


class File(Shape):
    """A file of endpoints, services, or both."""

    endpoints: Optional[Annotated[list[_Endpoint], Field(max_length=MAX_ENDPOINTS)]] = None
    services: Optional[Many[ServiceEntry]] = None

    @model_validator(mode="after")
    def _has_something(self) -> Self:
        if self.endpoints is None and self.services is None:
            raise PydanticCustomError("endpoints", "needs 'endpoints', 'services', or both")
        return self


_FIELDS: Fields = {"": File, "endpoints": _Endpoint, "services": ServiceEntry, "ports": _NamedPort}


def _files(
    documents: Iterable[Document], problems: list[Problem]
) -> Iterator[tuple[Document, File]]:
    """The documents that are of the right shape; what is wrong with others is added."""
    for document in documents:
        try:
            yield document, check(File, document, _FIELDS)
        except DocumentError as error:
            problems += error.problems


def load_endpoints(documents: Iterable[Document]) -> list[Endpoint]:
    """The endpoints of `documents`. Raises DocumentError with everything that is wrong."""
    endpoints: list[Endpoint] = []
    problems: list[Problem] = []
    taken: dict[str, Place] = {}
    for document, parsed in _files(documents, problems):
        for index, item in enumerate(parsed.endpoints or ()):
            place = document.place(("endpoints", index))
            addresses = (item.address,) if item.address else tuple(item.addresses or ())
            for address in addresses:
                first = taken.setdefault(address, place)
                if first is not place:
                    problems.append(Problem(place, f"{address} is taken already: {first}"))
            endpoints.append(
                Endpoint(
                    addresses,
                    item.label_set(),
                    place,
                    item.named_ports(),
                    item.enforcement,
                    item.audit,
                )
            )
    if problems:
        raise DocumentError(problems)
    return endpoints


def load_services(documents: Iterable[Document]) -> ServiceTable:
    """The services of `documents`. Raises DocumentError for what is wrong with them."""
    entries: list[ServiceEntry] = []
    problems: list[Problem] = []
    taken: dict[tuple[str, str], Place] = {}
    for document, parsed in _files(documents, problems):
        for index, item in enumerate(parsed.services or ()):
            place = document.place(("services", index))
            first = taken.setdefault((item.namespace or "", item.name), place)
            if first is not place:
                problems.append(Problem(place, f"{item.name!r} is a service already: {first}"))
            entries.append(item)
    if problems:
        raise DocumentError(problems)
    return ServiceTable(entries)


def with_extra(endpoints: list[Endpoint], addresses: Iterable[str]) -> list[Endpoint]:
    """`endpoints`, and one without labels for each address that they do not name.

    Raises ValueError for what is not an IP address.
    """
    known = {address for endpoint in endpoints for address in endpoint.addresses}
    extra = dict.fromkeys(map(normal_address, addresses))
    return endpoints + [Endpoint((a,), label_set(())) for a in extra if a not in known]
