"""Services: names for groups of endpoints or of addresses elsewhere.

A service with a selector stands for the endpoints that it selects in the service's
namespace; its addresses, if it has some, are those of backends that are no
endpoints here.  Both may change at any time: policies keep the service's name, and
the table is asked again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from xds.labels import (
    K8S,
    POD_NAMESPACE,
    Label,
    LabelSet,
    Operator,
    Selector,
    label_set,
    make_label,
    parse_label,
    requirement,
)
from xds.model_peers import KubernetesName
from xds.policy import Cidr, Service
from xds.shape import LabelKey, LabelValue, Optional, Shape


def normal_address(text: str) -> str:
    """An IP address in its normal spelling. Raises ValueError if it is not one."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"{text!r}: an address with a zone is not known elsewhere")
        if address.ipv4_mapped is not None:
            raise ValueError(f"{text!r}: write the IPv4 address {address.ipv4_mapped}")
    return str(address)


def _label_text(text: str) -> str:
    parse_label(text)
    return text


def is_list(value: Any) -> str:
    """The tag of a union of a list and a mapping."""
    return "<list>" if isinstance(value, list) else "<mapping>"


Address = Annotated[str, AfterValidator(normal_address)]
Labels = Annotated[
    Annotated[dict[LabelKey, LabelValue], Tag("<mapping>")]
    | Annotated[list[Annotated[str, AfterValidator(_label_text)]], Tag("<list>")],
    Discriminator(is_list),
]


def labels_of(written: dict[str, str] | list[str] | None) -> list[Label]:
    """The labels of either spelling. Raises ValueError for what is none."""
    if isinstance(written, dict):
        return [make_label(*item) for item in written.items()]
    return [parse_label(text) for text in written or ()]


class ServiceEntry(Shape):
    """One service of the file."""

    name: KubernetesName
    namespace: Optional[KubernetesName] = None
    labels: Optional[Labels] = None
    selector: Optional[dict[LabelKey, LabelValue]] = None
    addresses: Optional[Annotated[list[Address], Field(max_length=1000)]] = None

    @model_validator(mode="after")
    def _has_backends(self) -> Self:
        if not self.selector and not self.addresses:
            raise PydanticCustomError("service", "needs a 'selector', 'addresses', or both")
        self.label_set()
        return self

    def label_set(self) -> LabelSet:
        """Raises ValueError for two labels of one key."""
        return label_set(labels_of(self.labels))

    def backends(self) -> tuple[Selector | Cidr, ...]:
        """What the service stands for."""
        found: list[Selector | Cidr] = []
        if self.selector:
            needs = [requirement(k, Operator.IN, [v]) for k, v in self.selector.items()]
            if self.namespace is not None:
                needs.append(requirement(f"{K8S}:{POD_NAMESPACE}", Operator.IN, [self.namespace]))
            found.append(Selector(frozenset(needs)))
        found += [Cidr(ipaddress.ip_network(address)) for address in self.addresses or ()]
        return tuple(found)


class ServiceTable:
    """The services that there are, and what each name or selector of them stands for."""

    def __init__(self, entries: Iterable[ServiceEntry] = ()) -> None:
        self._services = [
            (entry.name, entry.namespace or "", entry.label_set(), entry.backends())
            for entry in entries
        ]

    def names(self) -> set[str]:
        """What the services are called."""
        return {name for name, *_ in self._services}

    def resolve(self, wanted: Service) -> tuple[Selector | Cidr, ...]:
        """The backends of every service that `wanted` is about; none if there is none."""
        return tuple(
            dict.fromkeys(
                backend
                for name, namespace, labels, backends in self._services
                if wanted.namespace in ("", namespace)
                and wanted.name in ("", name)
                and (wanted.selector is None or wanted.selector.matches(labels))
                for backend in backends
            )
        )
