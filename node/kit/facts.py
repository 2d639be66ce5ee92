"""What a parser is: where it comes from, its rule keys, and a JSON schema of its rules."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from proxylib.errors import RegistrationError
from proxylib.parser import Parser, ParserFactory
from proxylib.registry import ENTRY_POINT_GROUP, get_parser_factory
from proxylib.rules import Exact, Field, Regex


@dataclass(frozen=True, slots=True)
class RuleKey:
    """One key that policies may use, and the message property that it tests."""

    key: str
    kind: str
    property: str
    choices: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True)
class ParserFacts:
    """One parser. `error`: why it does not load; then there is nothing else to say.

    posture: the bounds that it runs in, unless configured otherwise.
    origin: the distribution that brings it, or the file.  documentation: its class's.
    """

    name: str
    description: str = ""
    version: str = ""
    origin: str = ""
    rules: tuple[RuleKey, ...] = ()
    posture: str = ""
    documentation: str = ""
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The facts as JSON has them, with the schema of one L7 rule."""
        return asdict(self) | {"schema": None if self.error else rule_schema(self)}


def parser_facts(name: str) -> ParserFacts:
    """The facts about the parser that is named `name`; it is loaded for that."""
    entry = next(iter(entry_points(group=ENTRY_POINT_GROUP, name=name)), None)
    version, origin = _distribution(entry)
    try:
        factory = get_parser_factory(name)
    except RegistrationError as error:
        return ParserFacts(name, version=version, origin=origin, error=str(error))
    if factory is None:
        why = f"its entry point registers nothing named {name!r}"
        return ParserFacts(name, version=version, origin=origin, error=why)
    return ParserFacts(
        name=name,
        description=factory.description,
        version=version,
        origin=origin or _file(factory),
        rules=tuple(_rule_key(field) for field in factory.rule_class.fields.values()),
        posture=_posture(factory),
        documentation=_documentation(factory),
    )


def rule_schema(facts: ParserFacts) -> dict[str, Any]:
    """A JSON schema (2020-12) of one item of ``l7`` under ``l7proto: NAME``.

    What keys mean together is not in it: the parser itself checks that.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"L7 rule of {facts.name}",
        "description": facts.description,
        "type": "object",
        "properties": {key.key: _key_schema(key) for key in facts.rules},
        "additionalProperties": False,
    }


def _key_schema(key: RuleKey) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": ["string", "null"], "description": key.description}
    if key.choices:
        # An empty value counts as not given.
        schema["enum"] = [*key.choices, "", None]
    if key.kind == Regex.kind:
        schema["format"] = "regex"
    return schema


def _rule_key(field: Field) -> RuleKey:
    choices: Sequence[str] = field.choices if isinstance(field, Exact) else ()
    return RuleKey(field.key, field.kind, field.of, tuple(choices), field.doc)


def _distribution(entry: EntryPoint | None) -> tuple[str, str]:
    if entry is None or entry.dist is None:
        return "", ""
    return entry.dist.version, f"{entry.dist.name} ({entry.value})"


def _posture(factory: ParserFactory) -> str:
    made = getattr(factory, "parser_class", Parser)
    seconds = getattr(made, "time_budget", Parser.time_budget)
    held = getattr(made, "memory_budget", Parser.memory_budget)
    return f"{seconds * 1000:g} ms a call, {held >> 20} MiB a connection"


def _file(factory: ParserFactory) -> str:
    made = getattr(factory, "parser_class", type(factory))
    module = sys.modules.get(made.__module__)
    return str(getattr(module, "__file__", None) or made.__module__)


def _documentation(factory: ParserFactory) -> str:
    made = getattr(factory, "parser_class", type(factory))
    module = sys.modules.get(made.__module__)
    texts = (getattr(module, "__doc__", None), made.__doc__)
    return "\n\n".join(text.strip() for text in texts if text)
