"""memcache rules: what they accept, and what they cover."""

from __future__ import annotations

import timeit

import pytest

from parsers.memcache.commands import COMMANDS, GROUPS, KEYLESS, OPCODES
from parsers.memcache.rule import Rule, key_tests
from proxylib import RuleError
from proxylib.testing import Host


def compiled(*pairs: dict[str, str], deny: bool = False):  # type: ignore[no-untyped-def]
    return Rule.compile([Rule(p) for p in pairs], deny=deny)


def allows(pairs: list[dict[str, str]], command: str, key: bytes = b"") -> bool:
    matcher = compiled(*pairs)
    answer = matcher({"command": command, "keys": key})
    return bool(answer)


# The values of Cilium's parser.
CILIUM = """
    add set replace append prepend cas incr decr storage get delete touch gat writeGroup slabs lru
    lru_crawler watch stats flush_all cache_memlimit version misbehave quit noop verbosity
    sasl-list-mechs sasl-auth sasl-step rget rset rsetq rappend rappendq rprepend rprependq
    rdelete rdeleteq rincr rincrq rdecr rdecrq set-vbucket get-vbucket del-vbucket tap-connect
    tap-mutation tap-delete tap-flush tap-opaque tap-vbucket-set tap-checkpoint-start
    tap-checkpoint-end
"""


@pytest.mark.parametrize("command", CILIUM.split())
def test_ciliums_commands_are_known(command: str) -> None:
    assert allows([{"command": command}], "get", b"k") == (command == "get")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_allows_itself_and_nothing_else(command: str) -> None:
    matcher = compiled({"command": command})
    covered = {action for action, test in key_tests(matcher).items() if test(b"k")}
    assert covered == set(GROUPS.get(command, (command,)))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"command": "gett"}, "command: 'gett': must be one of"),
        ({"command": "GET"}, "must be one of"),
        ({"command": "?"}, "must be one of"),
        ({"keyExact": "a"}, "keyExact: 'a': needs a command"),
        ({"command": "", "keyPrefix": "a"}, "needs a command"),
        ({"command": "get", "keyRegex": "("}, "not a valid RE2 regex"),
        ({"command": "get", "key": "a"}, "unknown key"),
        ({"command": "flush_all", "keyPrefix": "a"}, "flush_all has no key"),
        ({"command": "version", "keyRegex": "a"}, "version has no key"),
    ],
)
def test_refused_rules(pairs: dict[str, str], message: str) -> None:
    with pytest.raises(RuleError) as error:
        Rule(pairs)
    assert message in str(error.value)


def test_keyless_commands() -> None:
    assert "flush_all" in KEYLESS
    assert not KEYLESS & {"get", "gat", "set", "delete", "touch", "me", "rget", *GROUPS["storage"]}


def test_precedence_within_a_rule() -> None:
    exact = [{"command": "get", "keyExact": "k", "keyPrefix": "p", "keyRegex": "r"}]
    assert allows(exact, "get", b"k")
    assert not allows(exact, "get", b"p")
    assert not allows(exact, "get", b"r")
    prefix = [{"command": "get", "keyPrefix": "p", "keyRegex": "r"}]
    assert allows(prefix, "get", b"px")
    assert not allows(prefix, "get", b"r")


def test_kinds_of_keys_add_up() -> None:
    rules = [
        {"command": "get", "keyExact": "k"},
        {"command": "get", "keyPrefix": "p/"},
        {"command": "get", "keyRegex": "^r[0-9]+$"},
        {"command": "delete"},
    ]
    for key, expected in ((b"k", 1), (b"kk", 0), (b"p/x", 1), (b"p", 0), (b"r12", 1), (b"xr12", 0)):
        assert allows(rules, "get", key) == bool(expected)
    assert allows(rules, "delete", b"whatever")
    assert not allows(rules, "set", b"k")


def test_a_regex_searches() -> None:
    assert allows([{"command": "get", "keyRegex": "b"}], "get", b"abc")


def test_every_key_must_be_allowed_by_some_rule() -> None:
    matcher = compiled({"command": "get", "keyExact": "a"}, {"command": "get", "keyPrefix": "b"})
    assert matcher({"command": "get", "keys": (b"a", b"b1")})
    assert not matcher({"command": "get", "keys": (b"a", b"c")})


def test_names_of_requests_can_be_asked_for() -> None:
    matcher = compiled({"command": "get", "keyExact": "a"})
    for command in ("get", b"gets", "bget", "mg"):
        assert matcher({"command": command, "keys": "a"})
    assert not matcher({"command": "gat", "keys": b"a"})
    assert not matcher({"command": "nonsense", "keys": b"a"})


@pytest.mark.parametrize("everything", [{}, {"command": ""}])
def test_everything(everything: dict[str, str]) -> None:
    matcher = compiled(everything)
    assert matcher({"command": "nonsense"})
    assert matcher({"command": "set", "keys": b"k"})


def test_no_rules_match_nothing() -> None:
    assert not compiled()({"command": "get", "keys": b"k"})


def test_deny_rules() -> None:
    blocked = compiled({"command": "get", "keyPrefix": "secret"}, deny=True)
    assert blocked({"command": "get", "keys": (b"a", b"secret1")})
    assert not blocked({"command": "get", "keys": (b"a", b"b")})
    assert not blocked({"command": "set", "keys": b"secret1"})
    assert blocked({"command": "nonsense"})
    host = Host("memcache", [{}], deny=[{"command": "get", "keyPrefix": "secret"}])
    assert host.client(b"get a secret1\r\nget a b\r\nset secret1 0 0 1\r\nx\r\n") == (
        b"get a b\r\nset secret1 0 0 1\r\nx\r\n"
    )


def test_every_binary_opcode_has_a_rule_value() -> None:
    assert {code.action for code in OPCODES.values()} <= set(COMMANDS)


def test_lookups_do_not_slow_down_with_the_number_of_rules() -> None:
    def cost(count: int) -> float:
        rules = [{"command": "get", "keyPrefix": f"tenant-{i:06}/"} for i in range(count)]
        rules += [{"command": "get", "keyExact": f"key-{i}"} for i in range(count)]
        test = key_tests(compiled(*rules))["get"]
        assert test(b"tenant-%06d/x" % (count - 1))
        return min(timeit.repeat(lambda: test(b"tenant-none/x"), number=2000, repeat=5))

    assert cost(3000) < 10 * cost(10)
