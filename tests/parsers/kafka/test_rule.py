"""What rules say: legal values, roles, and the grants that come of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsers.kafka import schema
from parsers.kafka.roles import ROLES
from parsers.kafka.rule import ALL, Compiled, Rule, grants_of
from proxylib import Matcher, RuleError

REFUSED = [
    ({"role": "read"}, "role: 'read': must be one of produce, consume"),
    ({"role": "consume", "apiKey": "fetch"}, "cannot stand beside a role"),
    ({"apiKey": "fetched"}, "is no API key of Kafka"),
    ({"apiKey": "9999"}, "is no API key of Kafka"),
    ({"apiKey": "-1"}, "is no API key of Kafka"),
    ({"apiVersion": "-1"}, "must be a number from 0"),
    ({"apiVersion": "1.0"}, "must be a number from 0"),
    ({"apiVersion": "32768"}, "must be a number from 0"),
    ({"topic": "a b"}, "may have only letters"),
    ({"topic": "*"}, "may have only letters"),
    ({"topic": "a\n"}, "may have only letters"),
    ({"topic": "t" * 256}, "longer than 255"),
    ({"clientID": "a/b"}, "may have only letters"),
    ({"topics": "a"}, "unknown key"),
]


@pytest.mark.parametrize(("pairs", "reason"), REFUSED)
def test_refused(pairs: dict[str, str], reason: str) -> None:
    with pytest.raises(RuleError, match=reason):
        Rule(pairs)


def matcher(*rules: dict[str, str], deny: bool = False) -> Matcher:
    return Rule.compile([Rule(pairs) for pairs in rules], deny=deny)


def asks(match: Matcher, api: str | int, *topics: bytes, version: int = 3, who: str = "me") -> bool:
    return match({"api_key": api, "api_version": version, "client_id": who, "topics": topics})


@pytest.mark.parametrize(
    ("rule", "allowed", "denied"),
    [
        ({}, ["produce", "fetch", "createacls", 92], []),
        ({"role": "produce"}, ["Produce", "metadata", "endtxn", 18], ["fetch", "createtopics"]),
        ({"role": "consume"}, ["fetch", "METADATA", "joingroup", 18], ["produce", "endtxn"]),
        ({"apiKey": "FETCH"}, ["fetch", 1], ["metadata", "produce"]),
        ({"apiKey": "1"}, ["fetch"], ["metadata"]),
        ({"apiKey": "offsets"}, ["listoffsets"], ["fetch"]),
        ({"apiVersion": "3"}, ["fetch"], []),
        ({"apiVersion": "03"}, ["fetch"], []),
        ({"apiVersion": "4"}, [], ["fetch"]),
        ({"clientID": "me"}, ["fetch"], []),
        ({"clientID": "you"}, [], ["fetch"]),
        ({"topic": ""}, ["fetch", "produce"], []),
    ],
)
def test_rules(rule: dict[str, str], allowed: list[str | int], denied: list[str | int]) -> None:
    match = matcher(rule)
    assert all(asks(match, api, b"t") for api in allowed)
    assert not any(asks(match, api, b"t") for api in denied)


def test_topics() -> None:
    match = matcher({"topic": "a"}, {"topic": "b", "clientID": "me"})
    assert asks(match, "fetch", b"a")
    assert asks(match, "fetch", b"a", b"b"), "each by its own rule"
    assert not asks(match, "fetch", b"a", b"b", who="you")
    assert not asks(match, "fetch", b"a", b"c")
    assert not asks(match, "fetch", ALL)
    assert not asks(match, "fetch", b"A")
    assert asks(match, "heartbeat"), "a topic restricts what has topics"
    assert not asks(matcher({"role": "produce", "topic": "a"}), "heartbeat")


def test_denying_rules() -> None:
    match = matcher({"topic": "secret"}, {"apiKey": "deletetopics"}, deny=True)
    assert asks(match, "fetch", b"a", b"secret")
    assert asks(match, "fetch", ALL)
    assert asks(match, "deletetopics", b"a")
    assert not asks(match, "fetch", b"a")
    assert not asks(match, "heartbeat")
    assert not asks(matcher({"apiKey": "fetch", "topic": "x"}, deny=True), "produce", ALL)


def test_no_topic_can_be_mistaken_for_all_of_them() -> None:
    with pytest.raises(RuleError):
        Rule({"topic": ALL.decode()})


RULES = st.fixed_dictionaries(
    {},
    optional={
        "apiKey": st.sampled_from(["produce", "fetch", "metadata"]),
        "apiVersion": st.sampled_from(["0", "1", "2"]),
        "clientID": st.sampled_from(["me", "you"]),
        "topic": st.sampled_from(["a", "b"]),
    },
)


@given(
    rules=st.lists(RULES, min_size=1, max_size=6),
    key=st.integers(0, 3),
    version=st.integers(0, 2),
    who=st.sampled_from(["me", "you", "them"]),
    topics=st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=3),
)
def test_against_the_rules_read_one_by_one(
    rules: list[dict[str, str]], key: int, version: int, who: str, topics: list[bytes]
) -> None:
    def covers(rule: dict[str, str], topic: bytes | None) -> bool:
        return (
            rule.get("apiKey", schema.APIS[key].name.lower()) == schema.APIS[key].name.lower()
            and rule.get("apiVersion", str(version)) == str(version)
            and rule.get("clientID", who) == who
            and (topic is None or rule.get("topic", topic.decode()).encode() == topic)
        )

    expected = all(any(covers(rule, topic) for rule in rules) for topic in topics or [None])
    match = matcher(*rules)
    assert asks(match, key, *topics, version=version, who=who) == expected
    # What the parser asks, of our matcher and of one of another kind.
    for each in (match, match.__call__):  # type: ignore[attr-defined]
        grant = grants_of(each)[key, version, who.encode()]
        judged = all(map(grant.topic, topics)) if topics else grant.bare
        assert (grant.any or judged) == expected


def test_client_ids_do_not_pile_up() -> None:
    match = matcher({"topic": "a"})
    assert isinstance(match, Compiled)
    for number in range(10_000):
        assert match[1, 4, b"client-%d" % number].bare
    assert len(match) <= 4096


def test_roles_are_made_of_known_keys() -> None:
    assert ROLES["produce"] >= {0, 3, 18}
    assert ROLES["consume"] >= {1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 18}
    assert all(key in schema.APIS for keys in ROLES.values() for key in keys)
