"""Kafka rules: which APIs, in which version, by which client, on which topics.

``role`` (produce or consume) stands for the API keys of a role, ``apiKey`` for one;
neither means all.  A ``topic`` restricts the requests that carry topics, not those
of an API that has none.  A request with several topics needs each of them allowed,
by whichever rule.

Compiled, the rules of a policy answer one question per (API key, version, client):
which topics.  The answer, a `Grant`, is remembered.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self

from parsers.kafka.roles import API_KEYS, ROLES
from parsers.kafka.schema import APIS
from proxylib import Exact, L7Rule, Matcher, Properties, RuleError

ALL = b"*"
"""Stands among a request's topics for all that there are. No topic has this name."""

MAX_TOPIC = 255
"""Longest ``topic`` of a rule (Cilium's limit; Kafka's own is 249)."""

MAX_VERSION = 32_767

_LEGAL = re.compile(r"[a-zA-Z0-9._-]*")
_MAX_GRANTS = 4096
"""Remembered grants: clients choose their ids as they like."""


class ApiKey(Exact):
    """The name of an API, in any case, or its number."""

    def check(self, value: str) -> None:
        if api_key(value) is None:
            raise RuleError(
                self.key, value, "is no API key of Kafka (such as produce, fetch, or a number)"
            )


class Version(Exact):
    """A number from 0 on."""

    def check(self, value: str) -> None:
        if not re.fullmatch("[0-9]{1,5}", value) or int(value) > MAX_VERSION:
            raise RuleError(self.key, value, f"must be a number from 0 to {MAX_VERSION}")


class Name(Exact):
    """A topic or a client id."""

    def check(self, value: str) -> None:
        if not _LEGAL.fullmatch(value):
            raise RuleError(self.key, value, "may have only letters, digits, '.', '_' and '-'")
        if len(value) > MAX_TOPIC:
            raise RuleError(self.key, value, f"is longer than {MAX_TOPIC} characters")


class Rule(L7Rule):
    """One Kafka rule of a policy."""

    role = Exact(*ROLES, doc="produce or consume: the API keys of that role")
    apiKey = ApiKey(of="api_key", doc="one API key, by name or number")
    apiVersion = Version(of="api_version", doc="the version of the request")
    clientID = Name(of="client_id", doc="the client's name for itself")
    topic = Name(of="topics", doc="the topic; of several each must be allowed")

    def check(self) -> None:
        if "role" in self.pairs and "apiKey" in self.pairs:
            raise RuleError("apiKey", self.pairs["apiKey"], "cannot stand beside a role")

    @property
    def keys(self) -> Iterable[int]:
        """The API keys that the rule is about."""
        if "role" in self.pairs:
            return ROLES[self.pairs["role"]]
        if "apiKey" in self.pairs:
            key = api_key(self.pairs["apiKey"])
            return () if key is None else (key,)
        return APIS

    @classmethod
    def compile(cls, rules: Sequence[Self], *, deny: bool = False) -> Matcher:
        """One table by API key, whatever the number of `rules`."""
        return Compiled(rules, deny)


def api_key(text: str) -> int | None:
    """The API key that `text` (a name or a number) stands for."""
    if re.fullmatch("[0-9]{1,5}", text):
        return int(text) if int(text) in APIS else None
    return API_KEYS.get(text.lower())


class Grant(NamedTuple):
    """What a policy says of one API key, version and client.

    bare: a request without topics is allowed. any: whatever its topics.
    topic: whether one topic is allowed.
    """

    bare: bool
    any: bool
    topic: Callable[[bytes], bool]


GrantKey = tuple[int, int, bytes]


def _no_topic(topic: bytes) -> bool:
    return False


def _any_topic(topic: bytes) -> bool:
    return True


NOTHING = Grant(False, False, _no_topic)
EVERYTHING = Grant(True, True, _any_topic)


class Grants(dict[GrantKey, Grant]):
    """Grants by (API key, version, client id), found when first asked for."""

    def __missing__(self, key: GrantKey) -> Grant:
        if len(self) >= _MAX_GRANTS:
            self.clear()
        grant = self[key] = self._find(*key)
        return grant

    def _find(self, key: int, version: int, client: bytes) -> Grant:
        raise NotImplementedError


class Compiled(Grants):
    """The matcher of a policy's Kafka rules.

    As every matcher it judges properties: api_key (number or name), api_version,
    client_id, topics.  The parser asks it for grants instead.
    """

    def __init__(self, rules: Sequence[Rule], deny: bool) -> None:
        super().__init__()
        self.deny = deny
        # By API key and version ("" for any): (client or b"", topic or b"").
        self._rules: dict[tuple[int, str], list[tuple[bytes, bytes]]] = defaultdict(list)
        for rule in rules:
            pairs = rule.pairs
            version = str(int(pairs["apiVersion"])) if "apiVersion" in pairs else ""
            entry = (pairs.get("clientID", "").encode(), pairs.get("topic", "").encode())
            for key in rule.keys:
                self._rules[key, version].append(entry)
        self._rules = dict(self._rules)

    def _find(self, key: int, version: int, client: bytes) -> Grant:
        entries = (*self._rules.get((key, ""), ()), *self._rules.get((key, str(version)), ()))
        topics = frozenset(topic for who, topic in entries if not who or who == client)
        if not topics:
            return NOTHING
        if b"" in topics:
            return EVERYTHING
        # A rule with a topic denies nothing that has none.
        return Grant(not self.deny, False, topics.__contains__)

    def __call__(self, message: Properties) -> bool:
        key = message["api_key"]
        number = key if isinstance(key, int) else api_key(_bytes(key).decode("ascii", "replace"))
        if number is None:
            return False
        version = int(_bytes(message["api_version"]))
        grant = self[number, version, _bytes(message.get("client_id", b""))]
        given = message.get("topics", ())
        topics = (_bytes(given),) if isinstance(given, (str, bytes, int)) else given
        if not topics:
            return grant.bare
        if grant.any:
            return True
        if self.deny:
            # All topics: one of them may be the denied one.
            return any(grant.topic(topic) or topic == ALL for topic in topics) and (
                grant is not NOTHING
            )
        return all(map(grant.topic, topics))


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


class Asking(Grants):
    """Grants of a matcher of another kind: without Kafka rules, or with denials."""

    def __init__(self, matcher: Matcher) -> None:
        super().__init__()
        self._matcher = matcher

    def _find(self, key: int, version: int, client: bytes) -> Grant:
        matcher = self._matcher

        def ask(*topics: bytes) -> bool:
            return matcher(
                {"api_key": key, "api_version": version, "client_id": client, "topics": topics}
            )

        return Grant(ask(), ask(ALL), ask)


def grants_of(matcher: Matcher) -> Grants:
    """The grants of a connection's matcher."""
    if isinstance(matcher, Compiled) and not matcher.deny:
        return matcher
    return Asking(matcher)
