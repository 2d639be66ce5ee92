"""What the parsers say of their L7 rules, whatever else is wrong in a document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from proxylib.errors import PolicyError, RegistrationError, RuleError
from proxylib.parser import ParserFactory
from proxylib.registry import get_parser_factory, parser_names
from xds import model_ports
from xds.source import Document, Problem
from xds.yamltext import Path

_DIRECTIONS = ("ingress", "egress")


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


def l7_problems(document: Document) -> Iterator[Problem]:
    """What the parsers refuse of the L7 rules of `document`, read as it stands."""
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
    for name in model_ports.PARSERS:
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


def _items(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield (*path, index), item


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None
