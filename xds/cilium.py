"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy to policies.

A policy with a namespace chooses endpoints of that namespace only, and so do its
peers' selectors that do not name a namespace themselves; a clusterwide one, and
one without a namespace, chooses everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_network
from itertools import islice
from typing import Any, Literal

from xds import model, model_peers, model_ports
from xds.entities import ENTITIES, reserved_selector
from xds.fqdn import Fqdn, match_name, match_pattern
from xds.l7rules import l7_problems
from xds.labels import (
    K8S,
    NAMESPACE_LABELS,
    POD_NAMESPACE,
    Label,
    Operator,
    Requirement,
    Selector,
    requirement,
)
from xds.model_http import HttpRule
from xds.policy import (
    L7,
    Cidr,
    Icmp,
    L7Pairs,
    Listener,
    Peer,
    Policy,
    Port,
    PortRule,
    Rule,
    Service,
    TLSContext,
)
from xds.shape import check
from xds.source import Document, DocumentError, Origin, Problem
from xds.yamltext import MAX_PROBLEMS, Path

_Model = model.CiliumNetworkPolicy | model.CiliumClusterwideNetworkPolicy
_RuleModel = model.IngressRule | model.EgressRule | model.IngressDenyRule | model.EgressDenyRule


def network_policy(document: Document) -> list[Policy]:
    """The policies of a CiliumNetworkPolicy. Raises DocumentError."""
    return _load(document, model.CiliumNetworkPolicy)


def clusterwide_policy(document: Document) -> list[Policy]:
    """The policies of a CiliumClusterwideNetworkPolicy. Raises DocumentError."""
    return _load(document, model.CiliumClusterwideNetworkPolicy)


def _load(document: Document, shape: type[_Model]) -> list[Policy]:
    problems: list[Problem] = []
    parsed: _Model | None = None
    try:
        parsed = check(shape, document, model.FIELDS, model.REFUSED)
    except DocumentError as error:
        problems += error.problems
    problems += islice(l7_problems(document), MAX_PROBLEMS)
    if problems or parsed is None:
        raise DocumentError(sorted(problems, key=lambda p: (p.place.line, p.place.column)))
    specs: list[tuple[model.Spec, Path]] = []
    if parsed.spec is not None:
        specs.append((parsed.spec, ("spec",)))
    single = isinstance(document.value["specs"], dict) if parsed.specs else False
    for index, spec in enumerate(parsed.specs or ()):
        specs.append((spec, ("specs",) if single else ("specs", index)))
    return [_policy(parsed, spec, Origin(document, path)) for spec, path in specs]


def _policy(parsed: _Model, spec: model.Spec, origin: Origin) -> Policy:
    metadata = parsed.metadata
    namespace = metadata.namespace or ""

    def rules(direction: str) -> tuple[Rule, ...]:
        fields = ((direction, False), (f"{direction}Deny", True))
        return tuple(
            _rule(item, namespace, deny, origin.below(field, index))
            for field, deny in fields
            for index, item in enumerate(getattr(spec, field) or ())
        )

    ingress, egress = rules("ingress"), rules("egress")
    closes = spec.enableDefaultDeny or model.DefaultDeny()
    return Policy(
        name=metadata.name,
        namespace=namespace,
        kind=parsed.kind,
        subject=_subject(spec, namespace, origin),
        ingress=ingress,
        egress=egress,
        default_deny_ingress=bool(ingress) if closes.ingress is None else closes.ingress,
        default_deny_egress=bool(egress) if closes.egress is None else closes.egress,
        audit=metadata.audit,
        labels=policy_labels(parsed.kind, metadata.name, namespace, _spec_labels(spec)),
        description=spec.description or "",
        origin=origin,
    )


def policy_labels(
    kind: str, name: str, namespace: str, own: Iterable[Label] = ()
) -> tuple[Label, ...]:
    """The labels by which a policy is found: its own, and where it comes from."""
    derived = {"derived-from": kind, "name": name, "namespace": namespace}
    return (
        *own,
        *(
            Label(f"io.cilium.k8s.policy.{key}", value, K8S)
            for key, value in derived.items()
            if value
        ),
    )


def _spec_labels(spec: model.Spec) -> Iterator[Label]:
    for item in spec.labels or ():
        yield Label(item.key, item.value or "", item.source or "unspec")


def _subject(spec: model.Spec, namespace: str, origin: Origin) -> Selector:
    if spec.nodeSelector is not None:
        return _node_selector(spec.nodeSelector, "host")
    assert spec.endpointSelector is not None  # the shape says so
    subject = selector(spec.endpointSelector)
    if not namespace or subject.names_reserved:
        return subject
    own = namespace_requirement(namespace)
    for need in subject.requirements:
        if need.key == POD_NAMESPACE and need != own and need.values != own.values:
            message = f"selects another namespace than the policy's own, {namespace!r}: {need}"
            raise DocumentError([origin.document.problem((*origin.path, _SUBJECT), message)])
    return subject.also(own)


_SUBJECT = "endpointSelector"


def _rule(item: _RuleModel, namespace: str, deny: bool, origin: Origin) -> Rule:
    peers: tuple[Peer, ...] | None = None
    given = [field for field in item.PEERS if getattr(item, field) is not None]
    # At most one has items; if none has, the rule is about nobody.
    field = next((field for field in given if getattr(item, field)), given[0] if given else "")
    if field:
        peers = _peers(field, getattr(item, field), namespace)
    requires = tuple(scoped(s, namespace) for s in getattr(item, item.REQUIRES) or ())
    entries: Sequence[model_ports.PortRule | model_ports.PortDenyRule] = item.toPorts or ()
    ports = tuple(
        _port_rule(entry, origin.below("toPorts", index)) for index, entry in enumerate(entries)
    )
    icmps = tuple(Icmp(f.family, f.number) for rule in item.icmps or () for f in rule.fields)
    if not (given or ports or icmps):
        peers = ()
    return Rule(
        deny=deny,
        peers=peers,
        ports=ports if ports or icmps else None,
        origin=origin,
        peer_field=field,
        requires=requires,
        icmps=icmps,
    )


def _peers(field: str, items: Sequence[Any], namespace: str) -> tuple[Peer, ...] | None:
    kind = field.removeprefix("from").removeprefix("to")
    if kind == "Entities":
        selected = [ENTITIES[name] for name in items]
        if None in selected:
            return None
        return tuple(dict.fromkeys(peer for peers in selected for peer in peers or ()))
    return tuple(_PEERS[kind](item, namespace) for item in items)


def scoped(item: model_peers.EndpointSelector, namespace: str) -> Selector:
    """The selector `item`, of `namespace` unless it names one (or reserved labels)."""
    found = selector(item)
    if not namespace or found.names_reserved or found.names(POD_NAMESPACE):
        return found
    if any(r.key.startswith(f"{NAMESPACE_LABELS}.") for r in found.requirements):
        return found.also(requirement(f"{K8S}:{POD_NAMESPACE}", Operator.EXISTS))
    return found.also(namespace_requirement(namespace))


def namespace_requirement(namespace: str) -> Requirement:
    """That the endpoint is of `namespace`."""
    return requirement(f"{K8S}:{POD_NAMESPACE}", Operator.IN, [namespace])


def _node_selector(item: model_peers.EndpointSelector, name: str) -> Selector:
    return selector(item).also(*reserved_selector(name).requirements)


def _service(item: model_peers.Service, namespace: str) -> Service:
    if item.k8sService is not None:
        where = item.k8sService.namespace or namespace
        return Service(name=item.k8sService.serviceName, namespace=where)
    assert item.k8sServiceSelector is not None  # the shape says so
    where = item.k8sServiceSelector.namespace or ""
    return Service(namespace=where, selector=selector(item.k8sServiceSelector.selector))


def _fqdn(item: model_peers.FQDNSelector) -> Fqdn:
    if item.matchName is not None:
        return match_name(item.matchName)
    return match_pattern(item.matchPattern or "")


def cidr(prefix: str, excepts: Iterable[str] = ()) -> Cidr:
    """The peer of a CIDR that the shape has checked."""
    return Cidr(ip_network(prefix), tuple(map(ip_network, excepts)))


_PEERS: dict[str, Callable[[Any, str], Peer]] = {
    "Endpoints": scoped,
    "CIDR": lambda item, _: cidr(item),
    "CIDRSet": lambda item, _: cidr(item.cidr, item.except_ or ()),
    "Nodes": lambda item, _: _node_selector(item, "remote-node"),
    "Services": _service,
    "FQDNs": lambda item, _: _fqdn(item),
}
"""How to make a peer of each field's items, given the policy's namespace."""


def _port_rule(entry: model_ports.PortRule | model_ports.PortDenyRule, origin: Origin) -> PortRule:
    ports = tuple(Port(p.port, p.endPort or 0, p.protocol) for p in entry.ports)
    if isinstance(entry, model_ports.PortDenyRule):
        return PortRule(ports, None)
    return PortRule(
        ports,
        _l7(entry.rules, origin.below("rules")),
        terminating_tls=_tls(entry.terminatingTLS),
        originating_tls=_tls(entry.originatingTLS),
        server_names=tuple(entry.serverNames or ()),
        listener=_listener(entry.listener),
    )


def _l7(rules: model_ports.L7Rules | None, origin: Origin) -> L7 | None:
    if rules is None or not rules.field:
        return None
    items = "l7" if rules.field == "l7proto" else rules.field
    place = origin.below(rules.field)
    pairs = tuple(map(_pairs, getattr(rules, items) or ()))
    return L7(rules.l7proto or rules.field, pairs, place, origin.below(items))


def _pairs(item: dict[str, str | None] | model_peers.FQDNSelector | HttpRule) -> L7Pairs:
    if isinstance(item, HttpRule):
        return tuple(item.pairs())
    if isinstance(item, model_peers.FQDNSelector):
        name: Literal["matchName", "matchPattern"]
        name = "matchName" if item.matchName is not None else "matchPattern"
        return ((name, _fqdn(item).text),)
    # A key without a value, as in `- command:`, asks nothing of it.
    return tuple((key, value or "") for key, value in item.items())


def _tls(item: model_ports.TLSContext | None) -> TLSContext | None:
    if item is None:
        return None
    return TLSContext(
        namespace=item.secret.namespace or "",
        secret=item.secret.name,
        trusted_ca=item.trustedCA or "",
        certificate=item.certificate or "",
        private_key=item.privateKey or "",
    )


def _listener(item: model_ports.Listener | None) -> Listener | None:
    if item is None:
        return None
    return Listener(item.envoyConfig.kind, item.envoyConfig.name, item.name, item.priority)


def selector(item: model_peers.EndpointSelector) -> Selector:
    """The selector of matchLabels and matchExpressions."""
    requirements = [
        requirement(key, Operator.IN, [value]) for key, value in (item.matchLabels or {}).items()
    ]
    requirements += [
        requirement(e.key, Operator(e.operator), e.values or ())
        for e in item.matchExpressions or ()
    ]
    return Selector(frozenset(requirements))
