"""Answers to denied requests: well-formed responses with the API's own error.

A response repeats what it answers: topics, partitions, groups.  `MIRRORS` says, per
API, which list of the response follows which list of the request, and which fields
are taken over; the error then goes into the innermost structs that there are, as
Kafka's brokers do it, or else into the response itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from parsers.kafka import roles, schema
from parsers.kafka.schema import Layout
from parsers.kafka.wire import Values, encode, varint

MESSAGE_TOO_LARGE = 10
TOPIC_AUTHORIZATION_FAILED = 29
GROUP_AUTHORIZATION_FAILED = 30
CLUSTER_AUTHORIZATION_FAILED = 31
UNSUPPORTED_VERSION = 35
TRANSACTIONAL_ID_AUTHORIZATION_FAILED = 53
FETCH_SESSION_ID_NOT_FOUND = 70
UNKNOWN_TOPIC_ID = 100
SHARE_SESSION_NOT_FOUND = 122

_ERROR_FIELDS = ("ErrorCode", "PartitionErrorCode")
_NOT_KNOWN = dict.fromkeys(
    ("BaseOffset", "HighWatermark", "CommittedOffset", "LowWatermark", "NodeId", "ProducerEpoch"),
    -1,
)
"""Fields whose "nothing" is -1 though the schema's default is 0."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A list of the response, and the request's that it follows.

    source: lists inside each other joined by "."; empty for one element in any case.
    fields: those of the response by those of the request; * is the element itself.
    """

    target: str
    source: str
    fields: dict[str, str]
    inside: tuple[Mirror, ...] = ()


def _mirror(spec: str, *inside: Mirror) -> Mirror:
    """``"Responses=TopicData Name Index=Partition"``: lists, then fields."""
    lists, *fields = spec.split()
    target, _, source = lists.partition("=")
    pairs = (field.partition("=") for field in fields)
    return Mirror(target, source, {name: other or name for name, _, other in pairs}, inside)


def _topics(name: str, *inside: Mirror) -> tuple[Mirror, ...]:
    return (_mirror(f"Topics=Topics {name}", *inside),)


_PARTITIONS = _mirror("Partitions=Partitions PartitionIndex")
_INDEXES = _mirror("Partitions=PartitionIndexes PartitionIndex=*")
_SHARE_STATE = (_mirror("Results=Topics TopicId", _mirror("Partitions=Partitions Partition")),)
_GROUP_IDS = (_mirror("Groups=GroupIds GroupId=*"),)
_RESOURCES = "=Resources ResourceType ResourceName"

MIRRORS: dict[int, tuple[Mirror, ...]] = {
    0: (
        _mirror(
            "Responses=TopicData Name TopicId", _mirror("PartitionResponses=PartitionData Index")
        ),
    ),
    1: (
        _mirror(
            "Responses=Topics Topic TopicId",
            _mirror("Partitions=Partitions PartitionIndex=Partition"),
        ),
    ),
    2: _topics("Name", _PARTITIONS),
    3: _topics("Name TopicId"),
    8: _topics("Name TopicId", _PARTITIONS),
    9: (
        *_topics("Name", _INDEXES),
        _mirror("Groups=Groups GroupId", *_topics("Name TopicId", _INDEXES)),
    ),
    10: (_mirror("Coordinators=CoordinatorKeys Key=*"),),
    15: (_mirror("Groups=Groups GroupId=*"),),
    19: _topics("Name"),
    20: (_mirror("Responses=Topics Name TopicId"), _mirror("Responses=TopicNames Name=*")),
    21: _topics("Name", _PARTITIONS),
    23: _topics("Topic", _mirror("Partitions=Partitions Partition")),
    24: (
        _mirror(
            "ResultsByTransaction=Transactions TransactionalId",
            _mirror(
                "TopicResults=Topics Name",
                _mirror("ResultsByPartition=Partitions PartitionIndex=*"),
            ),
        ),
        _mirror(
            "ResultsByTopicV3AndBelow=V3AndBelowTopics Name",
            _mirror("ResultsByPartition=Partitions PartitionIndex=*"),
        ),
    ),
    27: (_mirror("Markers=Markers ProducerId", *_topics("Name", _INDEXES)),),
    28: _topics("Name", _PARTITIONS),
    30: (_mirror("Results=Creations"),),
    31: (_mirror("FilterResults=Filters"),),
    32: (_mirror("Results" + _RESOURCES),),
    33: (_mirror("Responses" + _RESOURCES),),
    34: (
        _mirror(
            "Results=Dirs.Topics TopicName=Name",
            _mirror("Partitions=Partitions PartitionIndex=*"),
        ),
    ),
    35: (_mirror("Results="),),
    37: (_mirror("Results=Topics Name"),),
    42: (_mirror("Results=GroupsNames GroupId=*"),),
    43: (
        _mirror(
            "ReplicaElectionResults=TopicPartitions Topic",
            _mirror("PartitionResult=Partitions PartitionId=*"),
        ),
    ),
    44: (_mirror("Responses" + _RESOURCES),),
    45: (_mirror("Responses=Topics Name", _PARTITIONS),),
    47: _topics("Name", _PARTITIONS),
    49: (_mirror("Entries=Entries", _mirror("Entity=Entity EntityType EntityName")),),
    51: (_mirror("Results=Deletions User=Name"), _mirror("Results=Upsertions User=Name")),
    61: _topics("Name", _INDEXES),
    65: (_mirror("TransactionStates=TransactionalIds TransactionalId=*"),),
    69: _GROUP_IDS,
    75: _topics("Name"),
    77: _GROUP_IDS,
    78: (_mirror("Responses=Topics TopicId", _PARTITIONS),),
    79: (_mirror("Responses=Topics TopicId", _PARTITIONS),),
    83: _SHARE_STATE,
    84: _SHARE_STATE,
    85: _SHARE_STATE,
    86: _SHARE_STATE,
    87: _SHARE_STATE,
    89: _GROUP_IDS,
    90: (
        _mirror(
            "Groups=Groups GroupId",
            _mirror("Topics=Topics TopicName", _mirror("Partitions=Partitions PartitionIndex=*")),
        ),
    ),
    91: (_mirror("Responses=Topics TopicName", _PARTITIONS),),
    92: (_mirror("Responses=Topics TopicName"),),
}
"""By API key. APIs that are not here have one error for the whole response."""

_GROUP_APIS = {11, 12, 13, 14, 15, 16, 42, 68, 69, 76, 77, 88, 89}
_TRANSACTION_APIS = {25, 26, 65}
_SESSION_ERRORS = {FETCH_SESSION_ID_NOT_FOUND, SHARE_SESSION_NOT_FOUND}


def error_of(key: int, request: Values, *, topics: bool) -> int:
    """The error for a denied request. topics: whether it names any."""
    if topics:
        return TOPIC_AUTHORIZATION_FAILED
    if key in _GROUP_APIS or (key == roles.FIND_COORDINATOR and request.get("KeyType") != 1):
        return GROUP_AUTHORIZATION_FAILED
    if (
        key in _TRANSACTION_APIS
        or key == roles.FIND_COORDINATOR
        or (key == roles.INIT_PRODUCER_ID and request.get("TransactionalId") is not None)
    ):
        return TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    if key <= roles.OFFSET_FETCH:
        return TOPIC_AUTHORIZATION_FAILED
    return CLUSTER_AUTHORIZATION_FAILED


def answer(key: int, version: int, correlation: int, request: Values, error: int) -> bytes | None:
    """The response, framed, that answers `request` with `error`; None if none is due."""
    if key == roles.PRODUCE and request["Acks"] == 0:
        return None
    layout = schema.response(key, version)
    # An error of the session is the response's own.
    mirrors = () if error in _SESSION_ERRORS else MIRRORS.get(key, ())
    values = _fill(layout, mirrors, request, error)[0]
    return frame(key, correlation, layout, values)


def frame(key: int, correlation: int, layout: Layout, values: Values) -> bytes:
    """A whole response: length, header, body."""
    body = encode(layout, values)
    # ApiVersions has the old header in all versions, for clients that have just come.
    tags = varint(0) if layout.flexible and key != roles.API_VERSIONS else b""
    size = 4 + len(tags) + len(body)
    return size.to_bytes(4, "big") + correlation.to_bytes(4, "big", signed=True) + tags + body


def _fill(
    layout: Layout, mirrors: Iterable[Mirror], request: Any, error: int
) -> tuple[Values, bool]:
    """The values of a struct, and whether the error is in it."""
    values: Values = {}
    placed = False
    for item in layout.items:
        if item.name in _NOT_KNOWN and item.default == 0:
            values[item.name] = -1
    for mirror in mirrors:
        if mirror.target not in layout:
            continue
        inner = layout[mirror.target].layout
        assert inner is not None, "lists that are mirrored hold structs"
        elements = values.setdefault(mirror.target, [])
        for element in _elements(request, mirror.source):
            filled, inside = _fill(inner, mirror.inside, element, error)
            for name, source in mirror.fields.items():
                value = element if source == "*" else element.get(source)
                if value is not None and name in inner:
                    filled[name] = value
            elements.append(filled)
            placed = placed or inside
    if not placed:
        for name in _ERROR_FIELDS:
            if name in layout:
                values[name] = error
                placed = True
    return values, placed


def _elements(request: Any, source: str) -> Iterable[Any]:
    if not source:
        return [{}]
    found = [request]
    for name in source.split("."):
        found = [
            element
            for outer in found
            if isinstance(outer, dict)
            for element in outer.get(name) or ()
        ]
    return found
