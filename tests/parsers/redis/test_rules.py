"""Which requests which rules allow, and which rules are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from parsers.redis.rule import Rule
from proxylib import RuleError
from proxylib.testing import Host
from tests.parsers.redis.wire import request, words

Rules = Sequence[Mapping[str, str]]

APP = [{"keyPrefix": "app:"}]


def allowed(sent: bytes, rules: Rules, deny: Rules = ()) -> bool:
    host = Host("redis", rules, deny=deny)
    passed = host.client(sent)
    assert not host.closed, host.log
    assert passed in (sent, b"")
    assert (passed == b"") == (host.take(reply=True) == b"-NOPERM access denied by policy\r\n")
    return passed == sent


KEYS_OF = [
    # request, whether all of its keys begin with app:
    ("GET app:a", True),
    ("get app:a", True),
    ("GET secret", False),
    ("GET", False),
    ("PING", False),
    ("FLUSHALL", False),
    ("KEYS app:*", False),
    ("SCAN 0 MATCH app:*", False),
    ("MSET app:a secret app:b x", True),
    ("MSET app:a x secret x", False),
    ("DEL app:a app:b secret", False),
    ("BLPOP app:a app:b 0", True),
    ("BLPOP app:a secret 0", False),
    ("COPY app:a secret", False),
    ("BITOP AND app:a app:b secret", False),
    ("ZUNIONSTORE app:a 2 app:b app:c WEIGHTS 1 2", True),
    ("ZUNIONSTORE app:a 2 app:b secret", False),
    ("ZUNIONSTORE secret 1 app:b", False),
    ("ZUNIONSTORE app:a 3 app:b app:c", False),
    ("ZUNIONSTORE app:a -1 app:b", False),
    ("ZUNIONSTORE app:a 01 app:b", False),
    ("ZUNIONSTORE app:a +1 app:b", False),
    ("ZUNIONSTORE app:a 99999999999999999999 app:b", False),
    ("BLMPOP 0 2 app:a app:b LEFT", True),
    ("BLMPOP 0 2 app:a secret LEFT", False),
    ("BLMPOP 0 1 app:a secret", True),
    ("XREAD COUNT 1 BLOCK 0 STREAMS app:a app:b 0 0", True),
    ("XREAD STREAMS app:a secret 0 0", False),
    ("XREAD STREAMS app:a app:b 0", False),
    ("XREADGROUP GROUP STREAMS app:1 STREAMS secret >", False),
    ("XREADGROUP GROUP g c NOACK STREAMS app:a >", True),
    ("XREADGROUP GROUP g c WHAT STREAMS app:a >", False),
    ("SORT app:a ALPHA STORE app:b", True),
    ("SORT app:a STORE app:b STORE secret", False),
    ("SORT app:a BY nosort GET #", True),
    ("SORT app:a BY secret:*", False),
    ("SORT app:a GET secret:*", False),
    ("SORT_RO app:a GET # GET secret:*", False),
    ("GEORADIUS app:a 0 0 1 km STORE app:b", True),
    ("GEORADIUS app:a 0 0 1 km STORE app:b STORE secret", False),
    ("GEORADIUSBYMEMBER app:a m 1 km STOREDIST secret", False),
    ("MIGRATE h 1 app:a 0 1 COPY AUTH KEYS", True),
    ("MIGRATE h 1 secret 0 1", False),
    ("XGROUP CREATE app:a g 0", True),
    ("XGROUP CREATE secret g 0", False),
    ("OBJECT ENCODING app:a", True),
    ("OBJECT ENCODING secret", False),
    ("OBJECT NOSUCH app:a", False),
    ("MEMORY USAGE app:a", True),
    ("JSON.GET app:a", False),
    ("EVAL script 1 app:a", False),
    ("CONFIG|GET app:a", False),
]


@pytest.mark.parametrize(("text", "covered"), KEYS_OF)
def test_a_prefix_must_cover_every_key(text: str, covered: bool) -> None:
    assert allowed(words(text), APP) is covered
    assert allowed(words(text), [{"key": "^app:"}]) is covered
    assert allowed(words(text), [{}])


def test_migrate_with_keys() -> None:
    migrate = ("MIGRATE", "h", "1", "", "0", "1", "KEYS", "app:a")
    assert allowed(request(*migrate), APP)
    assert not allowed(request(*migrate, "secret"), APP)


COMMANDS_OF = [
    ({"command": "GET"}, "get a", True),
    ({"command": "GET"}, "GETSET a b", False),
    ({"command": "CONFIG|GET"}, "config get x", True),
    ({"command": "CONFIG|GET"}, "config set x y", False),
    ({"command": "CONFIG|GET"}, "config", False),
    ({"command": "CONFIG"}, "CONFIG SET x y", True),
    ({"command": "CONFIG"}, "CONFIG NOSUCH", True),
    ({"command": "CONFIG"}, "CONFIG|NOSUCH x", False),
    ({"command": "CONFIG|GET"}, "CONFIG|GET x", False),
    ({"command": "GET"}, "GET|x", False),
    ({"command": "JSON.GET"}, "json.get a", True),
    ({"command": "JSON.GET"}, "json.set a", False),
    ({"category": "read"}, "GET a", True),
    ({"category": "read"}, "SET a b", False),
    ({"category": "admin"}, "CONFIG GET x", True),
    ({"category": "admin"}, "NOSUCH", False),
    ({"category": "dangerous"}, "MONITOR", False),
    ({"command": "MONITOR"}, "MONITOR", True),
    ({"category": "scripting", "keyPrefix": "app:"}, "EVAL x 1 app:a secret", True),
    ({"category": "scripting", "keyPrefix": "app:"}, "EVAL x 1 secret", False),
    ({"category": "scripting", "keyPrefix": "app:"}, "EVAL x 0", False),
    ({"command": "FCALL", "keyPrefix": "app:"}, "FCALL f 2 app:a app:b", True),
    ({"category": "pubsub"}, "SUBSCRIBE a", True),
]


@pytest.mark.parametrize(("rule", "text", "result"), COMMANDS_OF)
def test_commands_and_categories(rule: dict[str, str], text: str, result: bool) -> None:
    assert allowed(words(text), [rule]) is result


def test_each_key_may_be_covered_by_another_rule() -> None:
    rules = [{"command": "MGET", "keyPrefix": "a"}, {"category": "read", "key": "^b$"}]
    assert allowed(words("MGET a1 b a2"), rules)
    assert not allowed(words("MGET a1 bb"), rules)


DENIED_BY = [
    ({"keyPrefix": "secret"}, "GET secret", False),
    ({"keyPrefix": "secret"}, "MGET a secret b", False),
    ({"keyPrefix": "secret"}, "GET a", True),
    ({"keyPrefix": "secret"}, "PING", True),
    ({"keyPrefix": "secret"}, "EVAL x 1 a", False),
    ({"keyPrefix": "secret"}, "SORT a BY w_*", False),
    ({"keyPrefix": "secret"}, "NOSUCH a", False),
    ({"category": "dangerous"}, "FLUSHALL", False),
    ({"category": "dangerous"}, "MONITOR", False),
    ({"category": "dangerous"}, "NOSUCH a", False),
    ({"command": "CONFIG"}, "CONFIG GET x", False),
    ({"command": "CONFIG"}, "NOSUCH", True),
]


@pytest.mark.parametrize(("rule", "text", "result"), DENIED_BY)
def test_denials_do_not_miss(rule: dict[str, str], text: str, result: bool) -> None:
    assert allowed(words(text), [{}], [rule]) is result


REFUSED = [
    ({"command": "get"}, "is written GET in rules"),
    ({"command": "NOSUCH"}, "is no command of Redis"),
    ({"category": "@read"}, "@read"),
    ({"command": "GET", "category": "read"}, "cannot stand beside a command"),
    ({"keyPrefix": "a", "key": "b"}, "cannot stand beside a keyPrefix"),
    ({"command": "PING", "keyPrefix": "a"}, "PING has no keys"),
    ({"command": "JSON.GET", "keyPrefix": "a"}, "keys of modules' commands are not known"),
    ({"keyprefix": "a"}, "keyprefix"),
    ({"key": "("}, "key"),
]


@pytest.mark.parametrize(("pairs", "why"), REFUSED)
def test_refused_rules(pairs: dict[str, str], why: str) -> None:
    with pytest.raises(RuleError) as raised:
        Rule(pairs)
    assert why in str(raised.value)


def test_a_container_with_some_keys_may_have_a_prefix() -> None:
    rules = [{"command": "OBJECT", "keyPrefix": "app:"}]
    assert allowed(words("OBJECT FREQ app:a"), rules)
    assert not allowed(words("OBJECT HELP"), rules)
