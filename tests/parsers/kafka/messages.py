"""Kafka messages for tests, whole: as a client and a broker write them."""

from __future__ import annotations

import struct
from typing import Any

from parsers.kafka import schema, wire

Values = dict[str, Any]

NAMES = {api.name: api.key for api in schema.APIS.values()}


def framed(body: bytes) -> bytes:
    return struct.pack(">i", len(body)) + body


def request(
    api: str, version: int, correlation: int = 1, client: bytes | None = b"me", **values: Any
) -> bytes:
    """A request; fields that are not given have their defaults."""
    layout = schema.request(NAMES[api], version)
    header = struct.pack(">hhi", NAMES[api], version, correlation)
    if (api, version) != ("ControlledShutdown", 0):
        header += struct.pack(">h", -1 if client is None else len(client)) + (client or b"")
    header += b"\0" if layout.flexible else b""
    return framed(header + wire.encode(layout, values))


def response(api: str, version: int, correlation: int = 1, **values: Any) -> bytes:
    """A response; fields that are not given have their defaults."""
    layout = schema.response(NAMES[api], version)
    tags = b"\0" if layout.flexible and api != "ApiVersions" else b""
    return framed(struct.pack(">i", correlation) + tags + wire.encode(layout, values))


def read_response(api: str, version: int, data: bytes) -> tuple[int, Values]:
    """(correlation id, values) of the one response in `data`."""
    length, correlation = struct.unpack_from(">ii", data)
    assert length + 4 == len(data), data
    layout = schema.response(NAMES[api], version)
    tags = layout.flexible and api != "ApiVersions"
    return correlation, wire.decode_whole(data, layout, 8 + tags)


def read_responses(kinds: list[tuple[str, int]], data: bytes) -> list[tuple[int, Values]]:
    """The responses in `data`, of these APIs and versions."""
    found = []
    for api, version in kinds:
        (length,) = struct.unpack_from(">i", data)
        found.append(read_response(api, version, data[: length + 4]))
        data = data[length + 4 :]
    assert not data, data
    return found


def produce(version: int, *topics: bytes, acks: int = -1, **more: Any) -> bytes:
    """A Produce request for one partition of each of `topics` (names, or ids)."""
    key = "TopicId" if version >= 13 else "Name"
    partition = {"Index": 3, "Records": more.pop("records", b"some records")}
    data = [{key: topic, "PartitionData": [partition]} for topic in topics]
    return request("Produce", version, Acks=acks, TimeoutMs=1000, TopicData=data, **more)


def fetch(version: int, *topics: bytes, **more: Any) -> bytes:
    """A Fetch request for one partition of each of `topics` (names, or ids)."""
    key = "TopicId" if version >= 13 else "Topic"
    data = [{key: topic, "Partitions": [{"Partition": 3}]} for topic in topics]
    return request("Fetch", version, Topics=data, **more)
