"""Text replies: what a line from the server says, and whose request it answers.

Where a reply ends is told by its own first word: VALUE and VA announce a block of
data, listings end at END, everything else is one line.  Whose it is follows from
the order of requests, except behind quiet ones, which may have been answered or
not: there a reply must fit, and MN alone is certain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from parsers.memcache.commands import TEXT, Reply

VALUE = re.compile(rb"VALUE [^\n ]+ [0-9]+ ([0-9]{1,10})(?: [0-9]+)?\r\n")
"""The header of a value of get, with its length."""

META_VALUE = re.compile(rb"VA ([0-9]{1,10})((?: [^\r\n]*)?)\r?\n")
"""The header of a value of a meta command: its length, and the flags."""

LISTING = (b"STAT ", b"ITEM ", b"PREFIX ", b"key=", b"mg ")
"""How the lines of listings begin: stats, cachedump, detail dump, metadump, mgdump."""

LINE, VALUES, LIST, META, NOOP, WATCH = map(int, list(Reply)[:6])
BARRIER = 8
"""The answer to a no-op of our own, which an error is to replace."""
DENIED = 9
"""An error that waits for its turn."""

Owed = tuple[int, bytes, tuple[bytes, ...] | None]
"""A reply owed to the client: its kind; the command, or the error to send; and, if
quiet requests went before, the tokens that a meta reply must repeat (else None)."""

NOTHING: Owed = (-1, b"", None)
UNKNOWN: Owed = (LIST, b"?", None)

OWED: Mapping[bytes, Owed] = {
    name: (int(command.reply), name, None) for name, command in TEXT.items()
}
"""The entry of each command where no quiet request went before: shared, so that
many of them cost a pointer each."""

_META_CODES: Mapping[bytes, frozenset[bytes]] = {
    b"mg": frozenset([b"VA", b"HD", b"EN"]),
    b"ms": frozenset([b"HD", b"NS", b"EX", b"NF"]),
    b"md": frozenset([b"HD", b"NF", b"EX"]),
    b"ma": frozenset([b"VA", b"HD", b"NF", b"NS", b"EX"]),
    b"me": frozenset([b"ME", b"EN"]),
}
_ALL_META_CODES = frozenset[bytes]().union(*_META_CODES.values())
_ERRORS = frozenset([b"ERROR", b"ERROR:", b"CLIENT_ERROR", b"SERVER_ERROR"])


def fits(owed: Owed, line: bytes) -> bool:
    """Whether `line` (without its line end) can be the reply that is owed next.

    If it could be that or the answer to a quiet request, it counts as the former.
    """
    kind, command, tokens = owed
    word = line.split(b" ", 1)[0]
    if kind in (NOOP, BARRIER):
        # Behind quiet requests an error may be theirs.
        return line == b"MN" or (tokens is None and word in _ERRORS)
    if word in _ERRORS:
        return kind >= 0
    if kind == META and tokens is not None:
        return word in _META_CODES[command] and _repeats(tokens, word, line)
    if kind == META:
        return word in _ALL_META_CODES
    if kind == VALUES:
        return word == b"END"
    return kind >= 0 and word not in _ALL_META_CODES and word != b"MN"


def _repeats(tokens: tuple[bytes, ...], word: bytes, line: bytes) -> bool:
    """Whether a meta reply is the one that must repeat `tokens`."""
    given = line.split(b" ")[1:]
    if all(token in given for token in tokens):
        return True
    # A miss is never told to a quiet request. Other codes without any token come
    # from a server that does not repeat them.
    if word == b"EN":
        return True
    return word not in (b"VA", b"HD") and not any(item[:1] in (b"O", b"k") for item in given)


def status_of(line: bytes) -> bytes:
    """What the log says of a reply line: its text, but not a counter's value."""
    return b"OK" if line[:1].isdigit() else line[:256]
