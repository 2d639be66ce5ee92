"""Redis rules: which commands, on which keys.

``command`` is one command, a subcommand as Redis's ACLs write it (``CONFIG|GET``) or a
command with all of its subcommands; ``category`` is one of Redis's ACL categories;
neither means everything.  A rule with ``keyPrefix`` or ``key`` allows only requests
whose keys can all be located; of several keys each needs to be allowed, by whichever
rule.  A request without keys needs a rule without.

Scripts need not keep to the keys that they declare, so that a rule for everything on
some keys does not allow them: one must name them, by command or category.

Compiled, the rules of a policy are one `Grant` per command.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

from parsers.redis.commands import CATEGORIES, COMMANDS, Command, find
from parsers.redis.keys import Keys
from proxylib import Exact, L7Rule, Matcher, Prefix, Properties, Regex, RuleError

KeyTest = Callable[[bytes], bool]

EXPLICIT = frozenset({b"MONITOR"})
"""What only a rule that names it allows: it shows the requests of everybody."""

_KEY_FIELDS = ("keyPrefix", "key")
_MODULE = re.compile(r"[A-Z0-9_-]{1,32}\.[A-Z0-9_.-]{1,64}")


class CommandName(Exact):
    """A command's or subcommand's name, upper-case; a module's has a dot in it."""

    def check(self, value: str) -> None:
        if value.encode() in COMMANDS or _MODULE.fullmatch(value):
            return
        if value.upper().encode() in COMMANDS:
            raise RuleError(self.key, value, f"is written {value.upper()} in rules")
        raise RuleError(self.key, value, "is no command of Redis (such as GET or CONFIG|GET)")


class Rule(L7Rule):
    """One Redis rule of a policy."""

    command = CommandName(doc="a command (GET), a subcommand (CONFIG|GET); none: everything")
    category = Exact(*sorted(CATEGORIES), doc="an ACL category of Redis, without its @")
    keyPrefix = Prefix(of="keys", doc="what each key starts with")
    key = Regex(of="keys", doc="searched for in each key")

    def check(self) -> None:
        pairs = self.pairs
        if "command" in pairs and "category" in pairs:
            raise RuleError("category", pairs["category"], "cannot stand beside a command")
        given = [name for name in _KEY_FIELDS if name in pairs]
        if len(given) > 1:
            raise RuleError("key", pairs["key"], "cannot stand beside a keyPrefix")
        if not given or "command" not in pairs:
            return
        name = pairs["command"].encode()
        below = [each for each in COMMANDS.values() if each.container == name]
        if not find(name).known:
            raise RuleError(given[0], pairs[given[0]], "keys of modules' commands are not known")
        if find(name).keyless and all(each.keyless for each in below):
            raise RuleError(given[0], pairs[given[0]], f"{name.decode()} has no keys")

    @classmethod
    def compile(cls, rules: Sequence[Self], *, deny: bool = False) -> Matcher:
        """One table by command, whatever the number of `rules`."""
        return Compiled(rules, deny)


class Grant(NamedTuple):
    """What a policy says of one command. free: whatever its keys. test: of one key."""

    free: bool
    test: KeyTest | None = None

    def allows(self, found: Keys) -> bool:
        """Whether rules that allow cover the request."""
        if self.free:
            return True
        test = self.test
        if test is None or found.hidden or not found.keys:
            return False
        return all(map(test, found.keys))

    def denies(self, found: Keys) -> bool:
        """Whether rules that deny may be about the request."""
        if self.free:
            return True
        return self.test is not None and (found.hidden or any(map(self.test, found.keys)))


_Restriction = tuple[str, str]
_ANY: _Restriction = ("", "")


class Compiled:
    """The matcher of a policy's Redis rules.

    As every matcher it judges properties: ``command``, ``keys``, and ``hidden`` for
    requests that may have other keys too.  The parser asks it for grants instead.
    """

    def __init__(self, rules: Sequence[Rule], deny: bool) -> None:
        self.deny = deny
        self._everything: list[_Restriction] = []
        self._commands: dict[bytes, list[_Restriction]] = defaultdict(list)
        self._categories: dict[str, list[_Restriction]] = defaultdict(list)
        for rule in rules:
            pairs = rule.pairs
            entry = next(((name, pairs[name]) for name in _KEY_FIELDS if name in pairs), _ANY)
            if "command" in pairs:
                self._commands[pairs["command"].encode()].append(entry)
            elif "category" in pairs:
                self._categories[pairs["category"]].append(entry)
            else:
                self._everything.append(entry)
        self._fields = Rule.fields
        self._grants: dict[bytes, Grant] = {}
        self._tests: dict[tuple[_Restriction, ...], KeyTest] = {}

    def grant(self, command: Command) -> Grant:
        """What the rules say of `command`."""
        found = self._grants.get(command.name)
        if found is None:
            found = self._find(command)
            if command.known:  # other names are the client's to choose
                self._grants[command.name] = found
        return found

    def _find(self, command: Command) -> Grant:
        entries = tuple(dict.fromkeys(self._about(command)))
        if _ANY in entries or (self.deny and command.script and entries):
            return Grant(True)
        if not entries:
            return Grant(False)
        if entries not in self._tests:
            self._tests[entries] = self._test(entries)
        return Grant(False, self._tests[entries])

    def _about(self, command: Command) -> Iterator[_Restriction]:
        """What the rules about `command` ask of its keys."""
        yield from self._commands.get(command.name, ())
        if command.container:
            yield from self._commands.get(command.container, ())
        if command.name in EXPLICIT and not self.deny:
            return
        for category, entries in self._categories.items():
            # What is not known may be of the category that is denied.
            if category in command.categories or (self.deny and not command.known):
                yield from entries
        for entry in self._everything:
            if entry == _ANY or self.deny or not command.script:
                yield entry

    def _test(self, entries: Sequence[_Restriction]) -> KeyTest:
        values: dict[str, list[str]] = defaultdict(list)
        for name, value in entries:
            values[name].append(value)
        tests = [self._fields[name].test(group, self.deny) for name, group in values.items()]
        if len(tests) == 1:
            return tests[0]
        return lambda key: any(test(key) for test in tests)

    def __call__(self, message: Properties) -> bool:
        command = find(_bytes(message["command"]).upper())
        given = message.get("keys", ())
        keys = (given,) if isinstance(given, (str, bytes, int)) else tuple(given)
        hidden = bool(message.get("hidden", 0)) or (command.elsewhere and not keys)
        found = Keys(tuple(map(_bytes, keys)), hidden)
        grant = self.grant(command)
        return grant.denies(found) if self.deny else grant.allows(found)


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def judge(matcher: Matcher, command: Command, found: Keys) -> bool:
    """Whether the policy behind `matcher` allows the request."""
    if isinstance(matcher, Compiled) and not matcher.deny:
        return matcher.grant(command).allows(found)
    # Without Redis rules, or with denials, a matcher is not ours.
    message: Mapping[str, bytes | int | Sequence[bytes]] = {
        "command": command.name,
        "keys": found.keys,
        "hidden": int(found.hidden),
    }
    return matcher(message)
