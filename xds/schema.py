"""A JSON schema of policy documents, for editors: made of the models that check them.

The models say more than a schema can (which fields go together, whose values a
parser takes), so a document that fits the schema may still be refused; one that does
not fit is refused in any case.  The keys of the parsers that are registered when the
schema is made are in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import models_json_schema

from proxylib.errors import RegistrationError
from proxylib.parser import ParserFactory
from proxylib.registry import get_parser_factory, parser_names
from proxylib.rules import Exact
from xds import model_ports
from xds.documents import SHAPES

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def document_schema() -> dict[str, Any]:
    """The schema of one document of any kind."""
    models = list(SHAPES.values())
    refs, generated = models_json_schema(
        [(shape, "validation") for shape in models], ref_template="#/$defs/{model}"
    )
    definitions: dict[str, Any] = _plain(generated["$defs"])
    rules = definitions["L7Rules"]
    rules["allOf"] = list(_parser_rules())
    rules["properties"]["l7proto"] = {"type": "string", "examples": list(parser_names())}
    return {
        "$schema": DIALECT,
        "title": "Network policy",
        "description": "A policy document that the control server takes.",
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": list(SHAPES)}},
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
                "then": refs[shape, "validation"],
            }
            for kind, shape in SHAPES.items()
        ],
        "$defs": definitions,
    }


def _plain(schema: Any) -> Any:
    """`schema` without what pydantic adds to it: titles, and null for "not given"."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: {name: _property(value) for name, value in item.items() if not _is_null(value)}
        if key == "properties"
        else _plain(item)
        for key, item in schema.items()
        if key != "title" or not isinstance(item, str)
    }
    if "examples" not in found and found.get("default", ...) is None:
        del found["default"]
    return found


def _property(schema: dict[str, Any]) -> Any:
    choices = [choice for choice in schema.get("anyOf", ()) if not _is_null(choice)]
    if not choices or len(choices) == len(schema["anyOf"]):
        return _plain(schema)
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return _plain({**rest, **(choices[0] if len(choices) == 1 else {"anyOf": choices})})


def _is_null(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "null"


def _parser_rules() -> Iterator[dict[str, Any]]:
    """For each parser, which keys its rules have."""
    for name in parser_names():
        try:
            factory = get_parser_factory(name)
        except RegistrationError:
            continue
        if factory is None:
            continue
        item = _rule_schema(factory)
        yield {
            "if": {"properties": {"l7proto": {"const": name}}, "required": ["l7proto"]},
            "then": {"properties": {"l7": {"items": item}}},
        }
        if name in model_ports.PARSERS:
            yield {"properties": {name: {"items": item}}}


def _rule_schema(factory: ParserFactory) -> dict[str, Any]:
    properties: dict[str, dict[str, Any]] = {}
    for key, field in factory.rule_class.fields.items():
        schema: dict[str, Any] = {"type": ["string", "null"]}
        properties[key] = schema
        if field.doc:
            schema["description"] = field.doc
        if isinstance(field, Exact) and field.choices:
            schema["enum"] = ["", None, *field.choices]
    return {"type": "object", "properties": properties, "additionalProperties": False}
