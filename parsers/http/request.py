"""A request's head, read strictly: what the policy is asked about, and what is sent on.

The path that the policy sees is the one that the server gets: normalised, and put back
into the request line if that changed it.  Besides, three things are taken from a request
on its way, all of them about the hop and not about the resource:

- ``Expect: 100-continue``: we answer it ourselves, as Envoy does. A server that refuses
  such a request unread may take its body for the next request; so none is told to wait.
- ``Upgrade`` to anything but a WebSocket (h2c foremost): behind it nobody could judge.
- line foldings, which become a space.

Source: RFC 9112 (sections 3 and 6), RFC 9110 (sections 7.6, 7.8 and 10.1.1).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, cast

from parsers.http.heads import (
    FRAMING,
    LOOKALIKE,
    TOKEN,
    VISIBLE,
    BadMessage,
    Fields,
    body_length,
    check_text,
    is_folded,
    join,
    lines_of,
    options,
    read_fields,
    split,
    unfold,
    values_of,
)
from parsers.http.state import Asked
from proxylib import HeaderEdits, Headers, Value, normalize_path, redact

_HOST = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()*+;=:[]"
"""What may stand in a Host: RFC 3986's host and port, without a comma."""

_DEFAULT_PORT = {b"http": b":80", b"https": b":443"}

_HOP = frozenset((b"upgrade", b"http2-settings"))
_SPECIAL = LOOKALIKE | {b"expect"}

REQUEST_HEAD = "a request head"


class Section(NamedTuple):
    """The header fields of a request. One client's requests often have the same."""

    raw: bytes
    before: bytes
    behind: bytes
    """What of the request line is around the target: ``GET `` and `` HTTP/1.1``."""
    tail: bytes
    """All behind the target."""
    message: dict[str, Value]
    """What the policy sees, but for the path."""
    shown: Fields | None
    """The headers as the log may have them, if some are secret."""
    host: bytes
    length: int
    """Of the body; CHUNKED."""
    sent: bytes
    """What is sent on: `raw` itself if it is as it came."""
    closes: bool
    """The client asks nothing more on this connection."""
    expects: bool
    """The client waits for 100 before it sends the body."""
    asked: Asked
    """What its reply needs to know."""
    plain: bool
    """Nothing is to be done but to ask the policy, and to pass it on."""


class Request(NamedTuple):
    """The head of a request."""

    message: dict[str, Value]
    """What the policy and the log see: protocol, method, path, host, scheme, headers."""
    method: bytes
    path: bytes
    head: bytes
    """What is sent on, if the policy changes nothing."""
    changed: bool
    """Whether this is not what came."""
    section: Section


def read_request(raw: bytes, last: Section | None = None) -> Request:
    """The request whose head is `raw`. Raises BadMessage.

    last: header fields that were read before, which are not read again.
    """
    start, rest = split(raw)
    known = last is not None and last.raw == rest
    check_text(start if known else raw, REQUEST_HEAD)
    words = start.split(b" ")
    if len(words) != 3:
        raise BadMessage("a request line that is not method, target and version")
    method, target, version = words
    section = last
    if not known or section is None or start != section.before + target + section.behind:
        section = _read_section(rest, method, version)
    path, sent = _path(method, target, section.host)
    changed = True
    if sent != target:
        raw = b" ".join((method, sent, version)) + section.sent
    elif section.sent is not section.raw:
        raw = start + section.sent
    else:
        changed = False
    return Request({**section.message, "path": path}, method, path, raw, changed, section)


def _read_section(raw: bytes, method: bytes, version: bytes) -> Section:
    if not method or method.translate(None, TOKEN):
        raise BadMessage("a method that is not a token")
    old = version == b"HTTP/1.0"
    if not old and version != b"HTTP/1.1":
        raise BadMessage("a version that is not HTTP/1.1 or HTTP/1.0")
    sent = unfold(raw) if is_folded(raw) else raw
    fields = read_fields(lines_of(sent))
    host = _host(fields, old)
    special = _SPECIAL.intersection([name for name, _ in fields])
    length = 0
    if special & FRAMING:
        codings = values_of(fields, b"transfer-encoding")
        length = body_length(codings, values_of(fields, b"content-length"), old=old) or 0
    connection = options(values_of(fields, b"connection")) if b"connection" in special else []
    closes = b"close" in connection or (old and b"keep-alive" not in connection)
    expects, tunnel = False, False
    if b"expect" in special:
        if options(values_of(fields, b"expect")) != [b"100-continue"]:
            raise BadMessage("an expectation other than 100-continue")
        expects = length != 0 and not old
        sent = edit(sent, (b"expect",))
    if b"upgrade" in special:
        tunnel = (
            options(values_of(fields, b"upgrade")) == [b"websocket"]
            and b"upgrade" in connection
            and (method, length, old) == (b"GET", 0, False)
        )
        if not tunnel:
            kept = b", ".join(option for option in connection if option not in _HOP)
            sent = edit(sent, _HOP | {b"connection"}, [(b"connection", kept)] if kept else [])
    headers = cast("Sequence[bytes]", Headers(fields))
    line: dict[str, Value] = {
        "protocol": version,
        "method": method,
        "host": host,
        "scheme": b"http",
    }
    shown = redact(fields)
    asked = Asked(line, method == b"HEAD", tunnel, 512 + len(host))
    return Section(
        raw,
        method + b" ",
        b" " + version,
        b" " + version + raw,
        {**line, "headers": headers},
        None if shown == fields else shown,
        host,
        length,
        sent,
        closes,
        expects,
        asked,
        sent is raw and shown == fields and not tunnel and length >= 0 and method != b"CONNECT",
    )


def edit(
    section: bytes, remove: Collection[bytes], add: Iterable[tuple[bytes, bytes]] = ()
) -> bytes:
    """`section` without the headers named in `remove` (lower case), and with those in `add`."""
    lines = lines_of(section)
    kept = [line for line in lines if line.split(b":", 1)[0].lower() not in remove]
    return join(kept + [name + b": " + value for name, value in add])


def with_edits(request: Request, edits: HeaderEdits) -> bytes:
    """The head with the policy's edits; nothing if they would change what it means to HTTP."""
    start, section = split(request.head)
    head = start + edit(section, edits.remove, edits.add)
    try:
        again = read_request(head)
    except BadMessage:
        return b""
    before, after = request.section, again.section
    same = (after.length, after.asked, after.host) == (before.length, before.asked, before.host)
    return head if same and not again.changed else b""


def _host(fields: Fields, old: bool) -> bytes:
    """The value of Host: just one, but that HTTP/1.0 may be without."""
    hosts = values_of(fields, b"host")
    if len(hosts) != 1:
        if old and not hosts:
            return b""
        raise BadMessage("more than one Host" if hosts else "no Host")
    if hosts[0].translate(None, _HOST):
        raise BadMessage("a Host that is no host")
    return hosts[0]


def _path(method: bytes, target: bytes, host: bytes) -> tuple[bytes, bytes]:
    """The path that the policy sees, and the target that the server gets."""
    if target.translate(None, VISIBLE) or b"#" in target:
        raise BadMessage("a request target with a character that is none of a URI")
    if method == b"CONNECT" or (target == b"*" and method == b"OPTIONS"):
        return target, target
    if target.startswith(b"/"):
        path = _normalized(target)
        return path, path
    scheme, mark, rest = target.partition(b"://")
    scheme = scheme.lower()
    if not mark or scheme not in _DEFAULT_PORT:
        raise BadMessage("a request target that is neither a path nor a URL")
    authority = rest.split(b"/", 1)[0].split(b"?", 1)[0]
    port = _DEFAULT_PORT[scheme]
    if authority.lower().removesuffix(port) != host.lower().removesuffix(port) or not authority:
        raise BadMessage("a URL whose authority is not the Host")
    path = rest[len(authority) :]
    path = _normalized(path if path.startswith(b"/") else b"/" + path)
    return path, target[: len(target) - len(rest)] + authority + path


def _normalized(path: bytes) -> bytes:
    normal = normalize_path(path)
    if normal is None:
        raise BadMessage("a path that cannot be normalised")
    return normal
