"""Checking the shape of documents with pydantic, and saying what is wrong in their terms.

`Shape` is the base of every model of a document; `check` validates a document
and turns pydantic's errors into problems with a place, collecting all of them.
Nothing unknown is ever ignored: what the author wrote and we do not know may be
the part that was to protect something.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from xds.labels import check_part, split_key
from xds.source import Document, DocumentError, Problem, dotted
from xds.yamltext import MAX_PROBLEMS, Path

T = TypeVar("T")
M = TypeVar("M", bound="Shape")


class Shape(BaseModel):
    """A mapping with known fields only. Values are never converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


MAX_ITEMS = 20_000
"""Longest list of a document. Ten thousand rules are the largest policy foreseen, and
each wrong item costs memory until all are reported."""


def _not_null(value: Any) -> Any:
    if value is None:
        # In Kubernetes null is "not given", which can mean "everybody".
        raise PydanticCustomError("null", "is empty; give it a value or leave the field out")
    return value


def _label_key(text: str) -> str:
    split_key(text)
    return text


def _label_value(text: str) -> str:
    check_part(text)
    return text


Optional = Annotated[T | None, BeforeValidator(_not_null)]
"""A field that may be left out, but not be null."""

Many = Annotated[list[T], Field(max_length=MAX_ITEMS)]
"""A list that may be long."""

LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, AfterValidator(_label_value)]

_UNION_TAGS = {"[key]", "<mapping>", "<list>"}
"""Steps of pydantic's locations that are not in the document."""

_MAX_SHOWN = 80
"""Longest value quoted in a message, characters."""

Fields = Mapping[str, type[Shape] | tuple[type[Shape], ...]]
"""Which shape stands under which field name; "" is the document itself."""

_NOTHING: Mapping[str, str] = {}


def check(
    model: type[M], document: Document, fields: Fields, refused: Mapping[str, str] = _NOTHING
) -> M:
    """`document` as a `model`. Raises DocumentError with every problem.

    fields: for the hints on unknown fields: where a known field belongs.
    refused: fields that exist in Cilium and cannot be enforced here, and why.
    """
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        details = error.errors(include_url=False)[:MAX_PROBLEMS]
    raise DocumentError([_problem(detail, document, fields, refused) for detail in details])


def _problem(
    detail: ErrorDetails, document: Document, fields: Fields, refused: Mapping[str, str]
) -> Problem:
    path = _real_path(detail["loc"], document.value)
    if detail["type"] == "extra_forbidden":
        return document.problem(path, _unknown_field(path, fields, refused))
    return document.problem(path, _message(detail))


def _real_path(loc: Path, value: Any) -> Path:
    """pydantic's location without the steps that only pydantic takes."""
    path: list[str | int] = []
    for step in loc:
        if step in _UNION_TAGS:
            continue
        if step == 0 and isinstance(value, dict):
            # A single mapping where a list of them may stand.
            continue
        path.append(step)
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            value = None
    return tuple(path)


def _message(detail: ErrorDetails) -> str:
    kind, value = detail["type"], detail["input"]
    if value is None and kind not in ("null", "value_error", "missing"):
        return "is empty; if its content follows below, indent it further"
    if kind == "string_type" and isinstance(value, (list, dict)):
        return f"must be one value, not {_show(value)}{_one_value_hint(detail['loc'])}"
    template = _MESSAGES.get(kind, detail["msg"])
    # Not str.format on pydantic's own text: that has the author's values in it.
    if template == detail["msg"]:
        return template
    return template.format(value=_show(value), **detail.get("ctx", {}))


_MESSAGES = {
    "value_error": "{error}",
    "missing": "is required",
    "string_type": "must be text, not {value}; put it in quotes",
    "string_too_short": "must not be empty",
    "int_type": "must be a whole number, not {value}",
    "greater_than_equal": "must be at least {ge}, not {value}",
    "less_than_equal": "must be at most {le}, not {value}",
    "list_type": "must be a list (its items start with '- ')",
    "model_type": "must be a mapping of fields, not {value}",
    "dict_type": "must be a mapping of fields, not {value}",
    "literal_error": "must be {expected}, not {value}",
    "too_short": "must have at least {min_length} item",
    "too_long": "has more than {max_length} items",
}
"""Our words for pydantic's error types; others keep pydantic's."""


def _one_value_hint(path: Path) -> str:
    """What to write where several values were given for the one at `path`."""
    if "matchLabels" in path:
        return "; use matchExpressions with operator In"
    return "; write a rule for each" if "rules" in path else ""


def _show(value: object) -> str:
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case bool():
            return str(value).lower()
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _unknown_field(path: Path, fields: Fields, refused: Mapping[str, str]) -> str:
    name = str(path[-1])
    if name in refused:
        return f"{refused[name]}; the policy is refused, not enforced in part"
    # The field whose content this is: the last name above that is not an index.
    above = next((step for step in reversed(path[:-1]) if isinstance(step, str)), "")
    here = _names(fields, above)
    owners = [field for field in fields if field != above and name in _names(fields, field)]
    if owners:
        return f"does not belong here; it belongs under {_places(owners)} (check the indentation)"
    close = difflib.get_close_matches(name, here, n=1)
    if close:
        return f"unknown field; did you mean {close[0]!r}?"
    where = dotted(path[:-1]) or "the document"
    return f"unknown field; known in {where}: {', '.join(sorted(here)) or 'none'}"


def _shapes(fields: Fields, name: str) -> tuple[type[Shape], ...]:
    found = fields.get(name, ())
    return found if isinstance(found, tuple) else (found,)


def _names(fields: Fields, field: str) -> set[str]:
    return {
        info.alias or name
        for model in _shapes(fields, field)
        for name, info in model.model_fields.items()
    }


def _places(names: list[str]) -> str:
    texts = [repr(name) if name else "the top level" for name in names]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
