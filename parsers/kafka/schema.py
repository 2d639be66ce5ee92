"""The layout of every request and response in every version, read from schemas.txt.

That file is made from Kafka's own message definitions (scripts/kafka_schemas.py says
what its lines mean).  A `Layout` is what one version of a message looks like; it is
made on first use.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from proxylib import ParserError

FIXED = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "int64": 8,
    "float64": 8,
    "uuid": 16,
}
"""Types that always have the same size, bytes."""

Versions = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """One field of a message, with the versions that have it."""

    name: str
    type: str
    versions: Versions
    null: Versions | None
    tag: int | None
    default: str
    topic: bool
    topic_id: bool
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One field as one version has it.

    type: a fixed type, string, bytes, records, or {} for a struct. array: whether it
    is many of them. layout: the struct's.
    """

    name: str
    type: str
    array: bool
    nullable: bool
    tag: int | None
    default: Any
    topic: bool
    topic_id: bool
    layout: Layout | None


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A struct in one version. flexible: compact lengths and tagged fields."""

    items: tuple[Item, ...]
    tagged: dict[int, Item]
    flexible: bool

    def __getitem__(self, name: str) -> Item:
        return next(item for item in (*self.items, *self.tagged.values()) if item.name == name)

    def __contains__(self, name: str) -> bool:
        return any(item.name == name for item in self.items)

    def offset(self, name: str) -> int:
        """Where the field `name` begins, if only fixed types stand before it, else -1."""
        at = 0
        for item in self.items:
            if item.name == name:
                return at
            if item.array or item.type not in FIXED:
                break
            at += FIXED[item.type]
        return -1


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A message in a range of versions."""

    versions: Versions
    flexible: Versions | None
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Api:
    """One API key. versions: the first and the last that are understood."""

    key: int
    name: str
    versions: Versions
    requests: tuple[Block, ...]
    responses: tuple[Block, ...]


def _in(version: int, versions: Versions | None) -> bool:
    return versions is not None and versions[0] <= version <= versions[1]


def _range(text: str) -> Versions:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def _field(words: list[str], fields: tuple[Field, ...], versions: Versions) -> Field:
    name, type_, *rest = words
    if rest and rest[0][0].isdigit():
        versions = _range(rest.pop(0))
    null: Versions | None = None
    if "null" in rest and (at := rest.index("null")) == 0:
        rest.pop(at)
        null = _range(rest.pop(0)) if rest and rest[0][0].isdigit() else versions
    tag = int(rest[rest.index("tag") + 1]) if "tag" in rest else None
    default = rest[rest.index("default") + 1] if "default" in rest else ""
    return Field(
        name, type_, versions, null, tag, default, "topic" in rest, "topicid" in rest, fields
    )


def _fields(lines: list[str], depth: int, versions: Versions) -> tuple[Field, ...]:
    """The fields that `lines` begins with, at `depth`; takes them off its end."""
    found = []
    while lines and len(lines[-1]) - len(lines[-1].lstrip()) == depth:
        words = lines.pop().split()
        own = _range(words[2]) if len(words) > 2 and words[2][0].isdigit() else versions
        found.append(_field(words, _fields(lines, depth + 2, own), versions))
    return tuple(found)


def _load() -> dict[int, Api]:
    text = files(__package__).joinpath("schemas.txt").read_text()
    lines = [line for line in text.splitlines() if line and line[0] != "#"][::-1]
    names: dict[int, str] = {}
    blocks: dict[tuple[int, str], list[Block]] = defaultdict(list)
    while lines:
        key, name, kind, versions, *flexible = lines.pop().split()
        names[int(key)] = name
        range_ = _range(versions)
        fields = _fields(lines, 2, range_)
        block = Block(range_, _range(flexible[1]) if flexible else None, fields)
        blocks[int(key), kind].append(block)
    return {
        key: Api(
            key,
            name,
            (blocks[key, "request"][0].versions[0], blocks[key, "request"][-1].versions[1]),
            tuple(blocks[key, "request"]),
            tuple(blocks[key, "response"]),
        )
        for key, name in names.items()
    }


APIS = _load()
"""Every API, by its key."""


UNDERSTOOD: dict[tuple[int, int], tuple[str, bool]] = {
    (api.key, version): (api.name, _in(version, block.flexible))
    for api in APIS.values()
    for block in api.requests
    for version in range(block.versions[0], block.versions[1] + 1)
}
"""By API key and version: the name, and whether requests are flexible."""


@cache
def request(key: int, version: int) -> Layout:
    """The body of a request. Raises ParserError for what is not understood."""
    return _layout(key, version, "requests")


@cache
def response(key: int, version: int) -> Layout:
    """The body of a response. Raises ParserError for what is not understood."""
    return _layout(key, version, "responses")


def _layout(key: int, version: int, kind: str) -> Layout:
    api = APIS.get(key)
    blocks: tuple[Block, ...] = getattr(api, kind, ())
    for block in blocks:
        if _in(version, block.versions):
            return _struct(block.fields, version, _in(version, block.flexible))
    name = api.name if api else f"API key {key}"
    raise ParserError(f"{name} version {version} is not understood")


def _struct(fields: tuple[Field, ...], version: int, flexible: bool) -> Layout:
    items = [_item(field, version, flexible) for field in fields if _in(version, field.versions)]
    return Layout(
        tuple(item for item in items if item.tag is None),
        {item.tag: item for item in items if item.tag is not None},
        flexible,
    )


def _item(field: Field, version: int, flexible: bool) -> Item:
    array = field.type.startswith("[]")
    base = field.type.removeprefix("[]") or "{}"
    layout = _struct(field.fields, version, flexible) if base == "{}" else None
    nullable = _in(version, field.null)
    return Item(
        field.name,
        base,
        array,
        nullable,
        field.tag,
        _default(field.default, base, array, nullable),
        field.topic,
        field.topic_id,
        layout,
    )


def _default(text: str, base: str, array: bool, nullable: bool) -> Any:
    if text == "null" and nullable:
        return None
    if array:
        return []
    match base:
        case "string" | "bytes" | "records":
            return b""
        case "uuid":
            return bytes(16)
        case "bool":
            return text.lower() == "true"
        case "float64":
            return 0.0
        case "{}":
            return {}
    return int(text or 0)
