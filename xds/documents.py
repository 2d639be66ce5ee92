"""Policy documents to policies: shape, then the parsers' own opinion of their L7 rules.

`KINDS` is the table of document kinds; each has a function that makes policies
of a document or raises DocumentError with everything that is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, cast

from proxylib.errors import PolicyError, RegistrationError, RuleError
from proxylib.parser import ParserFactory
from proxylib.registry import get_parser_factory, parser_names
from xds import model
from xds.labels import Operator, Requirement, Selector, requirement
from xds.policy import L7, Policy, Port, PortRule, Rule
from xds.shape import check
from xds.source import MAX_PROBLEMS, Document, DocumentError, Origin, Path, Problem

_DIRECTIONS = ("ingress", "egress")


def load_policies(documents: Iterable[Document]) -> list[Policy]:
    """The policies of `documents`.

    Raises DocumentError with the problems of all of them, a name used twice
    included.
    """
    policies: list[Policy] = []
    problems: list[Problem] = []
    names: dict[str, Document] = {}
    for document in documents:
        try:
            found = _load(document)
        except DocumentError as error:
            problems += error.problems
            continue
        first = names.setdefault(found[0].name, document)
        if first is not document:
            place = first.place(("metadata", "name"))
            message = f"{found[0].name!r} is the name of another policy: {place}"
            problems.append(document.problem(("metadata", "name"), message))
        policies += found
    if problems:
        raise DocumentError(problems)
    return policies


def _load(document: Document) -> list[Policy]:
    if not isinstance(document.value, dict):
        raise DocumentError([document.problem((), "a policy document must be a mapping")])
    kind = document.value.get("kind")
    load = KINDS.get(kind) if isinstance(kind, str) else None
    if load is None:
        known = f"known: {', '.join(KINDS)}"
        message = f"unknown kind {kind!r} ({known})" if kind else f"'kind' is required ({known})"
        raise DocumentError([document.problem(("kind",), message)])
    return load(document)


def _cilium_network_policy(document: Document) -> list[Policy]:
    problems: list[Problem] = []
    parsed: model.CiliumNetworkPolicy | None = None
    try:
        parsed = check(model.CiliumNetworkPolicy, document, model.FIELDS, model.LATER)
    except DocumentError as error:
        problems += error.problems
    problems += islice(_l7_problems(document), MAX_PROBLEMS)
    if problems or parsed is None:
        raise DocumentError(sorted(problems, key=lambda p: (p.place.line, p.place.column)))
    name = parsed.metadata.name
    specs: list[tuple[model.Spec, Path]] = []
    if parsed.spec is not None:
        specs.append((parsed.spec, ("spec",)))
    single = isinstance(document.value["specs"], dict) if parsed.specs else False
    for index, spec in enumerate(parsed.specs or ()):
        specs.append((spec, ("specs",) if single else ("specs", index)))
    return [_policy(name, spec, Origin(document, path)) for spec, path in specs]


def _policy(name: str, spec: model.Spec, origin: Origin) -> Policy:
    def rules(field: str, peers: str, deny: bool) -> Iterator[Rule]:
        for index, item in enumerate(getattr(spec, field) or ()):
            yield _rule(item, getattr(item, peers), deny, origin.below(field, index))

    return Policy(
        name=name,
        subject=_selector(spec.endpointSelector),
        ingress=(
            *rules("ingress", "fromEndpoints", False),
            *rules("ingressDeny", "fromEndpoints", True),
        ),
        egress=(
            *rules("egress", "toEndpoints", False),
            *rules("egressDeny", "toEndpoints", True),
        ),
        origin=origin,
    )


def _rule(
    item: model.AnyRule,
    peers: Sequence[model.EndpointSelector] | None,
    deny: bool,
    origin: Origin,
) -> Rule:
    to_ports: Sequence[model.PortRule | model.PortDenyRule] = item.toPorts or ()
    ports = [
        PortRule(
            tuple(Port(p.port, p.endPort or 0, p.protocol) for p in entry.ports),
            _l7(entry.rules, origin.below("toPorts", index, "rules")),
        )
        for index, entry in enumerate(to_ports)
    ]
    return Rule(
        deny=deny,
        peers=None if peers is None else tuple(map(_selector, peers)),
        ports=tuple(ports) or None,
        origin=origin,
    )


def _l7(rules: model.L7Rules | None, origin: Origin) -> L7 | None:
    if rules is None or not rules.field:
        return None
    items = "l7" if rules.field == "l7proto" else rules.field
    # A key without a value, as in `- command:`, asks nothing of it.
    pairs = (
        tuple((key, value or "") for key, value in item.items())
        for item in getattr(rules, items) or ()
    )
    place = origin.below(rules.field)
    return L7(rules.l7proto or rules.field, tuple(pairs), place, origin.below(items))


def _selector(selector: model.EndpointSelector) -> Selector:
    requirements: list[Requirement] = [
        requirement(key, Operator.IN, [value])
        for key, value in (selector.matchLabels or {}).items()
    ]
    requirements += [
        requirement(item.key, Operator(item.operator), item.values or ())
        for item in selector.matchExpressions or ()
    ]
    return Selector(frozenset(requirements))


def _l7_problems(document: Document) -> Iterator[Problem]:
    """What the parsers refuse. Works on the raw document, whatever else is wrong in it."""
    value = document.value
    specs = [((key,), value.get(key)) for key in ("spec", "specs")]
    for path, spec in [*specs, *_items(value.get("specs"), ("specs",))]:
        for direction in _DIRECTIONS:
            for rule_path, rule in _items(_get(spec, direction), (*path, direction)):
                for port_path, ports in _items(_get(rule, "toPorts"), (*rule_path, "toPorts")):
                    rules = _get(ports, "rules")
                    if isinstance(rules, dict):
                        yield from _rules_problems(document, rules, (*port_path, "rules"))


def _rules_problems(document: Document, rules: dict[str, Any], path: Path) -> Iterator[Problem]:
    name = rules.get("l7proto")
    if isinstance(name, str) and name:
        yield from _items_problems(document, name, "l7proto", rules.get("l7"), (*path, "l7"))
    for name in model.NAMED:
        if name in rules:
            yield from _items_problems(document, name, name, rules[name], (*path, name))


def _items_problems(
    document: Document, name: str, field: str, items: Any, path: Path
) -> Iterator[Problem]:
    """What the parser `name`, named by `field`, refuses of its rules."""
    try:
        factory = find_parser(name)
    except PolicyError as error:
        yield document.problem((*path[:-1], field), str(error))
        return
    for item_path, item in _items(items, path):
        if not isinstance(item, dict):
            continue
        pairs = {key: value or "" for key, value in item.items()}
        if not all(isinstance(pair, str) for pair in pairs.values()):
            continue
        try:
            factory.rule_class(cast("dict[str, str]", pairs))
        except RuleError as error:
            said = f"{error.value!r}: " if error.value else ""
            below = (*item_path, error.key) if error.key in item else item_path
            yield document.problem(below, f"{said}{error.reason}")


def find_parser(name: str) -> ParserFactory:
    """The factory of l7proto `name`. Raises PolicyError, naming the known ones, if none is."""
    try:
        factory = get_parser_factory(name)
    except RegistrationError as error:
        raise PolicyError(f"parser {name!r} cannot be loaded: {error}") from error
    if factory is None:
        known = ", ".join(parser_names()) or "none"
        raise PolicyError(f"no parser is called {name!r} (known: {known})")
    return factory


def _items(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield (*path, index), item


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


KINDS: dict[str, Callable[[Document], list[Policy]]] = {
    "CiliumNetworkPolicy": _cilium_network_policy,
}
"""How to load each kind of document."""
