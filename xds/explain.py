"""What the documents say about one connection, rule by rule: which matched, and why not.

This reads the policies as they were written, not what was compiled of them: the trace
(trace.py) holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from proxylib.errors import RegistrationError
from proxylib.http import HttpRule
from proxylib.message import Properties
from proxylib.registry import get_parser_factory
from proxylib.rules import L7Rule
from xds.compilation import is_enforced
from xds.endpoints import Endpoint, Enforcement
from xds.labels import Requirement, Selector
from xds.policy import L7, L7Pairs, Peer, Policy, Port, PortRule, Rule

Select = Callable[[Peer], frozenset[int]]
"""The identities that a peer means."""


@dataclass(frozen=True, slots=True)
class Call:
    """One connection, seen from the endpoint whose policies are asked.

    remote: the peer's identity; other: the peer, if it is an endpoint. parser: who judges
    `message`; message None: nothing has been said yet.
    """

    ingress: bool
    subject: Endpoint
    remote: int
    other: Endpoint | None
    port: int
    protocol: str
    parser: str = ""
    message: Properties | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One rule that was tried. matched: it decides about the connection, or the request.

    policy: the document. place: of the rule. effect: "allow", "deny" or "parser": what
    it does if it matches. reason: why it matched, or why not.
    """

    policy: str
    place: str
    effect: str
    matched: bool
    reason: str
    audit: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """Every rule of one direction, and what comes of them.

    selecting: the documents that select the endpoint. allowed: None where it depends
    on what is said, and nothing has been said.
    """

    enforced: bool
    selecting: tuple[str, ...]
    steps: tuple[Step, ...]
    allowed: bool | None


def explain(
    policies: Sequence[Policy], call: Call, select: Select, enforcement: Enforcement
) -> Explanation:
    """What `policies`, which all select the subject, say about `call`.

    Policies in audit mode are tried and do not decide.
    """
    deciding = [policy for policy in policies if not policy.audit]
    enforced = is_enforced(deciding, enforcement, ingress=call.ingress)
    names = tuple(dict.fromkeys(key_of(policy) for policy in policies))
    if enforcement == "never":
        return Explanation(False, names, (), True)
    required = {
        audit: {deny: _required(policies, call.ingress, deny, audit) for deny in (True, False)}
        for audit in (True, False)
    }
    steps: list[Step] = []
    judged: list[L7 | None] = []
    denied = False
    for policy in policies:
        for rule in policy.rules(ingress=call.ingress):
            found = _rule(rule, call, select, required[policy.audit][rule.deny])
            step, l7s = _step(policy, rule, call, found)
            steps.append(step)
            if policy.audit or isinstance(found, str):
                continue
            denied = denied or rule.deny
            if not rule.deny:
                judged += l7s
    if denied:
        allowed: bool | None = False
    elif not enforced or None in judged:
        allowed = True
    elif not judged:
        allowed = False
    elif call.message is None:
        # On TCP nothing passes where nobody can judge it.
        allowed = None if call.protocol != "TCP" or has_judge(call.parser) else False
    else:
        allowed = _says(judged, call.parser, call.message)
    return Explanation(enforced, names, tuple(steps), allowed)


def key_of(policy: Policy) -> str:
    """``Kind/namespace/name``, or ``Kind/name`` without a namespace."""
    return "/".join(part for part in (policy.kind, policy.namespace, policy.name) if part)


def _required(
    policies: Iterable[Policy], ingress: bool, deny: bool, audit: bool
) -> frozenset[Requirement]:
    """What rules ask of the peers of all of them."""
    return frozenset(
        requirement
        for policy in policies
        if policy.audit is audit or not policy.audit
        for rule in policy.rules(ingress=ingress)
        if rule.deny is deny
        for selector in rule.requires
        for requirement in selector.requirements
    )


def _rule(
    rule: Rule, call: Call, select: Select, required: frozenset[Requirement]
) -> str | list[L7 | None]:
    """Why a rule is not about a connection, or the L7 rules that it has for it."""
    if rule.quarantined is not None and not rule.deny:
        return f"closed: {rule.quarantined.message}"
    if rule.peers == ():
        return "is about nobody"
    if rule.peers is not None and not any(
        call.remote in select(peer) for peer in _asked(rule, required)
    ):
        wanted = ", ".join(str(peer) for peer in _asked(rule, required))
        return f"the {'source' if call.ingress else 'destination'} is not {wanted}"
    if rule.ports is None:
        return [None]
    l7s = [entry.l7 for entry in rule.ports if _covers(entry, call)]
    if not l7s:
        ports = ", ".join(_port(port) for entry in rule.ports for port in entry.ports)
        return f"is about {ports or 'ICMP'}"
    return [None if l7 is None or not l7.rules else l7 for l7 in l7s]


def _asked(rule: Rule, required: frozenset[Requirement]) -> Iterator[Peer]:
    """The peers of a rule, with what every rule asks of them besides."""
    for peer in rule.peers or ():
        by_label = rule.peer_field in ("fromEndpoints", "toEndpoints")
        yield peer.also(*required) if by_label and isinstance(peer, Selector) else peer


def _covers(entry: PortRule, call: Call) -> bool:
    return any(port.protocol in ("ANY", call.protocol) and _has(port, call) for port in entry.ports)


def _has(port: Port, call: Call) -> bool:
    if isinstance(port.port, int):
        return port.port == 0 or port.port <= call.port <= (port.end_port or port.port)
    holder = call.subject if call.ingress else call.other
    return holder is not None and any(
        (named.name, named.port, named.protocol) == (port.port, call.port, call.protocol)
        for named in holder.ports
    )


def _port(port: Port) -> str:
    number = "every port" if port.port == 0 else str(port.port)
    return f"{number}{f'-{port.end_port}' if port.end_port else ''}/{port.protocol}"


def _step(
    policy: Policy, rule: Rule, call: Call, found: str | list[L7 | None]
) -> tuple[Step, list[L7 | None]]:
    """How a rule is told, and its L7 rules for the connection."""

    def step(effect: str, matched: bool, reason: str) -> Step:
        place = rule.origin.place
        return Step(key_of(policy), str(place), effect, matched, reason, policy.audit)

    effect = "deny" if rule.deny else "allow"
    if isinstance(found, str):
        return step(effect, False, found), []
    if rule.deny or None in found:
        return step(effect, True, "source, destination and port match"), found
    l7s = [l7 for l7 in found if l7 is not None]
    if call.message is None:
        told = "; ".join(f"{l7.proto}: {_pairs(l7.rules)}" for l7 in l7s)
        return step("parser", True, f"requests are judged by {told}"), found
    for l7 in l7s:
        for index, pairs in enumerate(l7.rules):
            if _says([l7], call.parser, call.message, only=pairs):
                place = l7.items.below(index).place
                reason = f"the request matches {_pairs([pairs])} ({place})"
                return step("allow", True, reason), found
    told = "; ".join(f"{l7.proto}: {_pairs(l7.rules)}" for l7 in l7s)
    return step("allow", False, f"the request matches none of {told}"), found


def has_judge(parser: str) -> bool:
    """True if a parser, or Envoy's own HTTP filter, can judge connections for `parser`."""
    try:
        return parser == "http" or get_parser_factory(parser) is not None
    except RegistrationError:
        return False


def _pairs(rules: Sequence[L7Pairs]) -> str:
    texts = ("{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}" for pairs in rules)
    return ", ".join(texts)


def _says(
    judged: Iterable[L7 | None], parser: str, message: Properties, only: L7Pairs | None = None
) -> bool:
    """Whether the L7 rules of `parser` together let a message pass; only: just this one."""
    pairs: list[Mapping[str, str]] = [
        dict(item)
        for l7 in judged
        if l7 is not None and l7.proto == parser
        for item in ([only] if only is not None else l7.rules)
    ]
    if not pairs or not has_judge(parser):
        return False
    factory = get_parser_factory(parser)
    rule_class: type[L7Rule] = factory.rule_class if factory is not None else HttpRule
    return bool(rule_class.compile([rule_class(item) for item in pairs])(message))
