"""What an HTTP rule says about headers, as policy documents write it.

`headers` has ``Name: value`` or ``Name``; `headerMatches` has mappings of name, value,
secret and mismatch.  What a policy may do to a header is decided here, whichever way
the rule came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

import re2

from proxylib import regex
from proxylib.errors import RuleError
from proxylib.http_match import Condition
from proxylib.http_secrets import is_secret_name


class MatchAction(IntEnum):
    """cilium.HeaderMatch.MatchAction."""

    CONTINUE = 0
    FAIL = 1
    DELETE = 2


class MismatchAction(IntEnum):
    """cilium.HeaderMatch.MismatchAction: what to do with a request that has another value.

    FAIL: the rule does not match. LOG (Cilium's CONTINUE): it does, and the log has it.
    ADD, DELETE, REPLACE: it does, once the header is changed like this.
    """

    FAIL = 0
    LOG = 1
    ADD = 2
    DELETE = 3
    REPLACE = 4


_EDITS = (MismatchAction.ADD, MismatchAction.DELETE, MismatchAction.REPLACE)

FRAMING = frozenset(
    [
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
"""Headers that a policy must not change: they say where a message ends, or to whom it is."""


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """One header_matches item. value "" and no secret: the header must be there."""

    name: str
    value: str = ""
    secret: str = ""
    on_match: MatchAction = MatchAction.CONTINUE
    on_mismatch: MismatchAction = MismatchAction.FAIL


TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_TEXT = re.compile(r"[!-~\x80-\uffff](?:[\t -~\x80-\uffff]*[!-~\x80-\uffff])?")

_REGEX_SIGNS = re.compile(r"[\[\]\\^$|]|[.)][*+?]")
"""What makes of a header's value a regex, if it is one at all."""


def header_condition(line: str) -> Condition:
    """``Name: value`` or ``Name``, as a rule's `headers` have it.

    A value with the signs of a regex also matches as one (``X-Token: [0-9]+``); it always
    matches as it is written, as in Cilium.  Raises RuleError.
    """
    name, colon, value = line.partition(":")
    value = value.strip()
    _check_name("headers", line, name)
    if not colon:
        return Condition(name.lower(), "present")
    if not value:
        raise RuleError("headers", line, "has no value; leave out the colon to ask for any value")
    _check_value("headers", line, value)
    if _REGEX_SIGNS.search(value):
        try:
            regex.check("headers", value)
        except RuleError:
            pass
        else:
            return Condition(name.lower(), "regex", f"(?:{value})|{re2.escape(value)}")
    return Condition(name.lower(), "exact", value)


def header_match(item: object) -> HeaderMatch:
    """A headerMatches item: name, value, secret (``namespace/name``), mismatch.

    Raises RuleError.
    """
    key = "headerMatches"
    if not isinstance(item, dict):
        raise RuleError(key, str(item), "must be a mapping")
    for field, value in item.items():
        if field not in ("name", "value", "secret", "mismatch"):
            raise RuleError(key, str(field), "unknown key (known: name, value, secret, mismatch)")
        if not isinstance(value, str):
            raise RuleError(key, str(value), f"{field} must be text")
    name, value = item.get("name", ""), item.get("value", "")
    mismatch = item.get("mismatch", "")
    if mismatch not in ("", "LOG", "ADD", "DELETE", "REPLACE"):
        raise RuleError(key, mismatch, "mismatch must be LOG, ADD, DELETE or REPLACE")
    action = MismatchAction[mismatch] if mismatch else MismatchAction.FAIL
    match = HeaderMatch(name.lower(), value, item.get("secret", ""), on_mismatch=action)
    check_match(key, match)
    return match


def _check_name(key: str, said: str, name: str) -> None:
    if said.startswith(":"):
        raise RuleError(key, said, "use method, path and host for the request line")
    if not TOKEN.fullmatch(name):
        raise RuleError(key, said, f"{name!r} cannot be a header's name")
    if name.lower() == "host":
        raise RuleError(key, said, "use host for the Host header")


def _check_value(key: str, said: str, value: str) -> None:
    if not _TEXT.fullmatch(value):
        raise RuleError(key, said, "a header's value is one line of text")


def check_match(key: str, match: HeaderMatch) -> None:
    _check_name(key, match.name, match.name)
    if match.value:
        _check_value(key, match.value, match.value)
    if match.secret and not is_secret_name(match.secret):
        raise RuleError(key, match.secret, "a secret is called namespace/name")
    changes = match.on_mismatch in _EDITS or match.on_match == MatchAction.DELETE
    if changes and match.name in FRAMING:
        raise RuleError(key, match.name, "a policy cannot change this header")
    adds = match.on_mismatch in (MismatchAction.ADD, MismatchAction.REPLACE)
    if adds and not (match.value or match.secret):
        raise RuleError(key, match.name, f"mismatch {match.on_mismatch.name} needs a value")
