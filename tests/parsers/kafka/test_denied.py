"""Every API in every version: a denied request gets a response that clients can read.

Read twice: by our own reader, and where it has the message by kafka-python's.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import kafka.protocol
import pytest
from kafka.protocol.api_message import ApiMessage

from parsers.kafka import schema
from proxylib.testing import Host
from tests.parsers.kafka.messages import read_response, request, sample

ERRORS = {"ErrorCode", "PartitionErrorCode"}


def their_responses() -> dict[int, Any]:
    """kafka-python's response classes by API key."""
    importlib.import_module("kafka.protocol.sasl")
    for package in ("admin", "consumer", "metadata", "producer"):
        module = importlib.import_module(f"kafka.protocol.{package}")
        for found in pkgutil.iter_modules(module.__path__):
            importlib.import_module(f"{module.__name__}.{found.name}")
    classes = [cls for cls in _subclasses(ApiMessage) if cls.type == "response"]
    return {cls.API_KEY: cls for cls in classes}


def _subclasses(cls: Any) -> Iterator[Any]:
    for found in cls.__subclasses__():
        if found.__dict__.get("_json") is not None:
            yield found
        yield from _subclasses(found)


THEIRS = their_responses()

EVERY = [
    (api.name, version)
    for api in schema.APIS.values()
    for version in range(api.versions[0], api.versions[1] + 1)
]


def error_codes(value: Any) -> list[int]:
    if isinstance(value, list):
        return [code for item in value for code in error_codes(item)]
    if isinstance(value, dict):
        own = [value[name] for name in ERRORS if name in value]
        return own + [code for item in value.values() for code in error_codes(item)]
    return []


@pytest.mark.parametrize(("api", "version"), EVERY)
def test_denied(api: str, version: int) -> None:
    key = next(key for key, known in schema.APIS.items() if known.name == api)
    host = Host("kafka", [{"apiKey": "heartbeat" if key != 12 else "fetch"}])
    values = sample(schema.request(key, version))
    assert host.client(request(api, version, 77, **values)) == b""
    reply = host.take(reply=True)
    correlation, answer = read_response(api, version, reply)
    assert correlation == 77
    codes = set(error_codes(answer)) - {0}
    assert len(codes) == 1, answer
    assert codes <= {29, 30, 31, 35, 53}, answer
    (entry,) = host.log
    assert entry.entry_type.name == "Denied"
    assert entry.fields["api"] == api
    assert not host.closed
    theirs = THEIRS.get(key)
    # Theirs takes ApiVersions with any error for version 0.
    if theirs is not None and version <= theirs.max_version and api != "ApiVersions":
        read = theirs.decode(reply, version=version, header=True, framed=True)
        assert read.header.correlation_id == 77
        assert set(error_codes(_plain(read.to_dict()))) - {0} == codes


def _plain(value: Any) -> Any:
    """Their dicts with the schema's names."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {
            "".join(part.capitalize() for part in name.split("_")): _plain(item)
            for name, item in value.items()
        }
    return value


def test_their_reader_knows_most() -> None:
    assert len(THEIRS) > 50
    assert kafka.protocol.__name__ == "kafka.protocol"


REPEATED = [
    ("Produce", 0, "Responses.Name", [b"Name"]),
    ("Produce", 12, "Responses.PartitionResponses.Index", [1]),
    ("Produce", 13, "Responses.TopicId", [b"TopicId---------"]),
    ("Fetch", 3, "Responses.Topic", [b"Topic"]),
    ("Fetch", 18, "Responses.Partitions.PartitionIndex", [1]),
    ("ListOffsets", 0, "Topics.Partitions.PartitionIndex", [1]),
    ("Metadata", 8, "Topics.Name", [b"Name"]),
    ("OffsetCommit", 10, "Topics.TopicId", [b"TopicId---------"]),
    ("OffsetFetch", 5, "Topics.Partitions.PartitionIndex", [1]),
    ("OffsetFetch", 9, "Groups.Topics.Partitions.PartitionIndex", [1]),
    ("FindCoordinator", 4, "Coordinators.Key", [b"CoordinatorKeys"]),
    ("DescribeGroups", 5, "Groups.GroupId", [b"Groups"]),
    ("DeleteTopics", 3, "Responses.Name", [b"TopicNames"]),
    ("DeleteTopics", 6, "Responses.Name", [b"Name"]),
    ("AddPartitionsToTxn", 3, "ResultsByTopicV3AndBelow.ResultsByPartition.PartitionIndex", [1]),
    ("AddPartitionsToTxn", 4, "ResultsByTransaction.TopicResults.Name", [b"Name"]),
    ("AlterReplicaLogDirs", 2, "Results.Partitions.PartitionIndex", [1]),
    ("AlterUserScramCredentials", 0, "Results.User", [b"Name", b"Name"]),
    ("DescribeConfigs", 4, "Results.ResourceName", [b"ResourceName"]),
    ("ElectLeaders", 2, "ReplicaElectionResults.PartitionResult.PartitionId", [1]),
    ("WriteTxnMarkers", 1, "Markers.Topics.Partitions.PartitionIndex", [1]),
]


@pytest.mark.parametrize(("api", "version", "path", "expected"), REPEATED)
def test_answer_repeats_the_request(
    api: str, version: int, path: str, expected: list[object]
) -> None:
    key = next(key for key, known in schema.APIS.items() if known.name == api)
    host = Host("kafka", [{"apiKey": "heartbeat"}])
    host.client(request(api, version, **sample(schema.request(key, version))))
    found: list[Any] = [read_response(api, version, host.take(reply=True))[1]]
    for name in path.split("."):
        found = [item[name] for item in found]
        found = [item for items in found for item in items] if isinstance(found[0], list) else found
    assert found == expected


@pytest.mark.parametrize("version", range(14))
def test_produce_without_acks_is_not_answered(version: int) -> None:
    host = Host("kafka", [{"apiKey": "heartbeat"}])
    values = sample(schema.request(0, version)) | {"Acks": 0}
    assert host.client(request("Produce", version, **values)) == b""
    assert host.take(reply=True) == b""
    heartbeat = request("Heartbeat", 0, 5)
    assert host.client(heartbeat) == heartbeat


ERRORS_OF = [
    ("JoinGroup", 9, {}, 30),
    ("FindCoordinator", 3, {"KeyType": 0}, 30),
    ("FindCoordinator", 3, {"KeyType": 1}, 53),
    ("InitProducerId", 4, {"TransactionalId": b"t"}, 53),
    ("InitProducerId", 4, {"TransactionalId": None}, 31),
    ("EndTxn", 3, {}, 53),
    ("CreateAcls", 3, {"Creations": [{}]}, 31),
    ("DescribeConfigs", 4, {"Resources": [{"ResourceType": 2, "ResourceName": b"t"}]}, 29),
    ("DescribeConfigs", 4, {"Resources": [{"ResourceType": 4, "ResourceName": b"1"}]}, 31),
    ("SaslHandshake", 1, {}, 31),
]


@pytest.mark.parametrize(("api", "version", "values", "code"), ERRORS_OF)
def test_the_apis_own_error(api: str, version: int, values: dict[str, Any], code: int) -> None:
    host = Host("kafka", [{"apiKey": "heartbeat"}])
    host.client(request(api, version, **values))
    _, answer = read_response(api, version, host.take(reply=True))
    assert set(error_codes(answer)) == {code}
