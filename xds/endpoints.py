"""The endpoints file: which address has which labels.

::

    endpoints:
      - address: 127.0.0.10            # or addresses: [an IPv4 one, an IPv6 one]
        labels: {app: memcached}       # or a list: ["k8s:app=memcached"]
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from xds.identity import RESERVED_IDENTITIES, reserved_labels
from xds.labels import Label, LabelSet, label_set, make_label, parse_label
from xds.shape import Fields, LabelKey, LabelValue, Optional, Shape, check
from xds.source import Document, DocumentError, Place, Problem


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A workload: one or two addresses, and its labels."""

    addresses: tuple[str, ...]
    labels: LabelSet
    place: Place | None = None


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


def _is_list(value: Any) -> str:
    return "<list>" if isinstance(value, list) else "<mapping>"


Address = Annotated[str, AfterValidator(normal_address)]
Labels = Annotated[
    Annotated[dict[LabelKey, LabelValue], Tag("<mapping>")]
    | Annotated[list[Annotated[str, AfterValidator(_label_text)]], Tag("<list>")],
    Discriminator(_is_list),
]


class _Endpoint(Shape):
    address: Optional[Address] = None
    addresses: Optional[Annotated[list[Address], Field(min_length=1, max_length=2)]] = None
    labels: Optional[Labels] = None

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
        """Raises ValueError for two labels of one key, or a reserved one beside others."""
        if isinstance(self.labels, dict):
            labels: Iterable[Label] = [make_label(*item) for item in self.labels.items()]
        else:
            labels = [parse_label(text) for text in self.labels or ()]
        found = label_set(labels)
        if found.reserved and found not in reserved_labels().values():
            known = ", ".join(RESERVED_IDENTITIES)
            raise ValueError(f"a reserved: label stands alone, and is one of {known}")
        return found


class _File(Shape):
    endpoints: list[_Endpoint]


_FIELDS: Fields = {"": _File, "endpoints": _Endpoint}


def load_endpoints(documents: Iterable[Document]) -> list[Endpoint]:
    """The endpoints of `documents`. Raises DocumentError with everything that is wrong."""
    endpoints: list[Endpoint] = []
    problems: list[Problem] = []
    taken: dict[str, Place] = {}
    for document in documents:
        try:
            parsed = check(_File, document, _FIELDS)
        except DocumentError as error:
            problems += error.problems
            continue
        for index, item in enumerate(parsed.endpoints):
            place = document.place(("endpoints", index))
            addresses = (item.address,) if item.address else tuple(item.addresses or ())
            for address in addresses:
                first = taken.setdefault(address, place)
                if first is not place:
                    problems.append(Problem(place, f"{address} is taken already: {first}"))
            endpoints.append(Endpoint(addresses, item.label_set(), place))
    if problems:
        raise DocumentError(problems)
    return endpoints


def with_extra(endpoints: list[Endpoint], addresses: Iterable[str]) -> list[Endpoint]:
    """`endpoints`, and one without labels for each address that they do not name.

    Raises ValueError for what is not an IP address.
    """
    known = {address for endpoint in endpoints for address in endpoint.addresses}
    extra = dict.fromkeys(map(normal_address, addresses))
    return endpoints + [Endpoint((a,), label_set(())) for a in extra if a not in known]
