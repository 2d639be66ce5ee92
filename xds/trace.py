"""Policy trace: what becomes of a connection, or of a request on it, and why.

The verdict is the data path's own: the L4 look-up of `MapState`, then
`proxylib.policy.PolicyMap.decide` and its matcher, on the resources as they are served.
The explanation is read from the documents (explain.py).  Where the two do not agree the
trace says so: that is a fault of ours, and no verdict to rely on.

An end that is no endpoint here (labels that nobody has, say) is traced as if it were
one, in an engine made for the purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Literal

from proxylib.errors import PolicyError
from proxylib.message import Properties
from proxylib.policy import compile_policies
from proxylib.registry import get_parser_factory
from xds.endpoints import Endpoint
from xds.engine import Engine
from xds.explain import Call, Explanation, Step, explain, key_of
from xds.identity import WORLD, reserved_number
from xds.labels import UNSPEC, LabelSet
from xds.mapstate import PROTOCOL_NUMBERS, MapEntry, Verdict
from xds.services import normal_address
from xds.trace_request import Request, message_of

Outcome = Literal["allowed", "denied", "depends"]
"""depends: on what is said, which the trace was not told."""


class TraceError(PolicyError):
    """What is asked makes no sense; the text says why."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection: an address, an identity's number, or labels."""

    address: str = ""
    identity: int | None = None
    labels: LabelSet | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What to trace. request: what is said on the connection, if it is to be judged."""

    source: End
    destination: End
    port: int
    protocol: str = "TCP"
    ingress: bool = True
    egress: bool = True
    request: Request | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """An end as it was understood. endpoint: its number; 0 if it is none of this node's.

    hypothetical: nobody here has these labels.
    """

    identity: int
    labels: tuple[str, ...]
    endpoint: int = 0
    address: str = ""
    hypothetical: bool = False


@dataclass(frozen=True, slots=True)
class DirectionTrace:
    """What the policies of one end say.

    judged: False if no policy is enforced for it here, and why in `reason`.
    selecting: the documents that select it. l4: what the L4 map says; parser: who judges
    requests. audit: it passes, and would not without audit mode.
    disagreement: what the documents say, if that is not the verdict.
    """

    direction: Literal["egress", "ingress"]
    judged: bool
    enforced: bool
    selecting: tuple[str, ...]
    not_selecting: int
    steps: tuple[Step, ...]
    l4: Literal["allow", "deny", "redirect", "none"]
    parser: str
    verdict: Outcome
    reason: str
    audit: bool = False
    disagreement: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """The answer to a question. agrees: False is a fault of ours."""

    source: Side
    destination: Side
    port: int
    protocol: str
    request: str
    directions: tuple[DirectionTrace, ...]
    verdict: Outcome
    agrees: bool = field(default=True)


def trace(engine: Engine, question: Question) -> Trace:
    """Answer a question by what is in force in `engine`. Raises TraceError."""
    if question.protocol not in ("TCP", "UDP", "SCTP"):
        raise TraceError(f"protocol {question.protocol!r} is none of TCP, UDP and SCTP")
    if not 0 < question.port <= 65535:
        raise TraceError(f"a port is from 1 to 65535, not {question.port}")
    if question.request is not None and question.protocol != "TCP":
        raise TraceError("requests are judged on TCP only")
    ends = [_by_labels(engine, end) for end in (question.source, question.destination)]
    known = [_find(engine, end) for end in ends]
    found = known
    if None in known:
        engine = _with_ends(engine, ends, known)
        found = [_find(engine, end) for end in ends]
    source, destination = found
    assert source is not None
    assert destination is not None
    wanted: list[Literal["egress", "ingress"]] = []
    wanted += ["egress"] if question.egress else []
    wanted += ["ingress"] if question.ingress else []
    directions = tuple(_direction(engine, question, source, destination, d) for d in wanted)
    verdicts = [direction.verdict for direction in directions]
    verdict: Outcome = (
        "denied" if "denied" in verdicts else "depends" if "depends" in verdicts else "allowed"
    )
    return Trace(
        known[0] or Side(0, source.labels, hypothetical=True),
        known[1] or Side(0, destination.labels, hypothetical=True),
        question.port,
        question.protocol,
        str(question.request) if question.request is not None else "",
        directions,
        verdict,
        agrees=not any(direction.disagreement for direction in directions),
    )


def _by_labels(engine: Engine, end: End) -> End:
    """An end by its labels, if it is given by an identity's number: another engine has others."""
    if end.identity is None:
        return end
    labels = engine.known_identities().get(end.identity)
    if labels is None:
        raise TraceError(f"there is no identity {end.identity}")
    return End(labels=labels)


def _find(engine: Engine, end: End) -> Side | None:
    """An end as `engine` knows it; None if nobody has its labels."""
    known = engine.known_identities()
    if end.address:
        try:
            address = normal_address(end.address)
        except ValueError as error:
            raise TraceError(str(error)) from error
        for number, endpoint in engine.endpoints.items():
            if address in endpoint.addresses:
                return _side(engine, number, address)
        identity = _identity_of(engine.addresses(), address)
        return Side(identity, _texts(known.get(identity)), 0, address)
    labels = end.labels
    if labels is None:
        raise TraceError("an end needs an address, an identity or labels")
    for same in (labels.__eq__, lambda others: _named_by(labels, others)):
        for number, endpoint in engine.endpoints.items():
            if same(endpoint.labels):
                return _side(engine, number, endpoint.addresses[0])
        for number, others in known.items():
            if same(others) or reserved_number(labels) == number:
                return Side(number, _texts(others))
    return None


def _named_by(labels: LabelSet, others: LabelSet) -> bool:
    """Whether somebody who wrote `labels` can have meant `others`: a source may be left out."""
    return len(labels.labels) == len(others.labels) and all(
        (other := others.by_key.get(label.key)) is not None
        and other.value == label.value
        and label.source in (UNSPEC, other.source)
        for label in labels
    )


def _side(engine: Engine, number: int, address: str) -> Side:
    endpoint = engine.endpoints[number]
    return Side(engine.policy(number).identity, _texts(endpoint.labels), number, address)


def _texts(labels: LabelSet | None) -> tuple[str, ...]:
    return tuple(
        f"{label.source}:{label.key}" + (f"={label.value}" if label.value else "")
        for label in labels or ()
    )


def _identity_of(addresses: Mapping[str, int], address: str) -> int:
    """The identity of the longest prefix that has `address` in it."""
    wanted = ip_address(address)
    best, identity = -1, WORLD
    for text, number in addresses.items():
        network = ip_network(text)
        if network.version == wanted.version and network.prefixlen > best and wanted in network:
            best, identity = network.prefixlen, number
    return identity


def _with_ends(engine: Engine, ends: Sequence[End], found: Sequence[Side | None]) -> Engine:
    """An engine with the same policies, in which both ends are endpoints."""
    endpoints: dict[int, Endpoint] = {}
    for number, (end, side) in enumerate(zip(ends, found, strict=True), _NOBODY):
        if side is None:
            assert end.labels is not None
            if any(label.source in ("reserved", "cidr") for label in end.labels):
                raise TraceError(f"nothing is known of {', '.join(_texts(end.labels))}")
            endpoints[number] = Endpoint((_NOWHERE[number - _NOBODY],), end.labels)
        elif side.endpoint:
            endpoints[side.endpoint] = engine.endpoints[side.endpoint]
    return engine.sketch(endpoints)


_NOBODY = 1 << 16
"""Numbers from here on are no endpoint's."""

_NOWHERE = ("192.0.2.1", "192.0.2.2")
"""Addresses of the ends that are tried: for documentation (RFC 5737), nobody's."""


def _direction(
    engine: Engine,
    question: Question,
    source: Side,
    destination: Side,
    direction: Literal["egress", "ingress"],
) -> DirectionTrace:
    ingress = direction == "ingress"
    subject, remote = (destination, source) if ingress else (source, destination)
    if not subject.endpoint:
        return DirectionTrace(
            direction,
            judged=False,
            enforced=False,
            selecting=(),
            not_selecting=0,
            steps=(),
            l4="none",
            parser="",
            verdict="allowed",
            reason=f"the {'destination' if ingress else 'source'} is no endpoint of this node: "
            "no policy is enforced for it here",
        )
    policy = engine.policy(subject.endpoint)
    entry = engine.map_state(subject.endpoint).lookup(
        remote.identity,
        ingress=ingress,
        protocol=PROTOCOL_NUMBERS[question.protocol],
        port=question.port,
    )
    parser = entry.redirect
    message = _message(question.request, parser)
    verdict, reason, audit = _verdict(engine, question, subject, remote, ingress, entry, message)
    call = Call(
        ingress=ingress,
        subject=policy.endpoint,
        remote=remote.identity,
        other=engine.endpoints.get(remote.endpoint),
        port=question.port,
        protocol=question.protocol,
        parser=parser,
        message=message,
    )
    explained = explain(policy.policies, call, engine.select, policy.mode.enforcement)
    documents = {key_of(p) for policies in engine.policies.values() for p in policies}
    return DirectionTrace(
        direction,
        judged=True,
        enforced=explained.enforced,
        selecting=explained.selecting,
        not_selecting=len(documents - set(explained.selecting)),
        steps=explained.steps,
        l4=_L4[entry.verdict],
        parser=parser,
        verdict=verdict,
        reason=reason,
        audit=audit or entry.audit,
        disagreement=_disagreement(explained, verdict, policy.mode.audit),
    )


_L4: Mapping[Verdict, Literal["allow", "deny", "redirect", "none"]] = {
    Verdict.ALLOW: "allow",
    Verdict.DENY: "deny",
    Verdict.REDIRECT: "redirect",
    Verdict.NONE: "none",
}


def _message(request: Request | None, parser: str) -> Properties | None:
    """The request as `parser` would see it; None if nobody judges it."""
    if request is None or not parser:
        return None
    if request.parser and request.parser != parser:
        raise TraceError(
            f"the port is judged by parser {parser}, and the request is for {request.parser}"
        )
    try:
        return message_of(request, parser)
    except ValueError as error:
        raise TraceError(str(error)) from error


def _verdict(
    engine: Engine,
    question: Question,
    subject: Side,
    remote: Side,
    ingress: bool,
    entry: MapEntry,
    message: Properties | None,
) -> tuple[Outcome, str, bool]:
    """What the data path does, why, and whether a request passes by audit mode only."""
    who = "the source" if ingress else "the destination"
    if not entry.passes:
        what = "is denied" if entry.verdict is Verdict.DENY else "is not allowed"
        return "denied", f"L4: {who} {what} on port {question.port}", False
    if not entry.redirect:
        return "allowed", "L4: every request passes, no parser sees the connection", False
    if question.protocol != "TCP":
        return "depends", f"L7: the {entry.redirect} proxy judges each message", False
    policies = compile_policies([engine.resource(subject.endpoint)], get_parser_factory)
    decision = policies.decide(
        engine.endpoints[subject.endpoint].addresses[0],
        ingress=ingress,
        port=question.port,
        remote=remote.identity,
        parser=entry.redirect,
    )
    if decision.denied:
        return "denied", f"L7: {decision.reason}", False
    if message is None:
        return "depends", f"L7: parser {entry.redirect} judges each request", False
    try:
        passes = bool(decision.matcher(message))
        matches = passes if decision.would is None else bool(decision.would(message))
    except Exception as error:
        raise TraceError(f"parser {entry.redirect} cannot judge that: {error!r}") from error
    told = "matches" if matches else "matches none of"
    verdict: Outcome = "allowed" if passes else "denied"
    return verdict, f"L7: the request {told} the rules", passes and not matches


def _disagreement(explained: Explanation, verdict: Outcome, audit: bool) -> str:
    """What to say if the documents' verdict is another than the data path's."""
    if audit:
        # Nothing is denied in audit mode, whatever the documents say.
        return "" if verdict != "denied" else "denied in audit mode"
    said = {True: "allowed", False: "denied", None: "depends"}[explained.allowed]
    if said == verdict or (said == "allowed" and verdict == "depends"):
        return ""
    return f"by the documents it is {said}, by the data path it is {verdict}"
