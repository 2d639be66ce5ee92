"""Kubernetes' own NetworkPolicy (``networking.k8s.io/v1``) to policies.

It can say less than Cilium's, and says some of it the other way round: a rule
without peers is about anybody, and one without anything allows everything.  Its
selectors are about labels from Kubernetes (``k8s:``) alone.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from xds.cilium import cidr, namespace_requirement, policy_labels
from xds.labels import (
    K8S,
    NAMESPACE_LABELS,
    POD_NAMESPACE,
    Operator,
    Requirement,
    Selector,
    requirement,
)
from xds.model import Metadata
from xds.model_peers import (
    CIDRRule,
    EndpointSelector,
    Expression,
    PortProtocol,
    port_of,
)
from xds.policy import Peer, Policy, Port, PortRule, Rule
from xds.shape import Fields, Many, Optional, Shape, check
from xds.source import Document, Origin


class NetworkPolicyPeer(Shape):
    """Pods by their labels and those of their namespace, or addresses outside."""

    podSelector: Optional[EndpointSelector] = None
    namespaceSelector: Optional[EndpointSelector] = None
    ipBlock: Optional[CIDRRule] = None

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        pods = self.podSelector is not None or self.namespaceSelector is not None
        if pods == (self.ipBlock is not None):
            raise PydanticCustomError(
                "peer", "needs either podSelector and/or namespaceSelector, or ipBlock"
            )
        return self


class NetworkPolicyPort(PortProtocol):
    """A port, a range, or every port of a protocol."""

    port: Annotated[int | str, BeforeValidator(port_of, json_schema_input_type=int | str)] = 0
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


_Ports = Optional[Annotated[list[NetworkPolicyPort], Field(max_length=100)]]
_Peers = Optional[Many[NetworkPolicyPeer]]


class IngressRule(Shape):
    """Who may come in, and to which ports."""

    from_: Annotated[_Peers, Field(alias="from")] = None
    ports: _Ports = None

    @property
    def peers(self) -> list[NetworkPolicyPeer] | None:
        return self.from_


class EgressRule(Shape):
    """To whom one may go, and to which ports."""

    to: _Peers = None
    ports: _Ports = None

    @property
    def peers(self) -> list[NetworkPolicyPeer] | None:
        return self.to


class NetworkPolicySpec(Shape):
    """Whom it is about, and what these may do."""

    podSelector: EndpointSelector
    ingress: Optional[Many[IngressRule]] = None
    egress: Optional[Many[EgressRule]] = None
    policyTypes: Optional[Many[Literal["Ingress", "Egress"]]] = None

    @property
    def types(self) -> frozenset[str]:
        """The directions that become white lists."""
        if self.policyTypes:
            return frozenset(self.policyTypes)
        return frozenset(("Ingress", "Egress") if self.egress else ("Ingress",))

    @model_validator(mode="after")
    def _rules_are_of_its_types(self) -> Self:
        for direction in ("Ingress", "Egress"):
            if getattr(self, direction.lower()) and direction not in self.types:
                raise PydanticCustomError(
                    "types",
                    f"has {direction.lower()} rules, and policyTypes without {direction}, which "
                    "makes Kubernetes ignore them; add the type or take the rules out",
                )
        return self


class NetworkPolicy(Shape):
    """A whole document."""

    apiVersion: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: NetworkPolicySpec
    status: object = None


FIELDS: Fields = {
    "": NetworkPolicy,
    "metadata": Metadata,
    "spec": NetworkPolicySpec,
    "ingress": IngressRule,
    "egress": EgressRule,
    "from": NetworkPolicyPeer,
    "to": NetworkPolicyPeer,
    "podSelector": EndpointSelector,
    "namespaceSelector": EndpointSelector,
    "matchExpressions": Expression,
    "ipBlock": CIDRRule,
    "ports": NetworkPolicyPort,
}
"""Which shape stands under which field."""


def network_policy(document: Document) -> list[Policy]:
    """The policy of a NetworkPolicy. Raises DocumentError."""
    parsed = check(NetworkPolicy, document, FIELDS)
    metadata, spec = parsed.metadata, parsed.spec
    namespace = metadata.namespace or ""
    origin = Origin(document, ("spec",))
    return [
        Policy(
            name=metadata.name,
            namespace=namespace,
            kind=parsed.kind,
            subject=_pods(spec.podSelector, namespace),
            ingress=tuple(
                _rule(item, "from", namespace, origin.below("ingress", index))
                for index, item in enumerate(spec.ingress or ())
            ),
            egress=tuple(
                _rule(item, "to", namespace, origin.below("egress", index))
                for index, item in enumerate(spec.egress or ())
            ),
            default_deny_ingress="Ingress" in spec.types,
            default_deny_egress="Egress" in spec.types,
            audit=metadata.audit,
            labels=policy_labels(parsed.kind, metadata.name, namespace),
            origin=origin,
        )
    ]


def _rule(item: IngressRule | EgressRule, field: str, namespace: str, origin: Origin) -> Rule:
    ports = tuple(Port(p.port, p.endPort or 0, p.protocol) for p in item.ports or ())
    return Rule(
        deny=False,
        peers=tuple(_peer(peer, namespace) for peer in item.peers) if item.peers else None,
        ports=(PortRule(ports, None),) if ports else None,
        origin=origin,
        peer_field=field if item.peers else "",
    )


def _peer(peer: NetworkPolicyPeer, namespace: str) -> Peer:
    if peer.ipBlock is not None:
        return cidr(peer.ipBlock.cidr, peer.ipBlock.except_ or ())
    pods = peer.podSelector or EndpointSelector()
    if peer.namespaceSelector is None:
        return _pods(pods, namespace)
    needs = _requirements(peer.namespaceSelector, f"{NAMESPACE_LABELS}.")
    return _pods(pods, "").also(*needs, requirement(f"{K8S}:{POD_NAMESPACE}", Operator.EXISTS))


def _pods(selector: EndpointSelector, namespace: str) -> Selector:
    found = Selector(frozenset(_requirements(selector, "")))
    return found.also(namespace_requirement(namespace)) if namespace else found


def _requirements(selector: EndpointSelector, prefix: str) -> list[Requirement]:
    """What `selector` asks of the labels whose keys have `prefix` before theirs."""
    needs = [
        Requirement(K8S, prefix + key, Operator.IN, frozenset([value]))
        for key, value in (selector.matchLabels or {}).items()
    ]
    needs += [
        Requirement(K8S, prefix + e.key, Operator(e.operator), frozenset(e.values or ()))
        for e in selector.matchExpressions or ()
    ]
    return needs
