"""memcache rules: which commands, on which keys.

``command`` is an action or a group of them; none means everything.  Within one
rule the first given of ``keyExact``, ``keyPrefix`` and ``keyRegex`` counts; none
means every key.  A request with several keys needs each of them allowed, by
whichever rule.

Compiled, the rules of a policy are one key test per action, so that a look-up
costs the same for one rule and for a thousand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self

from parsers.memcache.commands import ACTIONS, COMMANDS, GROUPS, KEYLESS, OTHER, TEXT
from proxylib import Exact, L7Rule, Matcher, Prefix, Properties, Regex, RuleError

KeyTest = Callable[[bytes], bool]

_KEY_FIELDS = ("keyExact", "keyPrefix", "keyRegex")


class Rule(L7Rule):
    """One memcache rule of a policy."""

    command = Exact(*COMMANDS, doc="a command or a group of commands; none: everything")
    keyExact = Exact(of="keys", doc="the key")
    keyPrefix = Prefix(of="keys", doc="what the key starts with")
    keyRegex = Regex(of="keys", doc="searched for in the key")

    def check(self) -> None:
        command = self.pairs.get("command")
        for name in _KEY_FIELDS:
            if name not in self.pairs:
                continue
            if command is None:
                raise RuleError(name, self.pairs[name], "needs a command to go with it")
            if command in KEYLESS:
                raise RuleError(name, self.pairs[name], f"{command} has no key")

    @classmethod
    def compile(cls, rules: Sequence[Self], *, deny: bool = False) -> Matcher:
        """One key test per action that any of `rules` is about."""
        if not all(rule.pairs for rule in rules):
            return Compiled(dict.fromkeys((*ACTIONS, OTHER), _always), deny)
        by_action: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for rule in rules:
            command = rule.pairs["command"]
            key = next(
                ((name, rule.pairs[name]) for name in _KEY_FIELDS if name in rule.pairs), _ANY
            )
            for action in GROUPS.get(command, (command,)):
                by_action[action].append(key)
        # Actions of one group have the same keys: they share one test.
        shared: dict[tuple[tuple[str, str], ...], KeyTest] = {}
        tests: dict[str, KeyTest] = {}
        for action, keys in by_action.items():
            distinct = tuple(dict.fromkeys(keys))
            if distinct not in shared:
                shared[distinct] = cls._key_test(distinct, deny)
            tests[action] = shared[distinct]
        if deny:
            # What is not understood may be what is denied.
            tests[OTHER] = _always
        return Compiled(tests, deny)

    @classmethod
    def _key_test(cls, keys: Iterable[tuple[str, str]], deny: bool) -> KeyTest:
        values: dict[str, list[str]] = defaultdict(list)
        for name, value in keys:
            values[name].append(value)
        if "" in values:
            return _always
        tests = [cls.fields[name].test(group, deny) for name, group in values.items()]
        if len(tests) == 1:
            return tests[0]
        return lambda key: any(test(key) for test in tests)


_ANY = ("", "")


def _always(key: bytes) -> bool:
    return True


def _never(key: bytes) -> bool:
    return False


class Compiled:
    """The matcher of a policy's memcache rules.

    As every matcher it judges properties, ``command`` and ``keys``; the parser
    takes the key tests out of it and asks these.
    """

    __slots__ = ("deny", "tests")

    def __init__(self, tests: Mapping[str, KeyTest], deny: bool) -> None:
        self.tests = {action: tests.get(action, _never) for action in (*ACTIONS, OTHER)}
        self.deny = deny

    def __call__(self, message: Properties) -> bool:
        test = self.tests[_action(message["command"])]
        keys = message.get("keys", b"")
        if isinstance(keys, (str, bytes, int)):
            return test(_bytes(keys))
        # A rule that denies one of the keys denies the request.
        return (any if self.deny else all)(test(key) for key in keys)


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _action(command: object) -> str:
    name = _bytes(command)
    known = TEXT.get(name)
    if known is not None:
        return known.action
    action = name.decode("ascii", "replace")
    return action if action in ACTIONS else OTHER


class _Asking(dict[str, KeyTest]):
    """Key tests that ask a matcher of another kind, key by key."""

    def __init__(self, matcher: Matcher) -> None:
        super().__init__()
        self.matcher = matcher

    def __missing__(self, action: str) -> KeyTest:
        matcher = self.matcher
        test = self[action] = lambda key: matcher({"command": action, "keys": key})
        return test


def key_tests(matcher: Matcher) -> Mapping[str, KeyTest]:
    """The key test of every action, OTHER included; b"" stands for "no key".

    A policy without memcache rules, or one that also denies, has a matcher that is
    not ours: it is asked per key.
    """
    if isinstance(matcher, Compiled) and not matcher.deny:
        return matcher.tests
    return _Asking(matcher)
