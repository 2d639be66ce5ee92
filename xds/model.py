"""The shape of Cilium's policy documents, field by field as ``cilium.io/v2`` has it.

`REFUSED` names the fields that Cilium has and that cannot be enforced here, with
the reason.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from xds.model_http import HttpHeaderMatch, HttpRule
from xds.model_peers import (
    CIDRRule,
    EndpointSelector,
    Entity,
    Expression,
    FQDNSelector,
    IcmpField,
    IcmpRule,
    K8sService,
    K8sServiceSelector,
    KubernetesName,
    PortProtocol,
    Prefix,
    Service,
)
from xds.model_ports import (
    EnvoyConfig,
    L7Rules,
    Listener,
    PortDenyRule,
    PortRule,
    Secret,
    TLSContext,
)
from xds.shape import Fields, LabelKey, LabelValue, Many, Optional, Shape

_CLOUD = "needs a cloud provider's API to look up its groups"

REFUSED = {
    "fromGroups": _CLOUD,
    "toGroups": _CLOUD,
    "cidrGroupRef": "CIDR groups are not known here; write the CIDRs",
    "cidrGroupSelector": "CIDR groups are not known here; write the CIDRs",
}
"""Fields of Cilium's documents that cannot be enforced, and why."""


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


def _disabled(value: Any) -> Any:
    if value in ("required", "test-always-fail"):
        raise ValueError(
            f"{value!r} cannot be enforced: there is no mutual authentication of workloads here"
        )
    return value


AUDIT = "proxylib.io/audit"
"""The annotation of a policy that is to be watched, not enforced: "true" or "false"."""


def _annotations(found: dict[str, str] | None) -> dict[str, str] | None:
    ours = {key: text for key, text in (found or {}).items() if key.startswith("proxylib.io/")}
    for key, text in ours.items():
        if key != AUDIT:
            raise ValueError(f"unknown annotation {key!r}; known: {AUDIT}")
        if text not in ("true", "false"):
            raise ValueError(f'{AUDIT} must be "true" or "false", not {text!r}')
    return found


class Authentication(Shape):
    """Mutual authentication of the workloads, which only ``disabled`` can be here."""

    mode: Annotated[Literal["disabled"], BeforeValidator(_disabled)]


class AnyRule(Shape):
    """What the four kinds of rule share. PEERS: the fields that name peers, one at a time."""

    PEERS: ClassVar[tuple[str, ...]] = ()
    REQUIRES: ClassVar[str] = ""

    icmps: Optional[Annotated[list[IcmpRule], Field(max_length=40)]] = None
    authentication: Optional[Authentication] = None

    @model_validator(mode="after")
    def _one_kind_of_peer(self) -> Self:
        given = [name for name in self.PEERS if getattr(self, name)]
        if len(given) > 1:
            raise PydanticCustomError(
                "peers", f"{' and '.join(given)} cannot stand in one rule; write a rule for each"
            )
        if self.icmps and getattr(self, "toPorts", None):
            raise PydanticCustomError(
                "icmps", "icmps and toPorts cannot stand in one rule; write a rule for each"
            )
        return self


class _Ingress(AnyRule):
    PEERS = ("fromEndpoints", "fromEntities", "fromCIDR", "fromCIDRSet", "fromNodes")
    REQUIRES = "fromRequires"

    fromEndpoints: Optional[Many[EndpointSelector]] = None
    fromRequires: Optional[Many[EndpointSelector]] = None
    fromEntities: Optional[Many[Entity]] = None
    fromCIDR: Optional[Many[Prefix]] = None
    fromCIDRSet: Optional[Many[CIDRRule]] = None
    fromNodes: Optional[Many[EndpointSelector]] = None


class _Egress(AnyRule):
    PEERS: ClassVar[tuple[str, ...]] = (
        "toEndpoints",
        "toEntities",
        "toCIDR",
        "toCIDRSet",
        "toNodes",
        "toServices",
    )
    REQUIRES = "toRequires"

    toEndpoints: Optional[Many[EndpointSelector]] = None
    toRequires: Optional[Many[EndpointSelector]] = None
    toEntities: Optional[Many[Entity]] = None
    toCIDR: Optional[Many[Prefix]] = None
    toCIDRSet: Optional[Many[CIDRRule]] = None
    toNodes: Optional[Many[EndpointSelector]] = None
    toServices: Optional[Many[Service]] = None


class IngressRule(_Ingress):
    """Who may come in, and to which ports."""

    toPorts: Optional[Many[PortRule]] = None


class EgressRule(_Egress):
    """To whom one may go, and to which ports."""

    PEERS = (*_Egress.PEERS, "toFQDNs")

    toFQDNs: Optional[Many[FQDNSelector]] = None
    toPorts: Optional[Many[PortRule]] = None


class IngressDenyRule(_Ingress):
    """Who may not come in, and to which ports."""

    toPorts: Optional[Many[PortDenyRule]] = None


class EgressDenyRule(_Egress):
    """To whom one may not go, and to which ports."""

    toPorts: Optional[Many[PortDenyRule]] = None


RULES = (IngressRule, EgressRule, IngressDenyRule, EgressDenyRule)


class SpecLabel(Shape):
    """A label of the rule itself, for finding it again."""

    key: LabelKey
    value: Optional[LabelValue] = None
    source: Optional[str] = None


class DefaultDeny(Shape):
    """Whether the directions become white lists; left out: if there is a rule in them."""

    ingress: Optional[bool] = None
    egress: Optional[bool] = None


class Log(Shape):
    """A text for people beside what the rule decides."""

    value: Optional[Annotated[str, Field(max_length=32)]] = None


class Spec(Shape):
    """One rule: whom it is about, and what these may do."""

    endpointSelector: Optional[EndpointSelector] = None
    nodeSelector: Optional[EndpointSelector] = None
    ingress: Optional[Many[IngressRule]] = None
    ingressDeny: Optional[Many[IngressDenyRule]] = None
    egress: Optional[Many[EgressRule]] = None
    egressDeny: Optional[Many[EgressDenyRule]] = None
    enableDefaultDeny: Optional[DefaultDeny] = None
    description: Optional[str] = None
    labels: Optional[Many[SpecLabel]] = None
    log: Optional[Log] = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if (self.endpointSelector is None) == (self.nodeSelector is None):
            raise PydanticCustomError(
                "subject", "needs either an endpointSelector or a nodeSelector"
            )
        closes = self.enableDefaultDeny or DefaultDeny()
        rules = self.ingress or self.ingressDeny or self.egress or self.egressDeny
        if not (rules or closes.ingress or closes.egress):
            raise PydanticCustomError(
                "rules", "needs a rule in ingress, egress, ingressDeny or egressDeny"
            )
        return self


class Metadata(Shape):
    """The document's name; what else kubectl writes here is accepted and unused."""

    name: KubernetesName
    namespace: Optional[KubernetesName] = None
    labels: Optional[dict[str, str]] = None
    annotations: Annotated[Optional[dict[str, str]], AfterValidator(_annotations)] = None
    creationTimestamp: Any = None
    generation: Any = None
    managedFields: Any = None
    resourceVersion: Any = None
    uid: Any = None

    @property
    def audit(self) -> bool:
        """True if the policy is to be watched, not enforced."""
        return (self.annotations or {}).get(AUDIT) == "true"


class _CiliumPolicy(Shape):
    """What the kinds share. `status` is a cluster's own report and says nothing here."""

    apiVersion: Literal["cilium.io/v2"] = "cilium.io/v2"
    metadata: Metadata
    summary: Optional[str] = None
    spec: Optional[Spec] = None
    specs: Optional[
        Annotated[
            Many[Spec], BeforeValidator(_one_or_many, json_schema_input_type=list[Spec] | Spec)
        ]
    ] = None
    status: Any = None

    @model_validator(mode="after")
    def _has_spec(self) -> Self:
        if self.spec is None and not self.specs:
            raise PydanticCustomError("spec", "needs a 'spec' or 'specs'")
        return self


class CiliumNetworkPolicy(_CiliumPolicy):
    """A policy of one namespace, or of all if it names none."""

    kind: Literal["CiliumNetworkPolicy"]

    @model_validator(mode="after")
    def _is_about_endpoints(self) -> Self:
        for spec in (self.spec, *(self.specs or ())):
            if spec is not None and spec.nodeSelector is not None:
                raise PydanticCustomError(
                    "nodes", "a nodeSelector needs kind: CiliumClusterwideNetworkPolicy"
                )
        return self


class CiliumClusterwideNetworkPolicy(_CiliumPolicy):
    """A policy of all namespaces, or of nodes."""

    kind: Literal["CiliumClusterwideNetworkPolicy"]

    @model_validator(mode="after")
    def _has_no_namespace(self) -> Self:
        if self.metadata.namespace is not None:
            raise PydanticCustomError("namespace", "a clusterwide policy has no namespace")
        return self


FIELDS: Fields = {
    "": CiliumNetworkPolicy,
    "metadata": Metadata,
    "spec": Spec,
    "specs": Spec,
    "endpointSelector": EndpointSelector,
    "nodeSelector": EndpointSelector,
    "ingress": IngressRule,
    "egress": EgressRule,
    "ingressDeny": IngressDenyRule,
    "egressDeny": EgressDenyRule,
    **dict.fromkeys(("fromEndpoints", "fromRequires", "fromNodes"), EndpointSelector),
    **dict.fromkeys(("toEndpoints", "toRequires", "toNodes"), EndpointSelector),
    "matchExpressions": Expression,
    "fromCIDRSet": CIDRRule,
    "toCIDRSet": CIDRRule,
    "toFQDNs": FQDNSelector,
    "toServices": Service,
    "k8sService": K8sService,
    "k8sServiceSelector": K8sServiceSelector,
    "icmps": IcmpRule,
    "fields": IcmpField,
    "authentication": Authentication,
    "enableDefaultDeny": DefaultDeny,
    "log": Log,
    "labels": SpecLabel,
    "toPorts": (PortRule, PortDenyRule),
    "ports": PortProtocol,
    "rules": L7Rules,
    "http": HttpRule,
    "headerMatches": HttpHeaderMatch,
    "dns": FQDNSelector,
    "terminatingTLS": TLSContext,
    "originatingTLS": TLSContext,
    "secret": Secret,
    "listener": Listener,
    "envoyConfig": EnvoyConfig,
}
"""Which shape stands under which field."""
