"""What policies say to one endpoint: from rules to lines, and from lines to the wire.

A line says of some peers, on one port or range, whether they are denied, or what
they may say.  `Tables` are all lines that an endpoint's policies come to, each with
its peers still as selectors.  `Encoder` writes them as a cilium.NetworkPolicy, where
peers are numbers: what did not change since it wrote last, it does not write anew.

Two traps of the wire format, both of which mean "anybody" where nobody was meant:
an empty ``remote_policies``, and a port entry without rules.  So a line that is
about no identity is left out, and a port without lines has no entry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from proxylib.http import HttpRule
from proxylib.policy import HTTP
from proxylib.proto import npds_pb2 as npds
from xds.endpoints import Enforcement
from xds.labels import Requirement, Selector
from xds.policy import L7, Icmp, Listener, Peer, Policy, Port, Rule, TLSContext
from xds.source import Problem

NETWORK_POLICY = "type.googleapis.com/cilium.NetworkPolicy"
NETWORK_POLICY_HOSTS = "type.googleapis.com/cilium.NetworkPolicyHosts"

Resources: TypeAlias = dict[str, tuple[bytes, ...]]
"""Serialized resources by type URL, in a fixed order."""


class PortKey(NamedTuple):
    """Ports of one protocol: one, a range (end_port > 0), or every one (port 0).

    protocol: "" is every protocol there is. For ICMP and ICMPv6, port is 256 plus
    the message's type, so that type 0 is not every type.
    """

    protocol: str
    port: int
    end_port: int


EVERY_PORT = PortKey("", 0, 0)

ICMP_TYPE = 256
"""What is added to a type to be the `port` of a PortKey."""

_PROTOCOLS: Mapping[str, tuple[str, ...]] = {"ANY": ("TCP", "UDP", "SCTP")}
_ICMP = {"IPv4": "ICMP", "IPv6": "ICMPv6"}

_WIRE: Mapping[str, tuple[npds.Protocol.ValueType, ...]] = {
    "": (npds.TCP, npds.UDP),
    "TCP": (npds.TCP,),
    "UDP": (npds.UDP,),
}
"""Other protocols are never redirected to a proxy, and a NetworkPolicy has no name for them."""


class Target(NamedTuple):
    """Whom a line is about: `peers`, of whom only those count that call a port `named`.

    named: (name, protocol, port), if the line comes from a port by name of whoever is
    connected to.
    """

    peers: frozenset[Peer]
    named: tuple[str, str, int] | None = None


class Line(NamedTuple):
    """What is said of some peers on some port; lines that agree in all of it are one.

    target: None is anybody. proto: the parser, if L7 rules say which messages may pass.
    """

    deny: bool
    target: Target | None
    proto: str = ""
    listener: Listener | None = None
    server_names: tuple[str, ...] = ()
    terminating_tls: TLSContext | None = None
    originating_tls: TLSContext | None = None


ALLOW_ALL = Line(False, None)

Lines: TypeAlias = dict[Line, list[L7] | None]
"""The L7 rules of each line: of any, one must match; None: everything is allowed."""

Table: TypeAlias = dict[PortKey, Lines]
"""The lines of one direction."""

OPEN: Table = {EVERY_PORT: {ALLOW_ALL: None}}
"""The table of a direction in which everything is allowed."""


class Tables(NamedTuple):
    """Both directions."""

    ingress: Table
    egress: Table


PortNames: TypeAlias = Mapping[str, frozenset[tuple[str, int]]]
"""Port names to (protocol, number)."""

Remotes: TypeAlias = Callable[[Target], tuple[int, ...]]
"""The identities that a target means at this moment, sorted."""


def tables(
    policies: Sequence[Policy],
    enforcement: Enforcement,
    *,
    own_ports: PortNames,
    peer_ports: PortNames,
) -> Tables:
    """What `policies`, which all select the same endpoint, say to it.

    own_ports: the endpoint's own port names; peer_ports: those of everybody.
    """
    return Tables(
        _table(policies, enforcement, True, own_ports),
        _table(policies, enforcement, False, peer_ports),
    )


def is_enforced(policies: Iterable[Policy], enforcement: Enforcement, *, ingress: bool) -> bool:
    """True if what no policy allows is denied in this direction."""
    if enforcement == "default":
        return any(policy.default_deny(ingress=ingress) for policy in policies)
    return enforcement == "always"


def _table(
    policies: Sequence[Policy], enforcement: Enforcement, ingress: bool, names: PortNames
) -> Table:
    if enforcement == "never":
        return OPEN
    table: dict[PortKey, Lines] = defaultdict(dict)
    required = _requirements(policies, ingress)
    for policy in policies:
        for rule in policy.rules(ingress=ingress):
            for key, line, l7 in _lines(rule, required[rule.deny], names, ingress):
                lines = table[key]
                so_far = lines.setdefault(line, [])
                if l7 is None or not l7.rules:
                    # Whatever else the line asks for: everything is allowed.
                    lines[line] = None
                elif so_far is not None:
                    so_far.append(l7)
    if not is_enforced(policies, enforcement, ingress=ingress):
        table[EVERY_PORT][ALLOW_ALL] = None
    return dict(table)


def _requirements(
    policies: Iterable[Policy], ingress: bool
) -> Mapping[bool, frozenset[Requirement]]:
    """What every allowing (False) and every denying (True) rule asks of its peers besides."""
    found: dict[bool, set[Requirement]] = {False: set(), True: set()}
    for policy in policies:
        for rule in policy.rules(ingress=ingress):
            for selector in rule.requires:
                found[rule.deny] |= selector.requirements
    return {deny: frozenset(requirements) for deny, requirements in found.items()}


def _lines(
    rule: Rule, required: frozenset[Requirement], names: PortNames, ingress: bool
) -> Iterator[tuple[PortKey, Line, L7 | None]]:
    peers = _peers(rule, required)
    if peers is not None and not peers:
        return
    target = None if peers is None else Target(peers)
    if rule.ports is None:
        yield EVERY_PORT, Line(rule.deny, target), None
    for icmp in rule.icmps:
        yield _icmp_key(icmp), Line(rule.deny, target), None
    for port_rule in rule.ports or ():
        line = Line(
            rule.deny,
            target,
            port_rule.l7.proto if port_rule.l7 is not None else "",
            port_rule.listener,
            port_rule.server_names,
            port_rule.terminating_tls,
            port_rule.originating_tls,
        )
        for port in port_rule.ports:
            for key in _port_keys(port, names):
                if isinstance(port.port, str) and not ingress:
                    named = (port.port, key.protocol, key.port)
                    yield key, line._replace(target=Target(peers or ANYBODY, named)), port_rule.l7
                else:
                    yield key, line, port_rule.l7


def _peers(rule: Rule, required: frozenset[Requirement]) -> frozenset[Peer] | None:
    """The peers of `rule`; None is anybody.

    As Cilium has it, only those of fromEndpoints and toEndpoints are asked for what
    every rule asks besides: not entities, prefixes and names, and not anybody at all.
    """
    if rule.peers is None:
        return None
    if not required or rule.peer_field not in _ASKED_FOR_MORE:
        return frozenset(rule.peers)
    return frozenset(
        peer.also(*required) if isinstance(peer, Selector) else peer for peer in rule.peers
    )


_ASKED_FOR_MORE = ("fromEndpoints", "toEndpoints")


ANYBODY: frozenset[Peer] = frozenset([Selector()])
"""Every endpoint: who can have names for ports."""


def _port_keys(port: Port, names: PortNames) -> Iterator[PortKey]:
    protocols = _PROTOCOLS.get(port.protocol, (port.protocol,))
    if isinstance(port.port, int):
        for protocol in protocols:
            yield PortKey(protocol, port.port, port.end_port)
    else:
        for protocol, number in sorted(names.get(port.port, ())):
            if protocol in protocols:
                yield PortKey(protocol, number, 0)


def _icmp_key(icmp: Icmp) -> PortKey:
    return PortKey(_ICMP[icmp.family], ICMP_TYPE + icmp.type, 0)


def names_used(policies: Iterable[Policy]) -> frozenset[str]:
    """The port names that egress rules of `policies` ask of the peers."""
    return frozenset(
        port.port
        for policy in policies
        for rule in policy.egress
        for port_rule in rule.ports or ()
        for port in port_rule.ports
        if isinstance(port.port, str)
    )


# The wire.


@dataclass(slots=True)
class Encoder:
    """Writes the NetworkPolicy of one subject; it keeps what it wrote, piece by piece.

    written: how many lines it had to write, for tests of what a change costs.
    """

    written: int = 0
    _entries: dict[tuple[int, PortKey], dict[Line, _Written]] = field(default_factory=dict)

    def body(self, enforced: Tables, would_be: Tables | None, remotes: Remotes) -> bytes:
        """The fields that all endpoints of the subject share.

        would_be: what would be in force if nothing were in audit mode, if that differs.
        """
        kept, self._entries = self._entries, {}
        parts = [
            *self._direction(enforced.ingress, _INGRESS, 0, kept, remotes),
            *self._direction(enforced.egress, _EGRESS, 1, kept, remotes),
        ]
        if would_be is not None:
            audit = [
                *self._direction(would_be.ingress, _AUDIT_INGRESS, 2, kept, remotes),
                *self._direction(would_be.egress, _AUDIT_EGRESS, 3, kept, remotes),
            ]
            parts.append(_delimited(_AUDIT, b"".join(audit)))
        return b"".join(parts)

    def _direction(
        self,
        table: Table,
        number: int,
        part: int,
        kept: Mapping[tuple[int, PortKey], dict[Line, _Written]],
        remotes: Remotes,
    ) -> Iterator[bytes]:
        entries: dict[tuple[int, int, npds.Protocol.ValueType], list[bytes]] = {}
        for key in sorted(table):
            written = self._lines(table[key], kept.get((part, key), {}), remotes)
            self._entries[part, key] = written
            in_order = sorted(written.values(), key=lambda item: item.order)
            found = [_delimited(_RULES, item.data) for item in in_order if item.data is not None]
            for protocol in _WIRE.get(key.protocol, ()) if found else ():
                entries.setdefault((key.port, key.end_port, protocol), []).extend(found)
        for (port, end_port, protocol), rules in sorted(entries.items()):
            head = npds.PortNetworkPolicy(port=port, protocol=protocol).SerializeToString()
            # Fields in the order of their numbers: end_port comes after the rules.
            tail = npds.PortNetworkPolicy(end_port=end_port).SerializeToString()
            # Without rules everybody is allowed: shorter than a rule that says so.
            body = b"" if rules == [_delimited(_RULES, b"")] else b"".join(rules)
            yield _delimited(number, head + body + tail)

    def _lines(
        self, lines: Lines, kept: Mapping[Line, _Written], remotes: Remotes
    ) -> dict[Line, _Written]:
        found: dict[Line, _Written] = {}
        for line, l7 in lines.items():
            meant = () if line.target is None else remotes(line.target)
            before = kept.get(line)
            if before is None or before.meant != meant or before.l7 != l7:
                nobody = line.target is not None and not meant
                data = (
                    None if nobody else _rule(line, meant, l7).SerializeToString(deterministic=True)
                )
                before = _Written(meant, l7, (line.deny, meant, line.proto, data or b""), data)
                self.written += 1
            found[line] = before
        return found


@dataclass(frozen=True, slots=True)
class _Written:
    """A line on the wire (None: it is about nobody), and what it was written from."""

    meant: tuple[int, ...]
    l7: Sequence[L7] | None
    order: tuple[bool, tuple[int, ...], str, bytes]
    data: bytes | None


def _rule(
    line: Line, remotes: Sequence[int], l7: Sequence[L7] | None
) -> npds.PortNetworkPolicyRule:
    rule = npds.PortNetworkPolicyRule(
        remote_policies=remotes, l7_proto=line.proto, server_names=line.server_names
    )
    if line.deny:
        rule.deny = True
    if line.terminating_tls is not None:
        tls = line.terminating_tls
        rule.downstream_tls_context.tls_sds_secret = f"{tls.namespace}/{tls.secret}"
    if line.originating_tls is not None:
        tls = line.originating_tls
        rule.upstream_tls_context.validation_context_sds_secret = f"{tls.namespace}/{tls.secret}"
    for item in dict.fromkeys(pairs for each in l7 or () for pairs in each.rules):
        if line.proto == HTTP:
            rule.http_rules.http_rules.append(HttpRule(dict(item)).to_proto())
        else:
            rule.l7_rules.l7_allow_rules.add(rule=dict(item))
    return rule


_INGRESS, _EGRESS, _RULES = (
    npds.NetworkPolicy.INGRESS_PER_PORT_POLICIES_FIELD_NUMBER,
    npds.NetworkPolicy.EGRESS_PER_PORT_POLICIES_FIELD_NUMBER,
    npds.PortNetworkPolicy.RULES_FIELD_NUMBER,
)
_AUDIT, _AUDIT_INGRESS, _AUDIT_EGRESS = (
    npds.NetworkPolicy.AUDIT_FIELD_NUMBER,
    npds.AuditPolicy.INGRESS_PER_PORT_POLICIES_FIELD_NUMBER,
    npds.AuditPolicy.EGRESS_PER_PORT_POLICIES_FIELD_NUMBER,
)


def _delimited(number: int, data: bytes) -> bytes:
    """A field of a protobuf message: its number, its length, `data`."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def network_policy(addresses: Iterable[str], number: int, body: bytes) -> bytes:
    """The resource of an endpoint: who it is, and the `body` that its subject shares."""
    head = npds.NetworkPolicy(endpoint_ips=addresses, endpoint_id=number)
    return head.SerializeToString(deterministic=True) + body


def hosts(number: int, addresses: Iterable[str]) -> bytes:
    """The NetworkPolicyHosts resource of an identity: the addresses that it has."""
    message = npds.NetworkPolicyHosts(policy=number, host_addresses=sorted(addresses))
    return message.SerializeToString(deterministic=True)


def conflicts(policies: Iterable[Policy], names: PortNames) -> Iterator[Problem]:
    """Ports on which two rules want different parsers, whomever these are about."""
    for ingress in (True, False):
        wanted = [
            (key.port, key.end_port or key.port, port_rule.l7)
            for policy in policies
            for rule in policy.rules(ingress=ingress)
            for port_rule in rule.ports or ()
            if port_rule.l7 is not None
            for port in port_rule.ports
            for key in _port_keys(port, names)
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
