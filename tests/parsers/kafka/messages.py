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


def sample(layout: schema.Layout, depth: int = 0) -> Values:
    """Values for every field: one element per list, nothing null, no number zero."""
    values: Values = {}
    for item in layout.items:
        value: Any
        if item.layout is not None:
            value = sample(item.layout, depth + 1)
        elif item.type == "uuid":
            value = item.name.encode().ljust(16, b"-")[:16]
        elif item.type in ("string", "bytes", "records"):
            value = item.name.encode()
        elif item.type == "bool":
            value = True
        else:
            value = 1.5 if item.type == "float64" else 1
        values[item.name] = [value] if item.array else value
    return values


def frames(data: bytes) -> list[bytes]:
    """The messages in `data`, each with its length; it must end with one."""
    found = []
    while data:
        (length,) = struct.unpack_from(">i", data)
        assert len(data) >= length + 4, data
        found.append(data[: length + 4])
        data = data[length + 4 :]
    return found


class Brokerage:
    """Answers requests as a broker would that knows `topics` (names by id)."""

    def __init__(self, topics: dict[bytes, bytes]) -> None:
        self.topics = topics

    def answer(self, data: bytes) -> bytes:
        """The responses to all requests in `data`."""
        return b"".join(map(self._answer, frames(data)))

    def _answer(self, frame: bytes) -> bytes:
        key, version, correlation, client = struct.unpack_from(">hhih", frame, 4)
        api = schema.APIS[key].name
        layout = schema.request(key, version)
        body = 14 + max(client, 0) + layout.flexible
        values = wire.decode_whole(frame, layout, body)
        if api == "Produce" and values["Acks"] == 0:
            return b""
        more: Values = {}
        if api == "Metadata":
            asked = values["Topics"]
            every = asked is None or (version == 0 and not asked)
            listed = [
                {"Name": name, "TopicId": topic_id, "Partitions": [{"ReplicaNodes": [1]}]}
                for topic_id, name in self.topics.items()
                if every or any(name == t["Name"] or topic_id == t.get("TopicId") for t in asked)
            ]
            more = {"Topics": listed, "Brokers": [{"NodeId": 1, "Host": b"here", "Port": 9092}]}
        if api == "ApiVersions":
            keys = [{"ApiKey": key, "MinVersion": 0, "MaxVersion": 99} for key in (0, 1, 17, 999)]
            more = {"ApiKeys": keys}
        if api == "Fetch" and version >= 7:
            more = {"SessionId": values["SessionId"] or 77 if values["SessionEpoch"] >= 0 else 0}
            more["Responses"] = [{"Partitions": [{"Records": b"r" * 700}]}]
        return response(api, version, correlation, **more)
