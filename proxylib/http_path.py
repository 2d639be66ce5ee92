"""The one normalisation of request paths, for matching and for forwarding.

It is what Envoy's HTTP connection manager does with `normalize_path`,
`merge_slashes` and `path_with_escaped_slashes_action: REJECT_REQUEST`, and refuses
where that leaves something ambiguous.  In this order:

==========================================  =========================================
the path (before the first ``?``) has       it becomes
==========================================  =========================================
no leading ``/``                            refused
a byte outside 0x21-0x7E, or ``#``          refused (in the query too)
``%2F`` ``%5C`` ``%00``, in any case        refused: two servers read them differently
``%`` without two hex digits                refused
``\\``                                       ``/``
a segment ``.`` or ``..`` (or ``%2e`` …)    resolved (RFC 3986 section 5.2.4); the root
                                            has no parent but itself
a segment ``.;x`` or ``..;x``               resolved like ``.`` or ``..``; refused if a
                                            dot of it is escaped
``%41`` of an unreserved character          the character (RFC 3986 section 6.2.2.2)
``" < > ^ ` { | }``                         escaped
several ``/`` in a row                      one; refused if there is nothing else
==========================================  =========================================

The query is not touched.
"""

from __future__ import annotations

import re
from string import ascii_letters

_SEGMENT = rb"/[A-Za-z0-9_~!$&'()*+,:=@\[\]-][A-Za-z0-9._~!$&'()*+,:=@\[\]-]*"
_NORMAL = re.compile(rb"(?:/|(?:" + _SEGMENT + rb")+/?)(?:\?[!\"$-~]*)?")
"""Most paths: nothing to do. No escapes, no ``;``, no segment that starts with a dot."""

_UNREMARKABLE = b"/?._~!$&'()*+,:=@[]-0123456789" + ascii_letters.encode()
"""What most of these consist of: cheaper to tell than by a regex."""

_LEGAL = re.compile(rb"/[!\"$-~]*")
_REFUSED_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})|%(?:2[fF]|5[cC]|00)")
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}|[\"<>^`{|}]")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_DOTS = {b".": b".", b"..": b".."}
_ESCAPED_DOT = re.compile(rb"%2[eE]")


def normalize_path(raw: bytes) -> bytes | None:
    """The path (with its query) to match and to forward; None to answer 400.

    raw: the request target in origin form, or HTTP/2's ``:path``.  Applying it to
    its own result changes nothing.
    """
    if (
        raw[:1] == b"/"
        and not raw.translate(None, _UNREMARKABLE)
        and b"//" not in raw
        and b"/." not in raw
    ):
        return raw
    if _NORMAL.fullmatch(raw):
        return raw
    if not _LEGAL.fullmatch(raw):
        return None
    path, mark, query = raw.partition(b"?")
    if _REFUSED_ESCAPE.search(path):
        return None
    segments = path[1:].replace(b"\\", b"/").split(b"/")
    resolved: list[bytes] = []
    dots: bytes | None = None
    for segment in segments:
        name, parameters, _ = segment.partition(b";")
        dots = _DOTS.get(_ESCAPED_DOT.sub(b".", name))
        if dots is None:
            resolved.append(segment)
        elif parameters and name != dots:
            return None
        elif dots == b".." and resolved:
            resolved.pop()
    if dots is not None:
        resolved.append(b"")
    if len(resolved) > 1 and not any(resolved):
        return None
    merged = [segment for segment in resolved if segment]
    if not resolved[-1]:
        merged.append(b"")
    return b"/" + _ESCAPE.sub(_canonical, b"/".join(merged)) + mark + query


def _canonical(match: re.Match[bytes]) -> bytes:
    text = match[0]
    if len(text) == 1:
        return b"%%%02X" % ord(text)
    code = int(text[1:], 16)
    return bytes([code]) if code in _UNRESERVED else text
