"""Warnings: what is legal in a policy and probably not what its author meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface
from itertools import chain, islice

from proxylib.errors import PolicyError
from proxylib.rules import Regex
from xds.endpoints import Endpoint
from xds.fqdn import Fqdn
from xds.l7rules import find_parser
from xds.labels import ANY, POD_NAMESPACE, RESERVED, Label, Operator, Requirement, Selector
from xds.policy import L7, Cidr, Peer, Policy, Rule, Service
from xds.selection import Selection
from xds.services import ServiceTable
from xds.shadowing import shadowed
from xds.source import Origin, Problem
from xds.yamltext import MAX_PROBLEMS

_CLOSE = 0.8
"""How similar (difflib's ratio) a label must be to one that exists to be a likely typo."""

_MAX_AMONG = 1000
"""Most names that are compared with one that is not known; each takes some microseconds."""


@dataclass(frozen=True)
class _Known:
    """What there is, for policies to name."""

    nobody: bool
    select: Selection
    labels: Sequence[Label]
    ports: frozenset[str]
    addresses: Mapping[str, Endpoint]
    services: ServiceTable | None


def lint(
    policies: Sequence[Policy],
    endpoints: Sequence[Endpoint],
    services: ServiceTable | None = None,
) -> list[Problem]:
    """Warnings about `policies`, given the endpoints that there are; the first hundred.

    Without any endpoint nothing is said of whom selectors and names stand for.
    services: those that there are; None: nobody knows.
    """
    sets = dict.fromkeys(endpoint.labels for endpoint in endpoints)
    known = _Known(
        nobody=not endpoints,
        select=Selection(dict(enumerate(sets))),
        labels=sorted({label for labels in sets for label in labels}),
        ports=frozenset(port.name for endpoint in endpoints for port in endpoint.ports),
        addresses={address: endpoint for endpoint in endpoints for address in endpoint.addresses},
        services=services,
    )
    warnings = chain(
        (warning for policy in policies for warning in _policy(policy, known)),
        _names_never_learnt(policies),
        shadowed(policies),
    )
    first = islice(_distinct(warnings), MAX_PROBLEMS)
    return sorted(first, key=lambda p: (p.place.file, p.place.line, p.place.column))


def _distinct(problems: Iterable[Problem]) -> Iterator[Problem]:
    seen: set[Problem] = set()
    for problem in problems:
        if problem not in seen:
            seen.add(problem)
            yield problem


def _policy(policy: Policy, known: _Known) -> Iterator[Problem]:
    if not policy.subject.names_reserved:
        yield from _selector(policy.subject, _subject(policy), known)
    for rule in (*policy.ingress, *policy.egress):
        if rule.quarantined is not None:
            yield rule.quarantined
            continue
        yield from _rule(rule)
        if rule.peer_field.endswith(("Entities", "Nodes")):
            yield from _declared(rule, known)
            continue
        for index, peer in enumerate(rule.peers or ()):
            below = rule.origin.below(rule.peer_field, index)
            if rule.peer_field in ("from", "to") and isinstance(peer, Cidr):
                below = below.below("ipBlock")
            yield from _peer(peer, below, known)
        for index, selector in enumerate(rule.requires):
            origin = rule.origin.below(f"{_way(rule)}Requires", index)
            yield from _selector(selector, origin, known)
        for port, place in _port_names(rule):
            yield from _port_name(port, place, known)


def _subject(policy: Policy) -> Origin:
    field = "podSelector" if policy.kind == "NetworkPolicy" else "endpointSelector"
    return policy.origin.below(field)


def _peer(peer: Peer, origin: Origin, known: _Known) -> Iterator[Problem]:
    match peer:
        case Selector():
            yield from _selector(peer, origin, known)
        case Cidr():
            yield from _cidr(peer, origin, known)
        case Service():
            yield from _service(peer, origin, known)


def _declared(rule: Rule, known: _Known) -> Iterator[Problem]:
    """An entity that only labels in the endpoints file make of somebody, and nobody has."""
    for index, name in enumerate(
        rule.origin.document.at((*rule.origin.path, rule.peer_field)) or ()
    ):
        label = Label(str(name), source=RESERVED)
        if name in ("kube-apiserver", "ingress") and not known.nobody and label not in known.labels:
            place = rule.origin.below(rule.peer_field, index).place
            yield Problem(place, f"is nobody: no endpoint has the label reserved:{name}")


def _cidr(cidr: Cidr, origin: Origin, known: _Known) -> Iterator[Problem]:
    """Bits behind the mask; or a single address, an endpoint's: the rule is not about it."""
    written = origin.document.at(origin.path)
    text = str(written.get("cidr") if isinstance(written, dict) else written)
    if "/" in text and ip_interface(text).ip != cidr.prefix.network_address:
        yield Problem(
            origin.place, f"{text} has bits set behind its mask; it is {cidr.prefix} here"
        )
    endpoint = known.addresses.get(str(cidr.prefix.network_address))
    if cidr.prefix.num_addresses == 1 and endpoint is not None:
        message = f"is about nobody: {cidr.prefix.network_address} is an endpoint's"
        yield Problem(
            origin.place, f"{message} ({str(endpoint.labels) or 'no labels'}); select its labels"
        )


def _service(service: Service, origin: Origin, known: _Known) -> Iterator[Problem]:
    if known.nobody or known.services is None or known.services.resolve(service):
        return
    hint = _did_you_mean(service.name, known.services.names())
    yield Problem(origin.place, f"is about nobody: there is no {service}{hint}")


def _port_names(rule: Rule) -> Iterator[tuple[str, Origin]]:
    for index, entry in enumerate(rule.ports or ()):
        for number, port in enumerate(entry.ports):
            if isinstance(port.port, str):
                yield port.port, rule.origin.below("toPorts", index, "ports", number, "port")


def _port_name(name: str, origin: Origin, known: _Known) -> Iterator[Problem]:
    if not known.nobody and name not in known.ports:
        hint = _did_you_mean(name, known.ports)
        yield Problem(origin.place, f"no endpoint has a port called {name!r}{hint}")


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = _close(name, names)
    return f"; did you mean {close[0]!r}?" if close else ""


def _close(name: str, names: Iterable[str]) -> list[str]:
    """The one of `names` that is nearly `name`, if there is one."""
    among = sorted(set(names))[:_MAX_AMONG]
    return difflib.get_close_matches(name, among, n=1, cutoff=_CLOSE)


def _names_never_learnt(policies: Sequence[Policy]) -> Iterator[Problem]:
    """DNS names that stand for no address ever, as no rule shows answers to a DNS proxy."""
    rules = [rule for policy in policies for rule in policy.egress]
    if any(e.l7 is not None and e.l7.proto == "dns" for rule in rules for e in rule.ports or ()):
        return
    for rule in rules:
        if any(isinstance(peer, Fqdn) for peer in rule.peers or ()):
            yield Problem(
                rule.origin.below(rule.peer_field).place,
                "no rule has a DNS proxy look at the answers, so these names stand for no address; "
                "add a rule for the name server's port with dns: [{matchPattern: '*'}]",
            )


def _way(rule: Rule) -> str:
    """What the fields about a rule's peers begin with."""
    return "from" if "ingress" in str(rule.origin.path[-2]) else "to"


def _rule(rule: Rule) -> Iterator[Problem]:
    if rule.deny and rule.empty:
        message = "denies nobody; to deny everybody write an empty selector: [{}]"
        yield Problem(rule.origin.place, message)
    if rule.requires and rule.peers is None and not (rule.peer_field or rule.deny):
        way = _way(rule)
        message = (
            f"allows anybody, whoever meets {way}Requires or not; "
            f"did you mean {way}Endpoints: [{{}}] too?"
        )
        yield Problem(rule.origin.place, message)
    for port_rule in rule.ports or ():
        if port_rule.l7 is not None:
            yield from _l7(port_rule.l7)


def _l7(l7: L7) -> Iterator[Problem]:
    try:
        fields = find_parser(l7.proto).rule_class.fields
    except PolicyError:
        return  # dns; http where Envoy's own filter judges
    for index, pairs in enumerate(l7.rules):
        for key, value in pairs:
            if value and isinstance(fields.get(key), Regex) and (says := _OPEN[open_ends(value)]):
                message = f"the regex {value!r} {says} if it is to match the whole"
                yield Problem(l7.items.below(index, key).place, message)


_OPEN = {
    (False, False): "",
    (True, False): "allows any text before its match; start it with ^",
    (False, True): "allows any text after its match; end it with $",
    (True, True): "matches anywhere in the value; anchor it with ^ and $",
}
"""What to say of a regex that is open at its (start, end)."""


def open_ends(pattern: str) -> tuple[bool, bool]:
    """Whether an alternative of the RE2 `pattern` does not say where it (starts, ends).

    ``.*`` at an end says so too: what it lets through was written out.
    """
    parts = _alternatives(pattern)
    return (
        not all(part.startswith(("^", r"\A", ".*")) for part in parts),
        not all(part.endswith(("$", r"\z", ".*")) for part in parts),
    )


def _alternatives(pattern: str) -> list[str]:
    """The parts of `pattern` between ``|`` that stand in no group and no class."""
    parts, depth, in_class, escaped = [""], 0, False, False
    for char in pattern:
        if not escaped:
            if in_class:
                in_class = char != "]"
            elif char == "[":
                in_class = True
            elif char == "|" and depth == 0:
                parts.append("")
                continue
            depth += (char == "(") - (char == ")") if not in_class else 0
        escaped = char == "\\" and not escaped
        parts[-1] += char
    return parts


def _selector(selector: Selector, origin: Origin, known: _Known) -> Iterator[Problem]:
    if known.nobody or selector.names_reserved or known.select(selector):
        return
    hints = [hint for r in selector.requirements for hint in _hints(r, known.labels)]
    hint = f"; {'; '.join(sorted(hints))}" if hints else ""
    yield Problem(origin.place, f"selects no endpoint: {selector}{hint}")


def _hints(requirement: Requirement, known: Sequence[Label]) -> Iterator[str]:
    """Labels that exist and nearly are what `requirement` asks for."""
    if requirement.operator not in (Operator.IN, Operator.EXISTS):
        return
    there = {label.value: label for label in known if label.key == requirement.key}
    if not there and requirement.key == POD_NAMESPACE:
        yield "no endpoint has a namespace (namespace: in the endpoints file)"
    elif not there:
        keys = {label.key for label in known}
        for key in _close(requirement.key, keys):
            yield f"there is a label {key!r}, did you mean that?"
    for value in sorted(requirement.values & there.keys()):
        if requirement.source not in (ANY, there[value].source):
            yield f"there is {there[value]}, of another source"
    for value in sorted(requirement.values - there.keys()):
        for close in _close(value, there):
            yield f"there is {there[close]}, did you mean that?"
