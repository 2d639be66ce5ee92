"""Requests for the trace: from what a person writes to what a parser's rules judge."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proxylib.http_path import normalize_path
from proxylib.message import Message, Properties, Value
from xds.l7rules import find_parser

MAX_FIELDS = 100
"""Most properties and headers of a request."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. parser: whose; empty for whoever judges the port.

    fields: properties and their values; several for keys or topics. headers: HTTP's.
    """

    parser: str = ""
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    headers: Sequence[tuple[str, str]] = ()

    def __str__(self) -> str:
        pairs = [f"{key}={shlex.quote(v)}" for key, vs in self.fields.items() for v in vs]
        pairs += [f"{shlex.quote(f'{name}: {value}')}" for name, value in self.headers]
        return " ".join([*([self.parser] if self.parser else []), *pairs])


def parse_fields(text: str, parser: str = "") -> Request:
    """``cmd=get key='a b'``. Raises ValueError."""
    fields: dict[str, list[str]] = {}
    for word in shlex.split(text):
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"{word!r} is not KEY=VALUE")
        fields.setdefault(key, []).append(value)
    return Request(parser, {key: tuple(values) for key, values in fields.items()})


def parse_http(text: str, headers: Sequence[str] = ()) -> Request:
    """``GET /x``, or ``GET http://host/x``, and headers ``Name: value``. Raises ValueError."""
    method, _, target = text.strip().partition(" ")
    host, path = "", target.strip()
    for scheme in ("http://", "https://"):
        if path.startswith(scheme):
            host, slash, rest = path.removeprefix(scheme).partition("/")
            path = slash + rest or "/"
    if not method or not path.startswith("/"):
        raise ValueError(f"{text!r} is not METHOD /PATH")
    pairs = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise ValueError(f"{header!r} is not 'Name: value'")
        if name.strip().lower() == "host":
            host = value.strip()
        else:
            pairs.append((name.strip().lower(), value.strip()))
    return Request("http", {"method": (method,), "path": (path,), "host": (host,)}, pairs)


def message_of(request: Request, parser: str) -> Properties:
    """The properties that `parser` would have its rules judge. Raises ValueError."""
    if sum(map(len, request.fields.values())) + len(request.headers) > MAX_FIELDS:
        raise ValueError(f"a request has at most {MAX_FIELDS} properties and headers")
    if parser == "http":
        return _http(request)
    known = _properties(parser)
    message: dict[str, Value] = {**dict.fromkeys(known, b""), **_ABSENT.get(parser, {})}
    for key, values in request.fields.items():
        name = _property(key, known, parser)
        encoded = tuple(value.encode("utf-8", "surrogateescape") for value in values)
        message[name] = encoded[0] if len(encoded) == 1 else encoded
    return Message(message)


_ABSENT: Mapping[str, Mapping[str, Value]] = {
    "kafka": {"api_version": 0, "topics": ()},
}
"""What a request has of a property that is not given, if not the empty text."""


def _properties(parser: str) -> dict[str, str]:
    """The properties that the rules of `parser` look at, with the keys of rules for each."""
    fields = find_parser(parser).rule_class.fields
    return {field.of: key for key, field in fields.items()}


def _property(key: str, known: Mapping[str, str], parser: str) -> str:
    """The property that a person means by `key`: its name, its beginning, or a rule's key."""
    if key in known:
        return key
    fields = find_parser(parser).rule_class.fields
    if key in fields:
        return fields[key].of
    begun = [name for name in known if name.startswith(key)]
    if len(begun) == 1:
        return begun[0]
    raise ValueError(f"parser {parser} has no property {key!r} (known: {', '.join(known)})")


def _http(request: Request) -> Properties:
    unknown = [key for key in request.fields if key not in ("method", "path", "host")]
    if unknown:
        raise ValueError(f"http has no property {unknown[0]!r} (known: method, path, host)")
    given = {key: values[-1].encode() for key, values in request.fields.items() if values}
    path = normalize_path(given.get("path", b"/"))
    if path is None:
        raise ValueError(f"the path {given['path']!r} is answered 400: it cannot be normalised")
    message: dict[str, object] = {
        "method": given.get("method", b"GET"),
        "path": path,
        "host": given.get("host", b""),
        "scheme": b"http",
        "headers": tuple((name.encode(), value.encode()) for name, value in request.headers),
    }
    return message  # type: ignore[return-value]
