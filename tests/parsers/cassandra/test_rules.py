"""Rules: what they take, and what they match."""

from __future__ import annotations

import pytest

from parsers.cassandra.rule import Rule
from proxylib import RuleError

ALL = {"query_action": b"", "query_table": b"", "error": "x"}


def message(action: str, table: str) -> dict[str, str | bytes]:
    return {"query_action": action.encode(), "query_table": table.encode()}


def matches(rule: dict[str, str], action: str, table: str = "", *, deny: bool = False) -> bool:
    return Rule.compile([Rule(rule)], deny=deny)(message(action, table))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"query_action": "sel"}, "must be one of"),
        ({"query_action": "SELECT"}, "must be one of"),
        ({"query_table": "["}, "not a valid RE2 regex"),
        ({"action": "select"}, "unknown key"),
        ({"query_action": "create-role", "query_table": "x"}, "has no table"),
        ({"query_action": "grant", "query_table": "x"}, "has no table"),
    ],
)
def test_refused(rule: dict[str, str], text: str) -> None:
    with pytest.raises(RuleError, match=text):
        Rule(rule)


def test_action_and_table() -> None:
    rule = {"query_action": "select", "query_table": r"system\..*"}
    assert matches(rule, "select", "system.local")
    assert not matches(rule, "select", "systemx.local")
    assert not matches(rule, "insert", "system.local")
    assert matches(rule, "select", "my_system.local"), "a regex searches"


def test_parts() -> None:
    assert matches({"query_action": "create-role"}, "create-role")
    assert matches({}, "drop-table", "k.t")
    assert matches({"query_table": "^k[.]"}, "drop-table", "k.t")
    assert not matches({"query_table": "^k[.]"}, "create-role"), "tables do not give roles"
    assert matches({"query_table": ".*"}, "create-role")


@pytest.mark.parametrize(
    ("group", "action"),
    [
        ("truncate", "truncate-table"),
        ("grant", "grant-role"),
        ("grant", "grant-permission"),
        ("revoke", "revoke-role"),
        ("revoke", "revoke-permission"),
    ],
)
def test_groups(group: str, action: str) -> None:
    assert matches({"query_action": group}, action)
    assert not matches({"query_action": group}, "select", "k.t")
    assert matches({"query_action": group}, action, deny=True)


def test_truncate_with_a_table() -> None:
    rule = {"query_action": "truncate", "query_table": "^k[.]t$"}
    assert matches(rule, "truncate-table", "k.t")
    assert not matches(rule, "truncate-table", "k.u")


def test_what_cannot_be_read_needs_a_rule_for_everything() -> None:
    assert Rule.compile([Rule({})])(ALL)
    assert not Rule.compile([Rule({"query_action": "select"})])(ALL)
    assert not Rule.compile([Rule({"query_table": "k"})])(ALL)
    assert Rule.compile([Rule({"query_action": "select"})], deny=True)(ALL)
