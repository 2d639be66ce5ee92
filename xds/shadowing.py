"""Rules that can change no verdict, because of another rule about the same endpoints.

Read from the documents alone, so what is said is true whatever endpoints there are:
one rule covers another if it names all its peers, or anybody, and all its ports.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from xds.labels import Selector
from xds.policy import L7, Peer, Policy, Port, PortRule, Rule
from xds.source import Problem

MAX_COMPARISONS = 300_000
"""Most ports and peers that are compared in one run; the check is a courtesy."""

_PROTOCOLS = frozenset(("TCP", "UDP", "SCTP"))

_Group: TypeAlias = tuple[Selector, bool, bool]
"""Rules that compare: of one subject, one direction, and both in audit mode or not."""


def shadowed(policies: Iterable[Policy]) -> Iterator[Problem]:
    """A warning for each rule that another one makes moot."""
    groups: dict[_Group, list[Rule]] = defaultdict(list)
    for policy in policies:
        for ingress in (True, False):
            group = groups[policy.subject, ingress, policy.audit]
            group += (rule for rule in policy.rules(ingress=ingress) if _compares(rule))
    budget = MAX_COMPARISONS
    for rules in groups.values():
        about = _Index(rules)
        for number, rule in enumerate(rules):
            candidates = about.candidates(rule)
            budget -= sum(_cost(rule, rules[other]) for other in candidates)
            if budget < 0:
                return
            yield from _moot(number, rule, candidates, rules)


MAX_LINES = 100
"""Most ports of a rule that is compared."""


def _compares(rule: Rule) -> bool:
    if rule.empty or rule.requires or rule.icmps or rule.quarantined:
        return False
    return sum(len(entry.ports) for entry in rule.ports or ()) <= MAX_LINES


def _cost(one: Rule, other: Rule) -> int:
    """How much there is to compare: ports one by one, and peers as sets."""
    ports = [sum(len(entry.ports) for entry in rule.ports or ()) for rule in (one, other)]
    return 1 + ports[0] * ports[1] + len(one.peers or ()) + len(other.peers or ())


class _Index:
    """Which rules may cover another: those about anybody, or about its first peer too."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._of_anybody = [n for n, rule in enumerate(rules) if rule.peers is None]
        self._about: dict[Peer, list[int]] = defaultdict(list)
        for number, rule in enumerate(rules):
            for peer in rule.peers or ():
                self._about[peer].append(number)

    def candidates(self, rule: Rule) -> list[int]:
        named = self._about[rule.peers[0]] if rule.peers else []
        return [*self._of_anybody, *named]


def _moot(
    number: int, rule: Rule, candidates: Sequence[int], rules: Sequence[Rule]
) -> Iterator[Problem]:
    """The first reason among `candidates` why `rule` is moot."""
    for other_number in candidates:
        other = rules[other_number]
        if other is rule or (rule.deny and not other.deny) or not _covers(other, rule):
            continue
        if rule.deny == other.deny and number < other_number and _covers(rule, other):
            continue  # They say the same: it is the later one that is too much.
        if other.deny and not rule.deny:
            what = "never allows anything: it is denied at"
        elif _has_l7(rule) and not _has_l7(other):
            what = "has L7 rules that decide nothing: all of it is allowed at"
        else:
            what = "changes nothing: it is covered by"
        yield Problem(rule.origin.place, f"{what} {other.origin.place}")
        return


def _has_l7(rule: Rule) -> bool:
    return any(entry.l7 is not None for entry in rule.ports or ())


def _covers(outer: Rule, inner: Rule) -> bool:
    """True if `outer` is about all peers and ports that `inner` is about."""
    if not _names_all(outer.peers, inner.peers):
        return False
    if outer.ports is None:
        return True
    if inner.ports is None:
        return False
    return all(
        any(_port_covers(other, mine, outer.deny) for other in _lines(outer.ports))
        for mine in _lines(inner.ports)
    )


def _names_all(outer: tuple[Peer, ...] | None, inner: tuple[Peer, ...] | None) -> bool:
    return outer is None or (inner is not None and set(inner) <= set(outer))


class _Line(NamedTuple):
    port: Port
    entry: PortRule


def _lines(ports: Sequence[PortRule]) -> list[_Line]:
    return [_Line(port, entry) for entry in ports for port in entry.ports]


def _port_covers(outer: _Line, inner: _Line, deny: bool) -> bool:
    if not _protocols(inner.port) <= _protocols(outer.port):
        return False
    if not _range_covers(outer.port, inner.port):
        return False
    if deny:
        return True
    if _intercepts(outer.entry) or _intercepts(inner.entry):
        return False
    return _l7_covers(outer.entry.l7, inner.entry.l7)


def _intercepts(entry: PortRule) -> bool:
    return bool(
        entry.terminating_tls or entry.originating_tls or entry.server_names or entry.listener
    )


def _protocols(port: Port) -> frozenset[str]:
    return _PROTOCOLS if port.protocol == "ANY" else frozenset([port.protocol])


def _range_covers(outer: Port, inner: Port) -> bool:
    if outer.port == 0:
        return True
    if isinstance(outer.port, str) or isinstance(inner.port, str):
        return outer.port == inner.port
    if inner.port == 0:
        return False
    last = inner.end_port or inner.port
    return outer.port <= inner.port and last <= (outer.end_port or outer.port)


def _l7_covers(outer: L7 | None, inner: L7 | None) -> bool:
    if outer is None:
        return True
    if inner is None or inner.proto != outer.proto:
        return False
    return (
        not outer.rules
        or () in outer.rules
        or (bool(inner.rules) and set(inner.rules) <= set(outer.rules))
    )
