"""What memcached 1.6 understands, as tables: text commands, binary opcodes, rule values.

An *action* is what a policy speaks about.  Several spellings of a request may
stand for one action: ``get``, ``gets``, ``mg`` and the opcodes 0, 9, 12, 13 are
all the action ``get``.  The shapes (how many arguments, which extras) are those
that every memcached 1.6 reads alike; a request of another shape is never sent on,
because releases differ in where they then see the next request begin.

Sources: memcached's doc/protocol.txt and its binary protocol page; the values and
groups of ``command`` are Cilium's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

MAX_KEY = 250
"""Longest key, bytes (memcached's KEY_MAX_LENGTH)."""

MAX_VALUE = (1 << 31) - 3
"""Longest value that the text protocol can announce, bytes."""

OTHER = "?"
"""The action of what is not in these tables: only a rule for everything covers it."""


class Reply(IntEnum):
    """What a text command is answered with."""

    LINE = 0
    """One line."""
    VALUES = 1
    """VALUE blocks, then END."""
    LIST = 2
    """Lines of a listing, then END; or one other line."""
    META = 3
    """One line with a two-letter code; VA has a value behind it."""
    NOOP = 4
    """The line MN."""
    WATCH = 5
    """OK, and then log lines for ever."""
    NONE = 6
    """Nothing: the server closes the connection."""


@dataclass(frozen=True, slots=True)
class TextCommand:
    """The shape of one command line. Arguments are counted without the command."""

    action: str
    reply: Reply
    least: int = 0
    most: int = 20
    """Arguments, without the noreply that some commands allow behind them."""
    first_key: int = 0
    """Which argument is the first key, from 1; 0 for none."""
    many_keys: bool = False
    noreply: bool = False
    value: int = 0
    """Which argument is the length of the value that follows the line; 0 for none."""
    bounds: tuple[tuple[int, int, int], ...] = ()
    """Numeric arguments as (which, least, most): where they are wrong, memcached
    1.6.18 takes the value for requests, and later releases do not."""


_FLAGS = (2, 0, (1 << 32) - 1)
_EXPIRY = (3, -(1 << 31), (1 << 31) - 1)
_CAS = (5, 0, (1 << 64) - 1)


def _store(action: str) -> TextCommand:
    return TextCommand(
        action, Reply.LINE, 4, 4, first_key=1, noreply=True, value=4, bounds=(_FLAGS, _EXPIRY)
    )


def _get(action: str, first_key: int) -> TextCommand:
    return TextCommand(
        action, Reply.VALUES, first_key, 1 << 20, first_key=first_key, many_keys=True
    )


TEXT: dict[bytes, TextCommand] = {
    b"get": _get("get", 1),
    b"gets": _get("get", 1),
    b"bget": _get("get", 1),
    b"gat": _get("gat", 2),
    b"gats": _get("gat", 2),
    b"set": _store("set"),
    b"add": _store("add"),
    b"replace": _store("replace"),
    b"append": _store("append"),
    b"prepend": _store("prepend"),
    b"cas": TextCommand(
        "cas",
        Reply.LINE,
        5,
        5,
        first_key=1,
        noreply=True,
        value=4,
        bounds=(_FLAGS, _EXPIRY, _CAS),
    ),
    b"delete": TextCommand("delete", Reply.LINE, 1, 2, first_key=1, noreply=True),
    b"incr": TextCommand("incr", Reply.LINE, 2, 2, first_key=1, noreply=True),
    b"decr": TextCommand("decr", Reply.LINE, 2, 2, first_key=1, noreply=True),
    b"touch": TextCommand("touch", Reply.LINE, 2, 2, first_key=1, noreply=True),
    b"mg": TextCommand("get", Reply.META, 1, 18, first_key=1),
    b"ms": TextCommand("set", Reply.META, 2, 18, first_key=1, value=2),
    b"md": TextCommand("delete", Reply.META, 1, 18, first_key=1),
    b"ma": TextCommand("incr", Reply.META, 1, 18, first_key=1),
    b"me": TextCommand("me", Reply.META, 1, 18, first_key=1),
    b"mn": TextCommand("noop", Reply.NOOP),
    b"stats": TextCommand("stats", Reply.LIST),
    b"slabs": TextCommand("slabs", Reply.LINE, noreply=True),
    b"lru": TextCommand("lru", Reply.LINE, 1, noreply=True),
    b"lru_crawler": TextCommand("lru_crawler", Reply.LIST),
    b"extstore": TextCommand("extstore", Reply.LINE, 1, noreply=True),
    b"watch": TextCommand("watch", Reply.WATCH, noreply=True),
    b"flush_all": TextCommand("flush_all", Reply.LINE, 0, 1, noreply=True),
    b"cache_memlimit": TextCommand("cache_memlimit", Reply.LINE, 1, 1, noreply=True),
    b"verbosity": TextCommand("verbosity", Reply.LINE, 1, 1, noreply=True),
    b"refresh_certs": TextCommand("refresh_certs", Reply.LINE, noreply=True),
    b"version": TextCommand("version", Reply.LINE),
    b"misbehave": TextCommand("misbehave", Reply.LINE),
    b"shutdown": TextCommand("shutdown", Reply.LINE),
    b"quit": TextCommand("quit", Reply.NONE),
}

META_FLAGS = frozenset(b"bcfhklOqstuvNRTEPLCFIMJDx")
"""Flags of meta commands whose meaning is known (memcached 1.6)."""

STORE_MODES = {
    b"": "set",
    b"S": "set",
    b"s": "set",
    b"E": "add",
    b"e": "add",
    b"A": "append",
    b"a": "append",
    b"P": "prepend",
    b"p": "prepend",
    b"R": "replace",
    b"r": "replace",
}
ARITHMETIC_MODES = {
    b"": "incr",
    b"I": "incr",
    b"i": "incr",
    b"+": "incr",
    b"D": "decr",
    b"d": "decr",
    b"-": "decr",
}


@dataclass(frozen=True, slots=True)
class Opcode:
    """The shape of one binary request."""

    action: str
    quiet: bool = False
    """Answered only if there is something to tell: a hit, or an error."""
    extras: tuple[int, ...] = (0,)
    """Lengths that the extras may have, bytes."""
    key: bool | None = True
    """Whether there is a key; None: either way."""
    value: bool = False
    """Whether bytes may follow the key."""
    known: bool = True
    """Whether memcached knows it. What it does not know, it cannot delimit: 1.6.18
    skips extras and key twice."""


def _both(action: str, loud: int, quiet: int, **shape: object) -> dict[int, Opcode]:
    return {
        loud: Opcode(action, **shape),  # type: ignore[arg-type]
        quiet: Opcode(action, True, **shape),  # type: ignore[arg-type]
    }


def _foreign(names: str, first: int) -> dict[int, Opcode]:
    return {
        first + index: Opcode(name, name.startswith("r") and name.endswith("q"), known=False)
        for index, name in enumerate(names.split())
    }


OPCODES: dict[int, Opcode] = {
    **_both("get", 0, 9),
    **_both("get", 12, 13),
    **_both("set", 1, 17, extras=(8,), value=True),
    **_both("add", 2, 18, extras=(8,), value=True),
    **_both("replace", 3, 19, extras=(8,), value=True),
    **_both("delete", 4, 20),
    **_both("incr", 5, 21, extras=(20,)),
    **_both("decr", 6, 22, extras=(20,)),
    **_both("quit", 7, 23, key=False),
    **_both("flush_all", 8, 24, extras=(0, 4), key=False),
    **_both("append", 14, 25, value=True),
    **_both("prepend", 15, 26, value=True),
    **_both("gat", 29, 30, extras=(4,)),
    **_both("gat", 35, 36, extras=(4,)),
    10: Opcode("noop", key=False),
    11: Opcode("version", key=False),
    16: Opcode("stats", key=None),
    27: Opcode("verbosity", known=False),
    28: Opcode("touch", extras=(4,)),
    32: Opcode("sasl-list-mechs", key=False),
    33: Opcode("sasl-auth", value=True),
    34: Opcode("sasl-step", value=True),
    **_foreign(
        "rget rset rsetq rappend rappendq rprepend rprependq rdelete rdeleteq"
        " rincr rincrq rdecr rdecrq set-vbucket get-vbucket del-vbucket"
        " tap-connect tap-mutation tap-delete tap-flush tap-opaque tap-vbucket-set"
        " tap-checkpoint-start tap-checkpoint-end",
        48,
    ),
}

UNKNOWN_OPCODE = Opcode(OTHER, known=False)

ACTIONS = frozenset(
    {command.action for command in TEXT.values()} | {code.action for code in OPCODES.values()}
)

_STORAGE = ("add", "set", "replace", "append", "prepend", "cas", "incr", "decr")

GROUPS: dict[str, tuple[str, ...]] = {
    "storage": _STORAGE,
    "writeGroup": (*_STORAGE, "delete", "touch"),
}
"""Rule values that stand for several actions."""

KEYLESS = ACTIONS - {
    *GROUPS["writeGroup"],
    *("get", "gat", "me"),
    *(code.action for number, code in OPCODES.items() if number >= 48),
}
"""Actions without a key: a rule that names one cannot restrict keys."""

COMMANDS = tuple(sorted(ACTIONS | GROUPS.keys()))
"""The legal values of a rule's ``command``."""
