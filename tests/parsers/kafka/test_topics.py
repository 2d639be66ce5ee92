"""The readers of topics against a slow one: every API and version that carries topics."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsers.kafka import schema, wire
from parsers.kafka.rule import ALL
from parsers.kafka.schema import Item, Layout
from parsers.kafka.topics import Short, Step, reader
from proxylib import ParserError
from tests.parsers.kafka.messages import NAMES

CARRYING = [
    (api.name, version)
    for api in schema.APIS.values()
    for version in range(api.versions[0], api.versions[1] + 1)
    if reader(api.key, version) is not None and api.name != "Envelope"
]
UNJUDGED = {"ForgottenTopicsData", "Cursor", "SubscribedTopicRegex", "SourceTopicRegex"}
RESOURCES = {"DescribeConfigs", "AlterConfigs", "IncrementalAlterConfigs"}


def test_who_carries_topics() -> None:
    names = {api for api, _ in CARRYING}
    assert len(names) == 48
    assert {"Produce", "Fetch", "Metadata", "OffsetCommit", "ConsumerGroupHeartbeat"} < names
    assert ("Produce", 0) in CARRYING
    assert ("Produce", 13) in CARRYING
    assert ("Fetch", 18) in CARRYING
    assert "JoinGroup" not in names


def values(layout: Layout) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({item.name: value(item) for item in layout.items})


def value(item: Item) -> st.SearchStrategy[Any]:
    one: st.SearchStrategy[Any]
    if item.name in ("SubscribedTopicRegex", "SourceTopicRegex"):
        return st.just([] if item.array else None)
    if item.layout is not None:
        one = values(item.layout)
    elif item.type == "uuid":
        one = st.binary(min_size=16, max_size=16).filter(any)
    elif item.type in ("string", "bytes", "records"):
        one = st.binary(min_size=1, max_size=200)
        if item.nullable and not item.topic and not item.array:
            one = st.none() | one
    elif item.type == "float64":
        one = st.just(0.5)
    elif item.type == "bool":
        one = st.booleans()
    else:
        one = st.integers(0, 3)
    return st.lists(one, min_size=1, max_size=3) if item.array else one


def slow(api: str, layout: Layout, found: dict[str, Any]) -> set[bytes]:
    """All topics and topic ids in the values of a struct."""
    topics: set[bytes] = set()
    for item in layout.items:
        inside = found[item.name]
        if item.name in UNJUDGED or (api, item.name) == (
            "ConsumerGroupHeartbeat",
            "TopicPartitions",
        ):
            continue
        many = inside if item.array else [inside]
        if item.topic or item.topic_id:
            topics.update(many)
        elif item.name == "ResourceName" and api in RESOURCES and found["ResourceType"] == 2:
            topics.add(inside)
        elif item.layout is not None:
            for each in many:
                topics |= slow(api, item.layout, each)
    return topics


def attempt(read: Step, data: bytes, names: list[bytes], ids: list[bytes]) -> int:
    """Read `data`: how far it would have to go; -1 if it is enough."""
    try:
        read(data, 0, len(data), names, ids)
    except Short as short:
        return short.end
    return -1


@pytest.mark.parametrize(("api", "version"), CARRYING)
@settings(max_examples=10)
@given(data=st.data())
def test_finds_all_topics(api: str, version: int, data: st.DataObject) -> None:
    layout = schema.request(NAMES[api], version)
    drawn = data.draw(values(layout))
    body = wire.encode(layout, drawn)
    expected = slow(api, layout, drawn)
    read = reader(NAMES[api], version)
    assert read is not None
    # With what is behind it, which it must not look at.
    names: list[bytes] = []
    ids: list[bytes] = []
    assert read(body + b"\xff" * 9, 0, len(body), names, ids) <= len(body)
    assert {*names, *ids} == expected
    # With as little as it asks for.
    limit, wanted = 0, 0
    while wanted >= 0:
        limit = wanted
        names, ids = [], []
        wanted = attempt(read, body[:limit], names, ids)
        assert wanted < 0 or limit < wanted <= len(body)
    assert {*names, *ids} == expected


EVERYTHING = [
    ("Metadata", 0, {"Topics": []}),
    ("Metadata", 1, {"Topics": None}),
    ("OffsetFetch", 2, {"Topics": None}),
    ("OffsetFetch", 8, {"Groups": [{"Topics": None}]}),
    ("DescribeLogDirs", 1, {"Topics": None}),
    ("ElectLeaders", 0, {"TopicPartitions": None}),
    ("ListPartitionReassignments", 0, {"Topics": None}),
    ("DescribeTopicPartitions", 0, {"Topics": []}),
    ("DescribeShareGroupOffsets", 0, {"Groups": [{"Topics": None}]}),
    ("ConsumerGroupHeartbeat", 1, {"SubscribedTopicRegex": b".*"}),
    (
        "StreamsGroupHeartbeat",
        0,
        {"Topology": {"Subtopologies": [{"SourceTopicRegex": [b".*"]}]}},
    ),
    ("Envelope", 0, {}),
]

NONE = [
    ("Metadata", 1, {"Topics": []}),
    ("Fetch", 12, {"Topics": []}),
    ("Fetch", 12, {"ForgottenTopicsData": [{"Topic": b"old"}]}),
    ("ConsumerGroupHeartbeat", 0, {"SubscribedTopicNames": None, "TopicPartitions": None}),
    ("ConsumerGroupHeartbeat", 1, {"SubscribedTopicRegex": b""}),
    ("ShareGroupHeartbeat", 1, {"SubscribedTopicNames": None}),
    ("StreamsGroupHeartbeat", 0, {"Topology": None}),
    ("DescribeConfigs", 4, {"Resources": [{"ResourceType": 4, "ResourceName": b"1"}]}),
]


def read_all(api: str, version: int, given: dict[str, Any]) -> list[bytes]:
    body = wire.encode(schema.request(NAMES[api], version), given)
    read = reader(NAMES[api], version)
    assert read is not None
    names: list[bytes] = []
    read(body, 0, len(body), names, names)
    return names


@pytest.mark.parametrize(("api", "version", "given"), EVERYTHING)
def test_all_topics(api: str, version: int, given: dict[str, Any]) -> None:
    assert read_all(api, version, given) == [ALL]


@pytest.mark.parametrize(("api", "version", "given"), NONE)
def test_no_topics(api: str, version: int, given: dict[str, Any]) -> None:
    assert read_all(api, version, given) == []


@pytest.mark.parametrize("version", [0, 3, 8, 9, 12])
def test_one_topic_is_all_that_is_seen_of_a_produce_request(version: int) -> None:
    layout = schema.request(0, version)
    partition = {"Index": 0, "Records": b"r" * 10_000}
    body = wire.encode(layout, {"TopicData": [{"Name": b"topic", "PartitionData": [partition]}]})
    read = reader(0, version)
    assert read is not None
    end = body.index(b"topic") + 5
    names: list[bytes] = []
    assert read(body[:end], 0, end, names, []) == end
    assert names == [b"topic"]


@pytest.mark.parametrize(("api", "version"), CARRYING)
@settings(max_examples=10)
@given(junk=st.binary(max_size=120))
def test_junk_is_short_or_refused_or_read(api: str, version: int, junk: bytes) -> None:
    read = reader(NAMES[api], version)
    assert read is not None
    with contextlib.suppress(ParserError):
        wanted = attempt(read, junk, [], [])
        assert wanted < 0 or wanted > len(junk)
