"""Policies and endpoints to the resources that the data path enforces.

Selectors become sorted lists of identities, once per selector; rules become the
port entries of one direction, once per set of labels; endpoints with the same
labels share them.  Everything is deterministic, so that what did not change has
the same bytes.

Two traps of the wire format, both of which mean "anybody" where nobody was
meant: an empty ``remote_policies``, and a port entry without rules.  So a rule
that selects no identity is left out, and a port without rules has no entry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from proxylib.proto import npds_pb2 as npds
from xds.endpoints import Endpoint
from xds.identity import Identities, reserved_labels
from xds.labels import LabelSet, Selector
from xds.policy import L7, L7Pairs, Policy, Rule
from xds.selection import Selection
from xds.source import DocumentError, Problem
from xds.yamltext import MAX_PROBLEMS

NETWORK_POLICY = "type.googleapis.com/cilium.NetworkPolicy"
NETWORK_POLICY_HOSTS = "type.googleapis.com/cilium.NetworkPolicyHosts"

_WIRE_PROTOCOLS: Mapping[str, tuple[npds.Protocol.ValueType, ...]] = {
    "TCP": (npds.TCP,),
    "UDP": (npds.UDP,),
    "ANY": (npds.TCP, npds.UDP),
    # Never redirected to a proxy, and not expressible in a NetworkPolicy.
    "SCTP": (),
}

Resources = dict[str, tuple[bytes, ...]]
"""Serialized resources by type URL, in a fixed order."""

EntryKey = tuple[int, int, npds.Protocol.ValueType]
RuleKey = tuple[bool, tuple[int, ...], str]
"""(deny, remotes, l7proto): rules that agree in these are one on the wire."""


def compile_resources(
    policies: Sequence[Policy],
    endpoints: Sequence[Endpoint],
    identities: Identities,
    endpoint_id: Callable[[Endpoint], int],
) -> Resources:
    """NetworkPolicy and NetworkPolicyHosts resources for `endpoints`.

    An endpoint that no policy selects may do and receive everything.  Raises
    DocumentError if two rules want different parsers on one port of an endpoint.
    """
    users = identities.number_all(endpoint.labels for endpoint in endpoints)
    select = Selection(reserved_labels() | users)
    problems = list(islice(_not_enforced(policies), MAX_PROBLEMS))
    for endpoint in endpoints:
        if endpoint.place and (endpoint.enforcement != "default" or endpoint.audit):
            what = "an endpoint's enforcement or audit mode"
            problems.append(Problem(endpoint.place, _NOT_ENFORCED.format(what)))
    if problems:
        raise DocumentError(problems)
    compiled = {}
    subjects: dict[int, list[Policy]] = {number: [] for number in users}
    for policy in policies:
        for number in select(policy.subject) & users.keys():
            subjects[number].append(policy)
    for number, subject in subjects.items():
        problems += islice(_conflicts(subject), MAX_PROBLEMS)
        compiled[users[number]] = npds.NetworkPolicy(
            ingress_per_port_policies=_direction(subject, True, select),
            egress_per_port_policies=_direction(subject, False, select),
        )
    if problems:
        raise DocumentError(dict.fromkeys(problems))
    return {
        NETWORK_POLICY: tuple(_network_policy(e, endpoint_id(e), compiled) for e in endpoints),
        NETWORK_POLICY_HOSTS: tuple(_hosts(endpoints, identities)),
    }


def _network_policy(
    endpoint: Endpoint, number: int, compiled: Mapping[LabelSet, npds.NetworkPolicy]
) -> bytes:
    policy = npds.NetworkPolicy(endpoint_ips=endpoint.addresses, endpoint_id=number)
    policy.MergeFrom(compiled[endpoint.labels])
    return policy.SerializeToString(deterministic=True)


def _hosts(endpoints: Iterable[Endpoint], identities: Identities) -> Iterable[bytes]:
    addresses: dict[int, list[str]] = defaultdict(list)
    for endpoint in endpoints:
        addresses[identities.number(endpoint.labels)] += endpoint.addresses
    for number in sorted(addresses):
        hosts = npds.NetworkPolicyHosts(policy=number, host_addresses=sorted(addresses[number]))
        yield hosts.SerializeToString(deterministic=True)


def _direction(
    subject: Sequence[Policy], ingress: bool, select: Selection
) -> list[npds.PortNetworkPolicy]:
    rules = [rule for policy in subject for rule in policy.rules(ingress=ingress)]
    if not rules:
        return [npds.PortNetworkPolicy(protocol=p) for p in _WIRE_PROTOCOLS["ANY"]]
    entries: dict[EntryKey, dict[RuleKey, list[L7Pairs] | None]] = defaultdict(dict)
    for rule in rules:
        remotes = _remotes(rule, select)
        if remotes is None:
            continue
        for port, end_port, protocol_name, l7 in _ports(rule):
            key = (rule.deny, remotes, l7.proto if l7 is not None else "")
            for protocol in _WIRE_PROTOCOLS[protocol_name]:
                entry = entries[port, end_port, protocol]
                entry[key] = _merge_l7(entry.get(key, []), l7)
    return [_entry(key, rules) for key, rules in sorted(entries.items(), key=lambda e: e[0])]


def _remotes(rule: Rule, select: Selection) -> tuple[int, ...] | None:
    """The identities that `rule` is about: () for anybody, None for nobody."""
    if rule.empty:
        return None
    if rule.peers is None:
        return ()
    selectors = (peer for peer in rule.peers if isinstance(peer, Selector))
    selected = frozenset[int]().union(*map(select, selectors))
    return tuple(sorted(selected)) or None


def _ports(rule: Rule) -> Iterator[tuple[int, int, str, L7 | None]]:
    """(first port, last port or 0, protocol, L7 rules) of what `rule` is about."""
    if rule.ports is None:
        yield 0, 0, "ANY", None
    for port_rule in rule.ports or ():
        for port in port_rule.ports:
            if isinstance(port.port, int):
                yield port.port, port.end_port, port.protocol, port_rule.l7


def _not_enforced(policies: Iterable[Policy]) -> Iterator[Problem]:
    """What documents can say and this compiler cannot put in force."""
    for policy in policies:
        if policy.audit:
            yield Problem(policy.origin.place, _NOT_ENFORCED.format("audit"))
        for ingress in (True, False):
            rules = policy.rules(ingress=ingress)
            if policy.default_deny(ingress=ingress) != bool(rules):
                yield Problem(policy.origin.place, _NOT_ENFORCED.format("enableDefaultDeny"))
            for rule in rules:
                for what in _beyond(rule):
                    yield Problem(rule.origin.place, _NOT_ENFORCED.format(what))


_NOT_ENFORCED = "{} is not enforced in this version; the policy is refused, not enforced in part"


def _beyond(rule: Rule) -> Iterator[str]:
    if rule.requires:
        yield "a requirement"
    for peer in rule.peers or ():
        if not isinstance(peer, Selector):
            yield type(peer).__name__
    for entry in rule.ports or ():
        for port in entry.ports:
            if isinstance(port.port, str):
                yield f"the port name {port.port}"
        if entry.terminating_tls or entry.originating_tls or entry.server_names or entry.listener:
            yield "TLS or a listener"
        if entry.l7 is not None and entry.l7.proto == "dns":
            yield "dns"


def _merge_l7(so_far: list[L7Pairs] | None, l7: L7 | None) -> list[L7Pairs] | None:
    """The L7 rules of rules that are one on the wire; None once any of them allows all."""
    if so_far is None or l7 is None or not l7.rules:
        return None
    so_far.extend(l7.rules)
    return so_far


def _entry(key: EntryKey, rules: Mapping[RuleKey, list[L7Pairs] | None]) -> npds.PortNetworkPolicy:
    port, end_port, protocol = key
    return npds.PortNetworkPolicy(
        port=port,
        end_port=end_port,
        protocol=protocol,
        rules=[_rule(key, rules[key]) for key in sorted(rules)],
    )


def _rule(key: RuleKey, pairs: Sequence[L7Pairs] | None) -> npds.PortNetworkPolicyRule:
    deny, remotes, proto = key
    rule = npds.PortNetworkPolicyRule(remote_policies=remotes, l7_proto=proto)
    if deny:
        rule.deny = True
    for item in dict.fromkeys(pairs or ()):
        rule.l7_rules.l7_allow_rules.add(rule=dict(item))
    return rule


def _conflicts(subject: Sequence[Policy]) -> Iterator[Problem]:
    """Ports on which two rules want different parsers, whomever these are about."""
    for ingress in (True, False):
        wanted = [
            (port, end_port or port, l7)
            for policy in subject
            for rule in policy.rules(ingress=ingress)
            for port, end_port, _, l7 in _ports(rule)
            if l7 is not None
        ]
        # Of each parser, the rule that reaches furthest among those seen.
        reach: dict[str, tuple[int, L7]] = {}
        for first, last, l7 in sorted(wanted, key=lambda item: item[:2]):
            for end, other in reach.values():
                if other.proto != l7.proto and end >= first:
                    yield Problem(
                        l7.origin.place,
                        f"port {first} has l7proto {l7.proto!r} here and {other.proto!r} at "
                        f"{other.origin.place}; one port of an endpoint can have one parser",
                    )
            if l7.proto not in reach or reach[l7.proto][0] < last:
                reach[l7.proto] = (last, l7)
