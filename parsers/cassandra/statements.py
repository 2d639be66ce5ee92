"""Reads CQL statements: what they do, to which table.

Every kind of statement is one line of `FORMS`, followed token by token, so that a
keyword in a literal, a comment or a quoted name is never taken for one.  A statement
is read only as far as the verdict needs; what follows can not make it another
statement, for CQL takes one statement at a time.

The tokens are those of Cassandra's own lexer.  Where two tokens touch that its
lexer would part and a reader would not (``1FROM``, ``-NANDELETE``), we give up:
what is not read for sure is not passed.

One regex reads one token, and nothing that it repeats can be read in two ways: hostile
text costs time in proportion to its length.  It needs no possessive quantifiers or
atomic groups, which Python before 3.11.5 gets wrong (gh-106052).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Literal, NamedTuple

from proxylib import Properties

MAX_TOKENS = 1 << 18
"""Most tokens that are read of a statement, comments among them. Cassandra's own limit
for a batch is 50 KiB by default."""

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
_UUID = rb"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"
_PERIOD = (
    rb"P(?:[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}|[0-9]+W|"
    rb"(?:[0-9]+Y)?(?:[0-9]+M)?(?:[0-9]+D)?(?:T(?:[0-9]+H)?(?:[0-9]+M)?(?:[0-9]+S)?)?)"
)
_PERIOD_BEGINS = rb"P(?:[0-9]+[YMWD]|T[0-9]+[HMS]|[0-9]{4}-)"
# A duration has each unit once at most, and counts it in 64 bits. The dot after an integer
# belongs to it; two dots are a range.
_NUMBER = (
    rb"0[xX][0-9A-Fa-f]*|"
    rb"(?:[0-9]{1,19}(?i:y|mo|ms|m|w|d|h|s|us|\xc2\xb5s|ns)){1,16}|"
    rb"[0-9]+(?:(?!\.(?!\.))|\.[0-9]*)(?:[eE][+-]?[0-9]+)?"
)
# Two quotes in a literal end one token and begin the next, which is as good.
_TOKEN = re.compile(
    rb"[ \t\r\n]*(?:"
    rb"(?P<word>(?!" + _UUID + rb"|" + _PERIOD_BEGINS + rb")[A-Za-z][A-Za-z0-9_]*)|"
    rb"(?P<sign>[.:?])|"
    rb"[(),;+%*=<>!\[\]{} \t\r\n]+|"
    rb"'[^']*'|"
    rb'"(?P<quoted>[A-Za-z0-9_]+)"(?!")|"[^"]*"|'
    rb"(?P<comment>(?:--|//)[^\r\n]*[\r\n]|/\*(?s:.*?)\*/)|"
    rb"(?P<number>-?(?!" + _UUID + rb")(?:" + _NUMBER + rb")" + _END + rb")|"
    rb"\$\$(?s:.*?)\$\$|"
    rb"(?:" + _UUID + rb"|(?=" + _PERIOD_BEGINS + rb")" + _PERIOD + rb")" + _END + rb"|"
    rb"-(?!-)(?!(?i:nan|infinity)[A-Za-z0-9_])|/(?![/*])|"
    rb"(?P<unknown>(?s:.)))"
)

_BEGINNINGS = frozenset(
    b"insert update delete apply select truncate use create alter drop grant revoke begin".split()
)
"""Words that are reserved: they are no names, and in a batch they begin something."""


class _Cursor:
    """A place in a statement: at a token, or at the end (None).

    Raises Unreadable from whatever moves it once it has read `MAX_TOKENS`.
    """

    __slots__ = ("_left", "_statement", "token")

    def __init__(self, statement: bytes) -> None:
        self._statement = statement
        self._left = MAX_TOKENS
        self.token: re.Match[bytes] | None = None
        self._advance(0)

    def _advance(self, position: int) -> None:
        token = _TOKEN.match(self._statement, position)
        self._left -= 1
        while token is not None and token.lastgroup == "comment" and self._left >= 0:
            token = _TOKEN.match(self._statement, token.end())
            self._left -= 1
        self.token = token
        self._check()

    def _check(self) -> None:
        if self._left < 0:
            raise Unreadable(f"a statement of more than {MAX_TOKENS} tokens")

    def get(self, kind: Literal["word", "sign", "quoted", "number"]) -> bytes:
        """The text of the token if it is of this kind, words in lower case; else b""."""
        token = self.token
        if token is None or token.lastgroup != kind:
            return b""
        return token[kind].lower() if kind == "word" else token[kind]

    def next(self) -> None:
        """Goes to the next token that is no comment; at the end it stays."""
        if self.token is not None:
            self._advance(self.token.end())

    def accept(self, words: frozenset[bytes]) -> bool:
        """Steps over the token if it is one of these words; whether it was."""
        found = self.get("word") in words
        if found:
            self.next()
        return found

    def seek(self, words: frozenset[bytes]) -> None:
        """Goes to the first of these words, from the token on, or to where none can be."""
        if self.token is None:
            return
        ahead = _TOKEN.finditer(self._statement, self.token.start())
        self.token = None
        for token in islice(ahead, self._left + 1):
            self._left -= 1
            kind = token.lastgroup
            if (kind == "word" and token["word"].lower() in words) or kind == "unknown":
                self.token = token
                break
        self._check()

    def name(self) -> bytes:
        """The name at the token, which is then behind us; b"" if none is there."""
        name = self.get("quoted") or self.get("word")
        if self.get("word") in _BEGINNINGS:
            return b""
        if name:
            self.next()
        return name


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
``...word`` for everything up to a keyword and the keyword, and the name that is judged."""

_Verb = Literal["words", "option", "seek", "table", "keyspace"]
_Step = tuple[_Verb, tuple[frozenset[bytes], ...]]
"""What a form asks for, and its words in their order, alternatives together."""
_Form = tuple[bytes, tuple[_Step, ...]]
"""An action, and how it goes on after its first word."""


def _words(text: str) -> tuple[frozenset[bytes], ...]:
    return tuple(frozenset(word.split(b"|")) for word in text.encode().split())


def _steps(form: str) -> Iterator[_Step]:
    parts = r"\.\.\.(\w+)|<(\w+)>|\(([^)]+)\)(\?)?|(\w+)"
    for skip, name, group, option, word in re.findall(parts, form):
        if skip:
            (word,) = _words(skip)
            # What is granted may be called as a statement is; what is selected may not.
            yield "seek", (word | _BEGINNINGS if skip == "from" else word,)
            yield "words", (word,)
        elif name:
            yield ("table" if name == "table" else "keyspace"), ()
        else:
            yield ("option" if option else "words"), _words(group or word)


def _by_first_word() -> dict[bytes, list[_Form]]:
    table: dict[bytes, list[_Form]] = defaultdict(list)
    for action, form in FORMS:
        (_, (first,)), *rest = _steps(form)
        for word in first:
            table[word].append((action.encode(), tuple(rest)))
    return dict(table)


_FORMS = _by_first_word()


def read(statement: bytes, keyspace: bytes) -> Reading:
    """What `statement` does if `keyspace` is the one in use (b"" for none).

    Raises Unreadable. Readings of short statements are remembered, and of the heads of
    statements: traffic repeats itself, if only up to its first value.
    """
    head = head_of(statement)
    if head:
        reading = read_head(head, keyspace)
        if reading is not None:
            return reading
    if len(statement) <= _MAX_REMEMBERED:
        return _remembered(statement, keyspace)
    return _read(statement, keyspace)


_MAX_REMEMBERED = 1024

_HEAD = re.compile(rb"[^'\"$/\-=(<>]*[=(<>]").match
"""Up to a sign that is no part of a name or a literal, with no quotes or comments before:
whatever follows, the tokens before that sign are what they are."""


def head_of(statement: bytes) -> bytes:
    """Where a statement begins as others do, for `read_head`; b"" if it does not."""
    head = _HEAD(statement, 0, _MAX_REMEMBERED)
    return head[0] if head is not None and _is_utf8(statement) else b""


def _is_utf8(statement: bytes) -> bool:
    if statement.isascii():
        return True
    try:
        statement.decode()
    except UnicodeDecodeError:
        return False
    return True


@lru_cache(maxsize=4096)
def read_head(head: bytes, keyspace: bytes) -> Reading | None:
    """What a statement does that begins so; None if what follows must be read for that."""
    try:
        return _read(head, keyspace)
    except Unreadable:
        return None


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
    cursor = _Cursor(statement)
    word = cursor.get("word")
    if not word:
        raise Unreadable("a statement begins with a word")
    cursor.next()
    if word == b"begin":
        return _batch(cursor, keyspace)
    action, home, name = _form(cursor, word)
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


def _form(cursor: _Cursor, word: bytes) -> _Found:
    """What the statement that begins with `word`, just passed, does to what."""
    start = cursor.token
    for action, steps in _FORMS.get(word, ()):
        cursor.token = start
        judged = _follow(cursor, steps)
        if judged is not None:
            return (action, *judged)
    raise Unreadable(f"a statement that is not understood: {word[:32].decode()} ...")


def _follow(cursor: _Cursor, steps: tuple[_Step, ...]) -> tuple[bytes | None, bytes] | None:
    """The keyspace, if it is given, with its dot; the table, or the keyspace judged.

    None if the statement is not of this form.
    """
    home: bytes | None = b""
    name = b""
    for verb, words in steps:
        if verb == "table":
            home, name = _table(cursor)
        elif verb == "keyspace":
            name = cursor.name()
        elif verb == "option":
            start = cursor.token
            if not all(map(cursor.accept, words)):
                cursor.token = start
        elif verb == "seek":
            cursor.seek(words[0])
        elif not all(map(cursor.accept, words)):
            return None
        if verb in ("table", "keyspace") and not name:
            return None
    return home, name


def _table(cursor: _Cursor) -> tuple[bytes | None, bytes]:
    """The keyspace with its dot, if given, and the table; b"" for none."""
    home, name = None, cursor.name()
    if name and cursor.get("sign") == b".":
        cursor.next()
        home, name = name + b".", cursor.name()
    return home, (b"" if cursor.get("sign") == b"." else name)


def _batch(cursor: _Cursor, keyspace: bytes) -> Reading:
    """``BEGIN BATCH ... APPLY BATCH``, from its second word on."""
    cursor.accept(_BATCH_KINDS)
    if not cursor.accept(_BATCH):
        raise Unreadable("only a batch can begin")
    if cursor.accept(_USING):
        _timestamp(cursor)
    found: dict[_Found, None] = {}
    while word := cursor.get("word"):
        cursor.next()
        if word == b"apply" and cursor.accept(_BATCH):
            return _reading(found, keyspace)
        if word not in _IN_BATCH:
            raise Unreadable(f"a batch with a {word[:32].decode()}")
        found[_form(cursor, word)] = None
        if len(found) > MAX_ACCESSES:
            raise Unreadable(f"a batch that touches more than {MAX_ACCESSES} tables")
        cursor.seek(_BEGINNINGS)
    raise Unreadable("a batch without its end")


_BATCH_KINDS, _BATCH, _USING, _TIMESTAMP = _words("unlogged|counter batch using timestamp")
_IN_BATCH = (b"insert", b"update", b"delete")


def _timestamp(cursor: _Cursor) -> None:
    known = cursor.accept(_TIMESTAMP)
    if cursor.get("sign") == b":":
        cursor.next()
        known = known and cursor.get("word") != b""
    elif cursor.get("sign") != b"?":
        known = known and cursor.get("number") != b""
    if not known:
        raise Unreadable("a batch with a timestamp that is not understood")
    cursor.next()
