"""Reads CQL statements: what they do, to which table.

Every kind of statement is one line of `FORMS`, compiled to one regex over the
tokens of CQL, so that a keyword in a literal, a comment or a quoted name is never
taken for one.  A statement is read only as far as the verdict needs; what follows
can not make it another statement, for CQL takes one statement at a time.

The tokens are those of Cassandra's own lexer.  Where two tokens touch that its
lexer would part and a reader would not (``1FROM``, ``-NANDELETE``), we give up:
what is not read for sure is not passed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from proxylib import Properties

MAX_SCAN = 1 << 20
"""Longest statement whose keywords are searched for, bytes: SELECT, DELETE and
batches. Cassandra's own limit for a batch is 50 KiB by default."""

MAX_ACCESSES = 256
"""Most different tables that one request may touch."""


class Unreadable(ValueError):
    """The statement is none that we understand; the text says why."""


class Reading(NamedTuple):
    """What a statement does."""

    accesses: tuple[Properties, ...]
    """The message properties of each access, without repetitions."""
    use: bytes | None = None
    """The keyspace that a USE asks for."""
    loose: tuple[tuple[bytes, bytes], ...] = ()
    """Action and table of each access whose keyspace is the one in use."""

    def within(self, keyspace: bytes) -> tuple[Properties, ...]:
        """The loose accesses if `keyspace` is the one in use."""
        return tuple(
            {"query_action": action, "query_table": keyspace + b"." + table}
            for action, table in self.loose
        )


_END = rb"(?![A-Za-z0-9_])"
_BLANK = rb"[ \t\r\n]++|(?:--|//)[^\r\n]*+[\r\n]|/\*(?s:.*?)\*/"
_SPACE = rb"(?:" + _BLANK + rb")*+"
_UUID = rb"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"
_PERIOD = (
    rb"P(?:[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}|[0-9]++W|"
    rb"(?:[0-9]++Y)?(?:[0-9]++M)?(?:[0-9]++D)?(?:T(?:[0-9]++H)?(?:[0-9]++M)?(?:[0-9]++S)?)?)"
)
_PERIOD_BEGINS = rb"P(?:[0-9]++[YMWD]|T[0-9]++[HMS]|[0-9]{4}-)"
_WORD = rb"(?!" + _UUID + rb"|" + _PERIOD_BEGINS + rb")[A-Za-z][A-Za-z0-9_]*+"
_NUMBER = (
    rb"(?!" + _UUID + rb")(?:0[xX][0-9A-Fa-f]*+|"
    rb"(?:[0-9]++(?i:y|mo|ms|m|w|d|h|s|us|\xc2\xb5s|ns))++|"
    rb"[0-9]++(?:\.(?!\.)[0-9]*+)?+(?:[eE][+-]?[0-9]++)?+)" + _END
)
_LITERAL = (
    rb"'[^']*+(?:''[^']*+)*+'|"
    rb'"[^"]*+(?:""[^"]*+)*+"|'
    rb"\$\$(?s:.*?)\$\$|"
    rb"(?:" + _UUID + rb"|(?=" + _PERIOD_BEGINS + rb")" + _PERIOD + rb")" + _END + rb"|" + _NUMBER
)
_SIGN = rb"[(),.;:?*+%=<>!\[\]{}]|-(?!-)(?!(?i:nan|infinity)[A-Za-z0-9_])|/(?![/*])"
_NAME = rb'(?:"(?P<q%d>[A-Za-z0-9_]++)"|(?P<w%d>' + _WORD + rb"))"


def _until(word: bytes) -> bytes:
    """A pattern for everything before the keywords in `word`, token by token."""
    stop = rb"(?!(?i:" + word + rb")" + _END + rb")" + _WORD
    return rb"(?:" + rb"|".join((_BLANK, _LITERAL, _SIGN, stop)) + rb")*+"


def _keyword(word: bytes) -> bytes:
    return _SPACE + rb"(?i:" + word + rb")" + _END


_KEYSPACE = _SPACE + _NAME % (2, 2)
_TABLE = (
    rb"(?:" + _SPACE + _NAME % (1, 1) + _SPACE + rb"\.)?+" + _KEYSPACE + rb"(?!" + _SPACE + rb"\.)"
)

FORMS = (
    ("select", "select ...from <table>"),
    ("insert", "insert into <table>"),
    ("update", "update <table>"),
    ("delete", "delete ...from <table>"),
    ("truncate-table", "truncate (table|columnfamily)? <table>"),
    ("use", "use <keyspace>"),
    ("create-keyspace", "create (keyspace|schema) (if not exists)? <keyspace>"),
    ("alter-keyspace", "alter (keyspace|schema) (if exists)? <keyspace>"),
    ("drop-keyspace", "drop (keyspace|schema) (if exists)? <keyspace>"),
    ("create-table", "create (table|columnfamily) (if not exists)? <table>"),
    ("alter-table", "alter (table|columnfamily) (if exists)? <table>"),
    ("drop-table", "drop (table|columnfamily) (if exists)? <table>"),
    ("create-index", "create (custom)? index"),
    ("drop-index", "drop index"),
    ("create-materialized-view", "create materialized view"),
    ("alter-materialized-view", "alter materialized view"),
    ("drop-materialized-view", "drop materialized view"),
    ("create-type", "create type"),
    ("alter-type", "alter type"),
    ("drop-type", "drop type"),
    ("create-function", "create (or replace)? function"),
    ("drop-function", "drop function"),
    ("create-aggregate", "create (or replace)? aggregate"),
    ("drop-aggregate", "drop aggregate"),
    ("create-trigger", "create trigger"),
    ("drop-trigger", "drop trigger"),
    ("create-role", "create role"),
    ("alter-role", "alter role"),
    ("drop-role", "drop role"),
    ("create-user", "create user"),
    ("alter-user", "alter user"),
    ("drop-user", "drop user"),
    ("add-identity", "add identity"),
    ("drop-identity", "drop identity"),
    ("grant-permission", "grant ...on"),
    ("grant-role", "grant ...to"),
    ("revoke-permission", "revoke ...on"),
    ("revoke-role", "revoke ...from"),
    ("list-roles", "list roles"),
    ("list-users", "list users"),
    ("list-superusers", "list superusers"),
    ("list-permissions", "list"),
    ("describe", "(describe|desc)"),
)
"""Each kind of statement and how it begins: keywords, optional ones in ``(...)?``,
``...word`` for everything up to a keyword, and the name that is judged."""


def _compile(form: str) -> re.Pattern[bytes]:
    def part(match: re.Match[str]) -> str:
        skip, name, word = match.groups()
        if skip:
            pattern = _until(skip.encode()) + _keyword(skip.encode())
        elif name:
            pattern = _TABLE if name == "table" else _KEYSPACE
        else:
            pattern = _keyword(word.encode())
        return pattern.decode("latin-1")

    form = form.replace("(", "(?:").replace(")?", ")?+")
    pattern = re.sub(r"\s*(?:\.\.\.(\w+)|<(\w+)>|([a-z]+))\s*", part, form)
    return re.compile(pattern.encode("latin-1"))


_Form = tuple[bytes, re.Pattern[bytes], bool]
"""An action, how it begins, and whether a keyword must be searched for."""


def _by_first_word() -> dict[bytes, list[_Form]]:
    table: dict[bytes, list[_Form]] = defaultdict(list)
    for action, form in FORMS:
        for word in form.split()[0].strip("()").split("|"):
            table[word.encode()].append((action.encode(), _compile(form), "..." in form))
    return dict(table)


_FORMS = _by_first_word()
_FIRST_WORD = re.compile(_SPACE + rb"([A-Za-z_]++)" + _END)
_BATCH = re.compile(
    _keyword(rb"begin")
    + rb"(?:"
    + _keyword(rb"unlogged|counter")
    + rb")?+"
    + _keyword(rb"batch")
    + rb"(?:"
    + _keyword(rb"using")
    + _keyword(rb"timestamp")
    + _SPACE
    + rb"(?:-?+"
    + _NUMBER
    + rb"|\?|:"
    + _SPACE
    + _WORD
    + rb"))?+"
)
_BEGINNINGS = (
    rb"insert|update|delete|apply|select|truncate|use|create|alter|drop|grant|revoke|begin"
)
"""Words that are reserved: in a batch they begin something."""
_BEGINNING = rb"(?=(?P<word>(?i:" + _BEGINNINGS + rb"))" + _END + rb")"
_FIRST_IN_BATCH = re.compile(_SPACE + _BEGINNING)
_NEXT_IN_BATCH = re.compile(_until(_BEGINNINGS) + _BEGINNING)
_IN_BATCH = (b"insert", b"update", b"delete")
_APPLY = re.compile(_keyword(rb"apply") + _keyword(rb"batch"))


def read(statement: bytes, keyspace: bytes) -> Reading:
    """What `statement` does if `keyspace` is the one in use (b"" for none).

    Raises Unreadable. Readings of short statements are remembered: traffic
    repeats itself.
    """
    if len(statement) <= _MAX_REMEMBERED:
        return _remembered(statement, keyspace)
    return _read(statement, keyspace)


_MAX_REMEMBERED = 1024

_Found = tuple[bytes, bytes | None, bytes]
"""An action, a keyspace with its dot (None: the one in use), a name."""


@lru_cache(maxsize=4096)
def _remembered(statement: bytes, keyspace: bytes) -> Reading:
    return _read(statement, keyspace)


def _read(statement: bytes, keyspace: bytes) -> Reading:
    try:
        statement.decode()
    except UnicodeDecodeError as error:
        raise Unreadable("a statement that is not UTF-8") from error
    first = _FIRST_WORD.match(statement)
    if first is None:
        raise Unreadable("a statement begins with a word")
    word = first[1].lower()
    if word == b"begin":
        return _batch(statement, keyspace)
    action, home, name = _form(statement, 0, word)
    use = name if action == b"use" else None
    return _reading({(action, home, name): None}, keyspace, use)


def _reading(found: Iterable[_Found], keyspace: bytes, use: bytes | None = None) -> Reading:
    accesses: list[Properties] = []
    loose: list[tuple[bytes, bytes]] = []
    for action, home, name in found:
        if home is None:
            loose.append((action, name))
            home = keyspace + b"."
        accesses.append({"query_action": action, "query_table": home + name})
    return Reading(tuple(accesses), use, tuple(loose))


def _form(statement: bytes, start: int, word: bytes) -> _Found:
    """What the statement at `start`, which begins with `word`, does to what."""
    for action, pattern, searches in _FORMS.get(word, ()):
        if searches and len(statement) > MAX_SCAN:
            raise Unreadable(f"a {word.decode()} of more than {MAX_SCAN} bytes")
        match = pattern.match(statement, start)
        if match is not None:
            return (action, *_name(match))
    raise Unreadable(f"a statement that is not understood: {word[:32].decode()} ...")


def _name(match: re.Match[bytes]) -> tuple[bytes | None, bytes]:
    """The keyspace, if it is given, with its dot; the table, or the keyspace judged."""
    found = match.groupdict()
    if "w2" not in found:
        return b"", b""
    name: bytes = found["q2"] or found["w2"].lower()
    if "w1" not in found:
        return b"", name
    if found["q1"] is None and found["w1"] is None:
        return None, name
    home: bytes = found["q1"] or found["w1"].lower()
    return home + b".", name


def _batch(statement: bytes, keyspace: bytes) -> Reading:
    """``BEGIN BATCH ... APPLY BATCH``."""
    if len(statement) > MAX_SCAN:
        raise Unreadable(f"a batch of more than {MAX_SCAN} bytes")
    begin = _BATCH.match(statement)
    if begin is None:
        raise Unreadable("only a batch can begin")
    position = begin.end()
    found: dict[_Found, None] = {}
    pattern = _FIRST_IN_BATCH
    while (match := pattern.match(statement, position)) is not None:
        pattern = _NEXT_IN_BATCH
        position = match.end()
        word = match["word"].lower()
        if word == b"apply":
            if _APPLY.match(statement, position) is None:
                break
            return _reading(found, keyspace)
        if word not in _IN_BATCH:
            raise Unreadable(f"a batch with a {word.decode()}")
        found[_form(statement, position, word)] = None
        if len(found) > MAX_ACCESSES:
            raise Unreadable(f"a batch that touches more than {MAX_ACCESSES} tables")
        position += len(word)
    raise Unreadable("a batch without its end")
