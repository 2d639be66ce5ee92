"""HTTP rules: one class for the ``http`` parser, the HTTP filter and policy validation.

A rule comes from a policy document as key/value pairs, or from the control server as
cilium.HttpNetworkPolicyRule.  `HttpRule.compile` makes of many rules one matcher:

    verdict = matcher({"method": b"GET", "path": b"/", "host": b"a", "headers": ((b"x", b"1"),)})

True and False say what they say; a `HeaderEdits` is true or false too, and says how
the request has to be changed before it goes on, and what the log must have.

Semantics are Cilium's: regexes match the whole value; all of a rule must hold, and
any rule will do; `headerMatches` are carried out for every rule whose other parts hold,
in order, each on what the one before has left.  Stricter than Cilium's in one thing: a
rule that names ``X-Token`` does not match a request that has ``X_Token`` too, for servers
behind CGI and WSGI take one for the other.
"""

from __future__ import annotations

import hmac
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, cast

from proxylib import regex
from proxylib.errors import RuleError
from proxylib.http_headers import (
    HeaderMatch,
    MatchAction,
    MismatchAction,
    header_condition,
    header_match,
)
from proxylib.http_match import PSEUDO_HEADERS, Condition, Find, Rules, compile_conditions
from proxylib.http_proto import rule_from_proto, rule_to_proto
from proxylib.http_secrets import NO_SECRETS, Secrets
from proxylib.message import Properties
from proxylib.proto import npds_pb2 as npds
from proxylib.rules import Field, L7Rule, Matcher, always, never

Header = tuple[bytes, bytes]
"""A header's lower-case name, and its value."""

DENIED_BODY = b"Access denied\r\n"
"""What a denied request is answered with, under status 403."""

REDACTED = b"[redacted]"
"""Stands in the log for a value that is somebody's secret."""

SENSITIVE = frozenset((b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"))
"""Headers whose values the log does not have."""


@dataclass(frozen=True, slots=True)
class HeaderEdits:
    """A verdict with consequences: true if the request is allowed, once it is changed.

    remove: lower-case names whose headers all go. add: headers that then come last.
    missing, rejected: for the log; secrets are redacted. secret: headers whose values
    must not be in the log.
    """

    allowed: bool
    remove: tuple[bytes, ...] = ()
    add: tuple[Header, ...] = ()
    missing: tuple[Header, ...] = ()
    rejected: tuple[Header, ...] = ()
    secret: frozenset[bytes] = frozenset()

    def __bool__(self) -> bool:
        return self.allowed

    def apply(self, headers: Iterable[Header]) -> tuple[Header, ...]:
        """`headers` as they have to go on."""
        if not self.remove:
            return (*headers, *self.add)
        return (*(h for h in headers if h[0] not in self.remove), *self.add)


class _Whole(Field):
    """The whole property matches the RE2 value."""

    kind = "regex, whole value"

    def check(self, value: str) -> None:
        regex.check(self.key, value)


class _Headers(Field):
    """One header per line: ``Name: value``, or ``Name``."""

    kind = "Name: value, or Name"

    def check(self, value: str) -> None:
        for line in value.split("\n"):
            header_condition(line)


class _HeaderMatches(Field):
    """One JSON object per line."""

    kind = "name, value, secret, mismatch"

    def check(self, value: str) -> None:
        for line in value.split("\n"):
            try:
                item = json.loads(line)
            except ValueError as error:
                raise RuleError(self.key, line, f"not JSON: {error}") from error
            header_match(item)


class HttpRule(L7Rule):
    """One rule of ``http``: method, path, host, headers, headerMatches; {} matches everything."""

    __slots__ = ("conditions", "matches", "secrets")

    method = _Whole(doc="GET, POST, ...")
    path = _Whole(doc="with the query, normalised")
    host = _Whole(doc="Host or :authority, with its port if there is one")
    headers = _Headers(doc="all must be there; one per line")
    headerMatches = _HeaderMatches(doc="JSON objects, one per line")

    def __init__(self, pairs: Mapping[str, str], secrets: Secrets = NO_SECRETS) -> None:
        """From a policy document; several headers (headerMatches) stand on lines of their own.

        Raises RuleError for an unknown key, a regex that is none, or an odd header.
        """
        super().__init__(pairs)
        given = self.pairs
        self.secrets = secrets
        self.conditions = (
            *(Condition(_PSEUDO[key], "regex", given[key]) for key in _PSEUDO if key in given),
            *(header_condition(line) for line in _lines(given, "headers")),
        )
        self.matches = tuple(
            header_match(json.loads(line)) for line in _lines(given, "headerMatches")
        )

    @classmethod
    def from_proto(cls, rule: npds.HttpNetworkPolicyRule, secrets: Secrets = NO_SECRETS) -> Self:
        """From what the control server sends. Raises RuleError for what cannot be enforced."""
        made = cls({}, secrets)
        made.conditions, made.matches = rule_from_proto(rule)
        return made

    def to_proto(self) -> npds.HttpNetworkPolicyRule:
        """The rule as the control server sends it."""
        return rule_to_proto(self.conditions, self.matches)

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({self.conditions!r}, {self.matches!r})"

    @classmethod
    def compile(cls, rules: Sequence[Self], *, deny: bool = False) -> Matcher:
        """The matcher for "any of `rules`"; it may answer with a `HeaderEdits`.

        deny: rules that refuse what they match change nothing; a header match with a
        mismatch action but FAIL then says nothing, and neither does a missing secret.
        """
        if not rules:
            return never
        edits = any(rule.matches for rule in rules)
        if not edits and any(not rule.conditions for rule in rules):
            return always
        met = compile_conditions([rule.conditions for rule in rules], deny=deny)
        imitated = _imitated(rules)
        if deny:
            matcher = _denies(rules, met)
            return lambda request: imitated(request) != 0 or matcher(request)
        if not edits:
            return _Allows(met, imitated)
        return cast("Matcher", _edits(rules, met, imitated))


_PSEUDO = {"method": ":method", "path": ":path", "host": ":authority"}


class Headers(tuple[Header, ...]):
    """A request's headers that know themselves by name.

    Who has the same headers in request after request gives the same object each time,
    so that they are put into a table but once.
    """

    @cached_property
    def by_name(self) -> dict[str, bytes]:
        """Values by lower-case name, several joined by commas."""
        values: dict[str, bytes] = {}
        for key, value in self:
            name = key.decode("latin-1")
            so_far = values.get(name)
            values[name] = value if so_far is None else so_far + b"," + value
        return values


def finder(request: Properties) -> Find:
    """The values of `request` by header name."""
    headers: Any = request["headers"]

    def find(name: str) -> bytes | None:
        nonlocal headers
        known = PSEUDO_HEADERS.get(name)
        if known is not None:
            value: Any = request.get(known)
            return value  # type: ignore[no-any-return]
        if type(headers) is not Headers:
            headers = Headers(headers)
        return headers.by_name.get(name)  # type: ignore[no-any-return]

    return find


def _imitated(rules: Sequence[HttpRule]) -> Callable[[Properties], int]:
    """The rules that name a header which a request imitates with underscores, one bit each."""
    named: dict[bytes, int] = defaultdict(int)
    for index, rule in enumerate(rules):
        names = {c.name for c in rule.conditions} | {m.name for m in rule.matches}
        for name in names:
            if "-" in name:
                named[name.encode()] |= 1 << index
    if not named:
        return lambda request: 0
    named = dict(named)

    def imitated(request: Properties) -> int:
        found = 0
        headers: Any = request["headers"]
        for header, _ in headers:
            if b"_" in header:
                found |= named.get(header.replace(b"_", b"-"), 0)
        return found

    return imitated


class _Allows:
    """The matcher of rules that change nothing."""

    __slots__ = ("_imitated", "_met")

    def __init__(self, met: Rules, imitated: Callable[[Properties], int]) -> None:
        self._met = met
        self._imitated = imitated

    def __call__(self, request: Properties) -> bool:
        return self._met(finder(request)) & ~self._imitated(request) != 0

    def on_paths(self, request: Properties) -> Callable[[bytes], bool]:
        left, of_path = self._met.on_paths(finder(request))
        left &= ~self._imitated(request)
        if of_path is None or not left:
            return lambda path: left != 0
        return lambda path: of_path(path) & left != 0


def path_test(matcher: Matcher, request: Properties) -> Callable[[bytes], bool] | None:
    """What `matcher` says of requests that differ from `request` in their path alone.

    None if that cannot be told apart from the rest: ask `matcher` for each.
    """
    if matcher is always:
        return lambda path: True
    return matcher.on_paths(request) if isinstance(matcher, _Allows) else None


def _denies(rules: Sequence[HttpRule], met: Callable[[Find], int]) -> Matcher:
    def match(request: Properties) -> bool:
        find = finder(request)
        left = met(find)
        return any(
            left >> index & 1
            and all(
                _holds(rule, item, find(item.name)) is not False
                for item in rule.matches
                if item.on_mismatch == MismatchAction.FAIL
            )
            for index, rule in enumerate(rules)
        )

    return match


def _holds(rule: HttpRule, item: HeaderMatch, value: bytes | None) -> bool | None:
    """Whether a header has the value that `item` wants; None if nobody knows that value."""
    wanted = _wanted(rule, item)
    if wanted is None:
        return None
    if not wanted:
        return value is not None
    return value is not None and hmac.compare_digest(value, wanted)


def _wanted(rule: HttpRule, item: HeaderMatch) -> bytes | None:
    """The value to match; b"" for mere presence, None for a secret that is not there."""
    if item.secret:
        return rule.secrets.value(item.secret) or item.value.encode() or None
    return item.value.encode()


def _edits(
    rules: Sequence[HttpRule], met: Callable[[Find], int], imitated: Callable[[Properties], int]
) -> Callable[[Properties], bool | HeaderEdits]:
    plain = sum(1 << index for index, rule in enumerate(rules) if not rule.matches)
    secret = frozenset(m.name.encode() for rule in rules for m in rule.matches if m.secret)

    def match(request: Properties) -> bool | HeaderEdits:
        find = finder(request)
        left = met(find) & ~imitated(request)
        if not left & ~plain and not secret:
            return left != 0
        work = _Work(find)
        allowed = False
        for index, rule in enumerate(rules):
            if left >> index & 1:
                # Of a rule that fails half-way the other half is done, as in Cilium.
                allowed |= work.carry_out(rule)
        return work.verdict(allowed, secret)

    return match


class _Work:
    """A request's headers while rules change them."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._removed: dict[str, None] = {}
        self._added: list[tuple[str, bytes]] = []
        self._missing: list[Header] = []
        self._rejected: list[Header] = []

    def verdict(self, allowed: bool, secret: frozenset[bytes]) -> HeaderEdits:
        return HeaderEdits(
            allowed,
            tuple(name.encode() for name in self._removed),
            tuple((name.encode(), value) for name, value in self._added),
            tuple(self._missing),
            tuple(self._rejected),
            secret,
        )

    def carry_out(self, rule: HttpRule) -> bool:
        """Do what all header matches of `rule` say; False if the rule then does not match."""
        allowed = True
        for item in rule.matches:
            allowed &= self._carry_out(rule, item)
        return allowed

    def _carry_out(self, rule: HttpRule, item: HeaderMatch) -> bool:
        """Do what `item` says; False if its rule then does not match."""
        wanted = _wanted(rule, item)
        if wanted is None:
            return False
        value = self._value(item.name)
        holds = value is not None and (not wanted or hmac.compare_digest(value, wanted))
        shown = REDACTED if item.secret else wanted
        if holds:
            if item.on_match == MatchAction.CONTINUE:
                return True
            self._log(self._rejected, item, shown)
            if item.on_match == MatchAction.DELETE:
                self._remove(item.name)
            return item.on_match == MatchAction.DELETE
        match item.on_mismatch:
            case MismatchAction.FAIL | MismatchAction.LOG:
                self._log(self._missing, item, shown)
            case MismatchAction.ADD:
                self._added.append((item.name, wanted))
                self._log(self._missing, item, shown)
            case MismatchAction.DELETE:
                if value is not None:
                    self._log(self._rejected, item, REDACTED if item.secret else value)
                    self._remove(item.name)
            case MismatchAction.REPLACE:
                if value is not None:
                    self._log(self._rejected, item, REDACTED if item.secret else value)
                    self._remove(item.name)
                self._added.append((item.name, wanted))
                self._log(self._missing, item, shown)
        return item.on_mismatch != MismatchAction.FAIL

    def _value(self, name: str) -> bytes | None:
        values = [value for added, value in self._added if added == name]
        if name not in self._removed and (value := self._find(name)) is not None:
            values.insert(0, value)
        return b",".join(values) if values else None

    def _remove(self, name: str) -> None:
        self._removed[name] = None
        self._added = [item for item in self._added if item[0] != name]

    def _log(self, where: list[Header], item: HeaderMatch, value: bytes) -> None:
        name = item.name.encode()
        where.append((name, REDACTED if name in SENSITIVE else value))


def log_fields(request: Properties, verdict: object = None) -> dict[str, Any]:
    """The fields of a log entry for `request`: without what should not be in a log.

    verdict: what the matcher has said.
    """
    fields: dict[str, Any] = dict(request)
    hidden = SENSITIVE
    if isinstance(verdict, HeaderEdits):
        hidden = SENSITIVE | verdict.secret
        fields["missing_headers"] = verdict.missing
        fields["rejected_headers"] = verdict.rejected
    fields["headers"] = redact(cast("Sequence[Header]", request["headers"]), hidden)
    return fields


def redact(headers: Sequence[Header], hidden: frozenset[bytes] = SENSITIVE) -> tuple[Header, ...]:
    """`headers` without the values of those whose names are in `hidden`."""
    return tuple((name, REDACTED if name in hidden else value) for name, value in headers)


def _lines(pairs: Mapping[str, str], key: str) -> list[str]:
    return pairs[key].split("\n") if key in pairs else []
