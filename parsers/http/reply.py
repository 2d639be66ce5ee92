"""A reply's head, read as strictly as a request's.

Source: RFC 9112 (section 6.3), RFC 9110 (section 15).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from parsers.http.heads import (
    MAX_FIELDS,
    BadMessage,
    body_length,
    check_text,
    is_folded,
    lines_of,
    options,
    read_fields,
    split,
    unfold,
)

UNTIL_CLOSE = -2
"""In place of a body's length: it ends with the connection."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?").fullmatch

_FIELDS = re.compile(rb"(?:\r\n[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n]*)*\r\n\r\n").fullmatch
"""A section that `read_fields` accepts; each byte is looked at once."""

_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding|upgrade):([^\r\n]*)").findall

REPLY_HEAD = "a reply head"

SWITCHING = 101
_BODILESS = (204, 304)


class Reply(NamedTuple):
    """The head of a reply."""

    raw: bytes
    status: int
    length: int
    """Of the body, unless the request was HEAD; CHUNKED or UNTIL_CLOSE."""
    head: bytes
    """What is sent on: `raw`, but for line foldings."""


def read_reply(raw: bytes) -> Reply:
    """The reply whose head is `raw`. Raises BadMessage."""
    check_text(raw, REPLY_HEAD)
    start, section = split(raw)
    head = raw
    if is_folded(section):
        section = unfold(section)
        head = start + section
    match = _STATUS_LINE(start)
    if match is None:
        raise BadMessage(f"a status line {start[:60]!r}")
    status = int(match[2])
    if not _FIELDS(section) or b"_" in section or section.count(b"\r\n") > MAX_FIELDS + 2:
        # What is wrong, if anything is.
        read_fields(lines_of(section))
    found: dict[bytes, list[bytes]] = {}
    for name, value in _FRAMING(section.lower()):
        found.setdefault(name, []).append(value.strip(b" \t"))
    codings = found.get(b"transfer-encoding", [])
    length = body_length(codings, found.get(b"content-length", []), old=match[1] == b"0")
    if status < 200 or status == 204:
        if length:
            raise BadMessage(f"a body in a reply with status {status}")
        if status == SWITCHING and options(found.get(b"upgrade", [])) != [b"websocket"]:
            raise BadMessage("a switch to a protocol that is not WebSocket")
    if status < 200 or status in _BODILESS:
        length = 0
    elif length is None:
        length = UNTIL_CLOSE
    return Reply(raw, status, length, head)
