"""The shape of a CiliumNetworkPolicy, field by field as ``cilium.io/v2`` has it.

Only what this version enforces is here; `LATER` names what Cilium has beside it,
so that such a document is refused with the right words.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from xds.shape import Fields, LabelKey, LabelValue, Optional, Shape

MAX_PORTS = 40
"""Most ports of one toPorts item, as in Cilium's own schema."""

MAX_PORT = 65535

LATER = frozenset(
    (
        *("fromCIDR", "fromCIDRSet", "fromEntities", "fromGroups", "fromNodes", "fromRequires"),
        *("toCIDR", "toCIDRSet", "toEntities", "toGroups", "toNodes", "toRequires"),
        *("toFQDNs", "toServices", "icmps", "authentication", "enableDefaultDeny", "log"),
        *("http", "dns", "listener", "serverNames", "originatingTLS", "terminatingTLS"),
        *("namespace", "nodeSelector"),
    )
)
"""Fields of Cilium's documents that are not enforced yet, and so are refused."""


def _port(value: Any) -> int:
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if re.fullmatch("[0-9]{1,5}", text) and int(text) <= MAX_PORT:
        return int(text)
    if re.fullmatch("(?=.*[a-z])[a-z0-9-]{1,63}", text):
        raise ValueError(f"named ports such as {text!r} are not supported; use the number")
    raise ValueError(f"must be a port number from 0 (any) to {MAX_PORT}")


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


def _no_l7(value: Any) -> Any:
    raise ValueError("a deny rule cannot have L7 rules; deny the port, or allow less at L7")


class Expression(Shape):
    """One matchExpressions item."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: Optional[list[LabelValue]] = None

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if (self.operator in ("In", "NotIn")) != bool(self.values):
            need = "needs at least one of" if not self.values else "takes no"
            raise PydanticCustomError("values", f"operator {self.operator} {need} 'values'")
        return self


class EndpointSelector(Shape):
    """A selector by labels; {} selects every endpoint."""

    matchLabels: Optional[dict[LabelKey, LabelValue]] = None
    matchExpressions: Optional[list[Expression]] = None


class PortProtocol(Shape):
    """A port, or the range from it to endPort."""

    port: Annotated[int, BeforeValidator(_port)]
    endPort: Optional[Annotated[int, Field(ge=1, le=MAX_PORT)]] = None
    protocol: Literal["TCP", "UDP", "SCTP", "ANY"] = "ANY"

    @model_validator(mode="after")
    def _range_ascends(self) -> Self:
        if self.endPort is not None and not 0 < self.port <= self.endPort:
            raise PydanticCustomError(
                "range", f"the range {self.port}-{self.endPort} does not ascend from a real port"
            )
        return self


NAMED = ("kafka",)
"""Parsers whose rules may also stand under their own name, without an l7proto."""


_ALLOW_ALL = "; to allow (and log) everything write {}: [{{}}]"


def _not_empty(value: Any, info: ValidationInfo) -> Any:
    if value is None or value == []:
        # Everything is allowed where somebody wrote so, not where a file was cut.
        raise ValueError(f"has no rules{_ALLOW_ALL.format(info.field_name)}")
    return value


Items = Annotated[list[dict[str, str | None]] | None, BeforeValidator(_not_empty)]
"""L7 rules; at least one."""


class L7Rules(Shape):
    """What may be said on the ports, in the words of one parser."""

    l7proto: Optional[Annotated[str, Field(min_length=1)]] = None
    l7: Items = None
    kafka: Items = None

    @property
    def field(self) -> str:
        """The field that says which parser: l7proto, or one of NAMED; empty if none does."""
        return next((name for name in ("l7proto", *NAMED) if getattr(self, name) is not None), "")

    @model_validator(mode="after")
    def _has_one_proto(self) -> Self:
        if self.l7 is not None and self.l7proto is None:
            raise PydanticCustomError("l7proto", "l7 needs an l7proto that says which parser")
        if self.l7proto is not None and self.l7 is None:
            raise PydanticCustomError("l7", f"l7proto has no l7 rules{_ALLOW_ALL.format('l7')}")
        for name in NAMED:
            if self.field != name and getattr(self, name) is not None:
                raise PydanticCustomError("l7proto", f"{name} rules cannot stand beside others")
        return self


class PortRule(Shape):
    """One toPorts item of an allow rule."""

    ports: Annotated[list[PortProtocol], Field(min_length=1, max_length=MAX_PORTS)]
    rules: Optional[L7Rules] = None

    @model_validator(mode="after")
    def _l7_fits(self) -> Self:
        if self.rules is None or not self.rules.field:
            return self
        for port in self.ports:
            if port.port == 0:
                raise PydanticCustomError("l7port", "L7 rules need a port; 0 stands for any")
            if port.protocol != "TCP":
                raise PydanticCustomError(
                    "l7protocol",
                    f"L7 rules are for protocol TCP only, and port {port.port} has {port.protocol}",
                )
        return self


class PortDenyRule(Shape):
    """One toPorts item of a deny rule."""

    ports: Annotated[list[PortProtocol], Field(min_length=1, max_length=MAX_PORTS)]
    rules: Annotated[None, BeforeValidator(_no_l7)] = None


class IngressRule(Shape):
    """Who may come in, and to which ports."""

    fromEndpoints: Optional[list[EndpointSelector]] = None
    toPorts: Optional[list[PortRule]] = None


class EgressRule(Shape):
    """To whom one may go, and to which ports."""

    toEndpoints: Optional[list[EndpointSelector]] = None
    toPorts: Optional[list[PortRule]] = None


class IngressDenyRule(Shape):
    """Who may not come in, and to which ports."""

    fromEndpoints: Optional[list[EndpointSelector]] = None
    toPorts: Optional[list[PortDenyRule]] = None


class EgressDenyRule(Shape):
    """To whom one may not go, and to which ports."""

    toEndpoints: Optional[list[EndpointSelector]] = None
    toPorts: Optional[list[PortDenyRule]] = None


AnyRule = IngressRule | EgressRule | IngressDenyRule | EgressDenyRule


class SpecLabel(Shape):
    """A label of the rule itself, for finding it again."""

    key: LabelKey
    value: Optional[LabelValue] = None
    source: Optional[str] = None


class Spec(Shape):
    """One rule: whom it is about, and what these may do."""

    endpointSelector: EndpointSelector
    ingress: Optional[list[IngressRule]] = None
    ingressDeny: Optional[list[IngressDenyRule]] = None
    egress: Optional[list[EgressRule]] = None
    egressDeny: Optional[list[EgressDenyRule]] = None
    description: Optional[str] = None
    labels: Optional[list[SpecLabel]] = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.ingress or self.ingressDeny or self.egress or self.egressDeny):
            raise PydanticCustomError(
                "rules", "needs a rule in ingress, egress, ingressDeny or egressDeny"
            )
        return self


class Metadata(Shape):
    """The document's name; what else kubectl writes here is accepted and unused."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    labels: Optional[dict[str, str]] = None
    annotations: Optional[dict[str, str]] = None
    creationTimestamp: Any = None
    generation: Any = None
    managedFields: Any = None
    resourceVersion: Any = None
    uid: Any = None


class CiliumNetworkPolicy(Shape):
    """A whole document. `status` is a cluster's own report and says nothing here."""

    apiVersion: Literal["cilium.io/v2"] = "cilium.io/v2"
    kind: Literal["CiliumNetworkPolicy"]
    metadata: Metadata
    summary: Optional[str] = None
    spec: Optional[Spec] = None
    specs: Optional[Annotated[list[Spec], BeforeValidator(_one_or_many)]] = None
    status: Any = None

    @model_validator(mode="after")
    def _has_spec(self) -> Self:
        if self.spec is None and not self.specs:
            raise PydanticCustomError("spec", "needs a 'spec' or 'specs'")
        return self


FIELDS: Fields = {
    "": CiliumNetworkPolicy,
    "metadata": Metadata,
    "spec": Spec,
    "specs": Spec,
    "endpointSelector": EndpointSelector,
    "ingress": IngressRule,
    "egress": EgressRule,
    "ingressDeny": IngressDenyRule,
    "egressDeny": EgressDenyRule,
    "fromEndpoints": EndpointSelector,
    "toEndpoints": EndpointSelector,
    "matchExpressions": Expression,
    "toPorts": (PortRule, PortDenyRule),
    "ports": PortProtocol,
    "rules": L7Rules,
}
"""Which shape stands under which field."""
