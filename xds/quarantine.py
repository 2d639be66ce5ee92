"""Closing the bad rules of a document, so that the good ones can be in force.

A bad rule is replaced by what it can have meant at most, or at least: an allow rule
by one that allows nobody and still makes the white list, a denial by a wider one
(its peers on every port, else its ports for anybody, else everything), and a
requirement that cannot be read by one that nobody meets.  Whatever the author
meant, nothing is open that was to be closed; only what the rule touches is closed.

Which rule a problem belongs to is seen from its path.  A problem beside the rules
(of the name, of a selector) cannot be closed this way: nobody knows whom it touches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from xds import model
from xds.policy import Policy, Rule
from xds.source import Document, DocumentError, Problem, dotted
from xds.yamltext import Path

Load = Callable[[Document], list[Policy]]

_SHAPES: dict[str, type[model.AnyRule]] = {
    "ingress": model.IngressRule,
    "egress": model.EgressRule,
    "ingressDeny": model.IngressDenyRule,
    "egressDeny": model.EgressDenyRule,
}

_NOBODY = {
    "matchExpressions": [
        {"key": "quarantined", "operator": "Exists"},
        {"key": "quarantined", "operator": "DoesNotExist"},
    ]
}
"""A selector that selects nothing."""


def load_quarantined(document: Document, load: Load) -> list[Policy]:
    """The policies of `document`, its bad rules closed and marked with what is wrong.

    Raises DocumentError if something else than a rule is wrong.
    """
    try:
        return load(document)
    except DocumentError as error:
        bad = _bad_rules(document, error.problems)
        if not bad:
            raise
    value = copy.deepcopy(document.value)
    for path in bad:
        _put(value, path, _closed(document, path, load))
    policies = load(replace(document, value=value))
    return [_marked(policy, bad) for policy in policies]


def _bad_rules(document: Document, problems: Sequence[Problem]) -> dict[Path, Problem]:
    """The first problem of each bad rule; nothing if a problem is beside the rules."""
    rules = {dotted(path): path for path in _rules(document.value)}
    bad: dict[Path, Problem] = {}
    for problem in problems:
        path = next((p for p in _above(problem.place.path) if p in rules), None)
        if path is None:
            return {}
        bad.setdefault(rules[path], problem)
    return bad


def _above(path: str) -> Iterator[str]:
    """`path` as text, and every beginning of it that ends where a step does."""
    for end in range(len(path), 0, -1):
        if end == len(path) or path[end] in ".[":
            yield path[:end]


def _rules(value: Any) -> Iterator[Path]:
    """The paths of the rules of a document, whatever else is in it."""
    if not isinstance(value, dict):
        return
    specs: list[tuple[Path, Any]] = [(("spec",), value.get("spec"))]
    several = value.get("specs")
    if isinstance(several, list):
        specs += [(("specs", index), spec) for index, spec in enumerate(several)]
    else:
        specs.append((("specs",), several))
    for path, spec in specs:
        if isinstance(spec, dict):
            for field in _SHAPES:
                rules = spec.get(field)
                if isinstance(rules, list):
                    yield from ((*path, field, index) for index in range(len(rules)))


def _closed(document: Document, path: Path, load: Load) -> dict[str, Any]:
    """The first of the rules to put at `path` that loads."""
    field = str(path[-2])
    candidates = list(_candidates(document.value, _get(document.value, path), field))
    spec = _get(document.value, path[:-2])
    subject = {name: spec[name] for name in _SUBJECTS if name in spec}
    head = {key: v for key, v in document.value.items() if key not in ("spec", "specs")}
    for candidate in candidates[:-1]:
        trial = {**head, "spec": {**subject, field: [candidate]}}
        try:
            load(replace(document, value=trial))
        except DocumentError:
            continue
        return candidate
    return candidates[-1]


_SUBJECTS = ("endpointSelector", "nodeSelector", "podSelector")


def _candidates(document: Any, rule: Any, field: str) -> Iterator[dict[str, Any]]:
    """What may stand for a bad rule, the nearest to it first; the last one always loads."""
    if document.get("kind") == "NetworkPolicy":
        # Unlike Cilium's, an empty one would allow everything.
        peers = "from" if field == "ingress" else "to"
        yield {peers: [{"podSelector": _NOBODY}]}
        return
    shape = _SHAPES[field]
    written = rule if isinstance(rule, dict) else {}
    if field.endswith("Deny"):
        if known := {key: written[key] for key in shape.PEERS if key in written}:
            yield known
        if ports := {key: written[key] for key in ("toPorts", "icmps") if key in written}:
            yield ports
        yield {"fromEntities" if field == "ingressDeny" else "toEntities": ["all"]}
        return
    unknown = written.keys() - shape.model_fields.keys() - model.REFUSED.keys()
    if shape.REQUIRES in written and not unknown:
        yield {shape.REQUIRES: written[shape.REQUIRES]}
    # A field that nobody knows may be a requirement misspelt.
    closed = bool(unknown) or shape.REQUIRES in written
    yield {shape.REQUIRES: [_NOBODY]} if closed else {}


def _get(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def _put(value: Any, path: Path, rule: dict[str, Any]) -> None:
    _get(value, path[:-1])[path[-1]] = rule


def _marked(policy: Policy, bad: dict[Path, Problem]) -> Policy:
    def mark(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        return tuple(replace(rule, quarantined=bad.get(rule.origin.path)) for rule in rules)

    return replace(policy, ingress=mark(policy.ingress), egress=mark(policy.egress))
