"""Warnings: what is legal in a policy and probably not what its author meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from proxylib.rules import Regex
from xds.endpoints import Endpoint
from xds.l7rules import find_parser
from xds.labels import Label, Operator, Requirement, Selector
from xds.policy import L7, Policy, Rule
from xds.selection import Selection
from xds.source import Origin, Problem
from xds.yamltext import MAX_PROBLEMS

_CLOSE = 0.8
"""How similar (difflib's ratio) a label must be to one that exists to be a likely typo."""


def lint(policies: Iterable[Policy], endpoints: Sequence[Endpoint]) -> list[Problem]:
    """Warnings about `policies`, given the endpoints that there are; the first hundred."""
    sets = dict.fromkeys(endpoint.labels for endpoint in endpoints)
    select = Selection(dict(enumerate(sets)))
    known = sorted({label for labels in sets for label in labels})
    warnings = (warning for policy in policies for warning in _policy(policy, select, known))
    return list(islice(warnings, MAX_PROBLEMS))


def _policy(policy: Policy, select: Selection, known: Sequence[Label]) -> Iterator[Problem]:
    subject = policy.origin.below("endpointSelector")
    yield from _selector(policy.subject, subject, select, known)
    for rule in (*policy.ingress, *policy.egress):
        if rule.peer_field in ("fromEndpoints", "toEndpoints"):
            for index, peer in enumerate(rule.peers or ()):
                assert isinstance(peer, Selector)
                place = rule.origin.below(rule.peer_field, index)
                yield from _selector(peer, place, select, known)
        yield from _rule(rule)


def _rule(rule: Rule) -> Iterator[Problem]:
    if rule.deny and rule.empty:
        message = "denies nobody; to deny everybody write an empty selector: [{}]"
        yield Problem(rule.origin.place, message)
    for port_rule in rule.ports or ():
        if port_rule.l7 is not None:
            yield from _l7(port_rule.l7)


def _l7(l7: L7) -> Iterator[Problem]:
    if l7.proto == "dns":
        return
    fields = find_parser(l7.proto).rule_class.fields
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


def _selector(
    selector: Selector, origin: Origin, select: Selection, known: Sequence[Label]
) -> Iterator[Problem]:
    if selector.names_reserved or select(selector):
        return
    hints = [hint for r in selector.requirements for hint in _hints(r, known)]
    hint = f"; {'; '.join(sorted(hints))}" if hints else ""
    yield Problem(origin.place, f"selects no endpoint: {selector}{hint}")


def _hints(requirement: Requirement, known: Sequence[Label]) -> Iterator[str]:
    """Labels that exist and nearly are what `requirement` asks for."""
    if requirement.operator not in (Operator.IN, Operator.EXISTS):
        return
    there = {label.value: label for label in known if label.key == requirement.key}
    if not there:
        keys = {label.key for label in known}
        for key in difflib.get_close_matches(requirement.key, keys, n=1, cutoff=_CLOSE):
            yield f"there is a label {key!r}, did you mean that?"
    for value in sorted(requirement.values - there.keys()):
        for close in difflib.get_close_matches(value, there, n=1, cutoff=_CLOSE):
            yield f"there is {there[close]}, did you mean that?"
