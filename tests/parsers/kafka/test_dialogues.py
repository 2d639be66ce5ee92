"""Dialogues: what the broker sees of the client, and the client of the broker.

Each runs in pure Python and through the built library.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest

from proxylib.testing import Host
from tests.conftest import AnyHost, OpenHost, text_log
from tests.parsers.kafka.messages import (
    fetch,
    framed,
    produce,
    read_response,
    read_responses,
    request,
    response,
)

CONSUME = [{"role": "consume", "topic": "msgs"}]
BOTH = [{"role": "produce", "topic": "msgs"}, {"role": "consume", "topic": "msgs"}]
ID, OTHER_ID = b"i" * 16, b"o" * 16
NO_ID = bytes(16)


def own_query(*ids: bytes) -> bytes:
    topics = [{"TopicId": topic_id, "Name": None} for topic_id in ids]
    values: dict[str, Any] = {"Topics": topics, "AllowAutoTopicCreation": False}
    return request("Metadata", 12, -1, b"proxylib", **values)


def own_reply(**names: bytes) -> bytes:
    """The reply to own_query; by the letter that an id is made of."""
    topics = [{"Name": name, "TopicId": key.encode() * 16} for key, name in names.items()]
    return response("Metadata", 12, -1, Topics=topics)


def errors(
    answer: dict[str, Any], topics: str = "Responses", parts: str = "Partitions"
) -> set[int]:
    return {part["ErrorCode"] for topic in answer[topics] for part in topic[parts]}


@pytest.mark.parametrize("version", range(13))
def test_fetch_of_the_topic_passes(open_host: OpenHost, version: int) -> None:
    host = open_host("kafka", CONSUME)
    sent = fetch(version, b"msgs", SessionEpoch=-1)
    assert host.client(sent) == sent
    reply = response(
        "Fetch", version, Responses=[{"Topic": b"msgs", "Partitions": [{"ErrorCode": 3}]}]
    )
    assert host.server(reply) == reply
    common = {"api": "Fetch", "api_key": "1", "api_version": str(version), "correlation_id": "1"}
    topics = {"client_id": "me", "topics": "msgs"}
    code = "0" if version >= 7 else "3"
    logged = [("Request", common | topics), ("Response", common | {"error_code": code})]
    found = [(kind, _told(fields)) for kind, fields in text_log(host)]
    assert found == [(kind, _told(fields)) for kind, fields in logged]


def _told(fields: dict[str, str]) -> dict[str, str]:
    """An entry of the library has no zeros, and its topics come as a tuple, not a list."""
    return {name: value.strip("[](),b'") for name, value in fields.items() if value != "0"}


@pytest.mark.parametrize("version", range(13))
def test_fetch_of_another_topic_is_denied(open_host: OpenHost, version: int) -> None:
    host = open_host("kafka", CONSUME)
    assert host.client(fetch(version, b"msgs", b"other", SessionEpoch=-1)) == b""
    correlation, answer = read_response("Fetch", version, host.take(reply=True))
    assert correlation == 1
    assert [topic["Topic"] for topic in answer["Responses"]] == [b"msgs", b"other"]
    assert errors(answer) == {29}
    assert host.client(fetch(version, b"msgs", SessionEpoch=-1))


@pytest.mark.parametrize("version", range(13))
def test_produce(open_host: OpenHost, version: int) -> None:
    host = open_host("kafka", BOTH)
    for acks in (-1, 1, 0):
        sent = produce(version, b"msgs", acks=acks)
        assert host.client(sent) == sent
    reply = response("Produce", version, Responses=[{"PartitionResponses": [{"ErrorCode": 5}]}])
    assert host.server(reply + reply) == reply + reply
    assert host.client(produce(version, b"msgs", b"x")) == b""
    _, answer = read_response("Produce", version, host.take(reply=True))
    assert errors(answer, parts="PartitionResponses") == {29}
    assert host.client(produce(version, b"msgs", b"x", acks=0)) == b""
    assert host.take(reply=True) == b""
    assert not host.closed


def test_denials_stand_among_the_replies(open_host: OpenHost) -> None:
    host = open_host("kafka", CONSUME)
    allowed = [fetch(11, b"msgs", correlation=n, SessionEpoch=-1) for n in (1, 3, 4)]
    denied = [fetch(11, b"no", correlation=n, SessionEpoch=-1) for n in (0, 2, 5, 6)]
    sent = [denied[0], allowed[0], denied[1], allowed[1], allowed[2], denied[2], denied[3]]
    assert host.client(b"".join(sent)) == b"".join(allowed)
    first = host.take(reply=True)
    rest = host.server(b"".join(response("Fetch", 11, n) for n in (1, 3, 4)))
    found = read_responses([("Fetch", 11)] * 7, first + rest)
    assert [correlation for correlation, _ in found] == [0, 1, 2, 3, 4, 5, 6]
    assert [bool(errors(answer)) for _, answer in found] == [n in (0, 2, 5, 6) for n in range(7)]


def test_a_denial_does_not_overtake_a_reply_that_is_passing(open_host: OpenHost) -> None:
    host = open_host("kafka", CONSUME)
    host.client(fetch(11, b"msgs", correlation=1, SessionEpoch=-1))
    records = [{"Partitions": [{"Records": b"r" * 100_000}]}]
    reply = response("Fetch", 11, 1, Responses=records)
    out = host.server(reply[:5000])
    host.client(fetch(11, b"no", correlation=2, SessionEpoch=-1))
    out += host.take(reply=True) + host.server(reply[5000:-1]) + host.server(reply[-1:])
    found = read_responses([("Fetch", 11)] * 2, out)
    assert [correlation for correlation, _ in found] == [1, 2]


@pytest.mark.parametrize("size", [5_000, 70_000])
def test_large_bodies(open_host: OpenHost, size: int) -> None:
    """What is behind the topic of an allowed request passes as it comes; a denied one is
    read and dropped as it comes. Neither is kept."""
    host = open_host("kafka", BOTH)
    for topic, passes in ((b"msgs", True), (b"other", False)):
        sent = produce(9, topic, records=b"r" * size)
        cut = min(4200, len(sent) - 50)
        out = host.client(sent[:cut])
        assert out == (sent[:cut] if passes else b"")
        assert host.client(sent[cut:]) == (sent[cut:] if passes else b"")
    reply = response("Produce", 9)
    found = read_responses([("Produce", 9)] * 2, host.server(reply))
    assert errors(found[1][1], parts="PartitionResponses") == {29}


def test_a_large_request_for_two_topics_is_held_until_the_second_is_seen(
    open_host: OpenHost,
) -> None:
    host = open_host("kafka", [{"role": "produce", "topic": t} for t in ("one", "two")])
    sent = produce(9, b"one", b"two", records=b"r" * 400_000)
    second = sent.index(b"\x04two")
    assert host.client(sent[:second]) == b""
    assert host.client(sent[second:]) == sent
    denied = produce(9, b"one", b"six", records=b"r" * 400_000)
    assert host.client(denied) == b""
    host.server(response("Produce", 9))
    assert not host.closed


def test_a_request_too_large_to_see_all_its_topics() -> None:
    host = Host("kafka", [{"role": "produce", "topic": t} for t in ("one", "two")])
    sent = produce(9, b"one", b"two", records=b"r" * (9 << 20))
    out = b"".join(host.client(sent[i : i + 500_000]) for i in range(0, len(sent), 500_000))
    assert out == b""
    _, answer = read_response("Produce", 9, host.take(reply=True))
    assert errors(answer, parts="PartitionResponses") == {10}


METADATA = [{"Name": name, "Partitions": [{"IsrNodes": [1, 2]}]} for name in (b"a", b"msgs", b"c")]
BROKERS = [{"NodeId": 1, "Host": b"here", "Port": 9092}]


@pytest.mark.parametrize("version", range(14))
def test_metadata_of_all_topics_has_those_that_are_allowed(
    open_host: OpenHost, version: int
) -> None:
    host = open_host("kafka", CONSUME)
    sent = request("Metadata", version, Topics=None if version else [])
    assert host.client(sent) == sent
    out = host.server(response("Metadata", version, Brokers=BROKERS, Topics=METADATA))
    _, answer = read_response("Metadata", version, out)
    assert [topic["Name"] for topic in answer["Topics"]] == [b"msgs"]
    assert answer["Topics"][0]["Partitions"][0]["IsrNodes"] == [1, 2]
    assert answer["Brokers"][0]["Host"] == b"here"


@pytest.mark.parametrize("version", range(14))
@pytest.mark.parametrize("asked", [[b"x"], [b"x", b"msgs"], [b"msgs", b"x", b"y"]])
def test_metadata_of_denied_topics_goes_on_without_them(
    open_host: OpenHost, version: int, asked: list[bytes]
) -> None:
    host = open_host("kafka", CONSUME)
    out = host.client(request("Metadata", version, 9, Topics=[{"Name": n} for n in asked]))
    allowed = [{"Name": b"msgs"}] if b"msgs" in asked else []
    assert out == request("Metadata", version, 9, Topics=allowed)
    # Version 0 cannot ask for no topics, and gets all.
    there = METADATA if version == 0 and not allowed else METADATA[1:2] if allowed else []
    out = host.server(response("Metadata", version, 9, Brokers=BROKERS, Topics=there))
    correlation, answer = read_response("Metadata", version, out)
    assert correlation == 9
    assert answer["Brokers"]
    found = {topic["Name"]: topic["ErrorCode"] for topic in answer["Topics"]}
    assert found == {name: 0 if name == b"msgs" else 29 for name in asked}
    assert [kind for kind, _ in text_log(host)] == ["Denied", "Response"]


@pytest.mark.parametrize("version", range(13, 19))
def test_topic_ids_learnt_from_metadata(open_host: OpenHost, version: int) -> None:
    host = open_host("kafka", CONSUME)
    host.client(request("Metadata", 12, 1, Topics=[{"Name": b"msgs"}]))
    host.server(response("Metadata", 12, 1, Topics=[{"Name": b"msgs", "TopicId": ID}]))
    sent = fetch(version, ID, SessionEpoch=-1)
    assert host.client(sent) == sent


def test_metadata_of_an_id_under_another_name(open_host: OpenHost) -> None:
    """Of the two, Kafka takes the id."""
    host = open_host("kafka", CONSUME)
    host.client(request("Metadata", 12, 1, Topics=[{"Name": b"msgs"}]))
    learnt = [{"Name": b"msgs", "TopicId": ID}, {"Name": b"secret", "TopicId": OTHER_ID}]
    host.server(response("Metadata", 12, 1, Topics=learnt))
    topics = [{"Name": b"msgs", "TopicId": ID}, {"Name": b"msgs", "TopicId": OTHER_ID}]
    out = host.client(request("Metadata", 12, 2, Topics=topics))
    assert out == request("Metadata", 12, 2, Topics=topics[:1])


def test_unknown_topic_ids_are_asked_for() -> None:
    host = Host("kafka", CONSUME)
    sent = fetch(16, ID, correlation=5, SessionEpoch=-1)
    behind = request("Heartbeat", 4, 6)
    assert host.client(sent + behind) == own_query(ID)
    assert host.server(own_reply(i=b"msgs")) == b""
    assert host.take(reply=False) == sent + behind
    replies = response("Fetch", 16, 5) + response("Heartbeat", 4, 6)
    assert host.server(replies) == replies
    kinds = [(kind, fields["api"]) for kind, fields in text_log(host)]
    assert kinds == [(k, a) for k in ("Request", "Response") for a in ("Fetch", "Heartbeat")]


@pytest.mark.parametrize(("names", "code"), [({"o": b"secret"}, 29), ({}, 100)])
def test_topic_ids_of_other_topics_and_of_none(names: dict[str, bytes], code: int) -> None:
    host = Host("kafka", CONSUME)
    sent = fetch(16, OTHER_ID, correlation=5, SessionEpoch=-1)
    assert host.client(sent + request("Heartbeat", 4, 6)) == own_query(OTHER_ID)
    correlation, answer = read_response("Fetch", 16, host.server(own_reply(**names)))
    assert correlation == 5
    assert errors(answer) == {code}
    assert host.take(reply=False) == request("Heartbeat", 4, 6)
    assert not host.closed


def test_under_a_host_that_sends_one_way_the_client_comes_again(open_host: OpenHost) -> None:
    host = open_host("kafka", CONSUME)
    if isinstance(host, Host):
        host.connection.sends_both_ways = False
    sent = fetch(16, ID, correlation=5, SessionEpoch=-1)
    assert host.client(sent) == own_query(ID)
    _, answer = read_response("Fetch", 16, host.server(own_reply(i=b"msgs")))
    assert errors(answer) == {100}
    assert host.client(sent) == sent


def test_produce_by_topic_id() -> None:
    host = Host("kafka", BOTH)
    sent = produce(13, ID, correlation=2)
    assert host.client(sent) == own_query(ID)
    host.server(own_reply(i=b"msgs"))
    assert host.take(reply=False) == sent
    host.server(response("Produce", 13, 2))
    # Too large to wait: the client is made to come again, and by then the id is known.
    large = produce(13, OTHER_ID, correlation=3, records=b"r" * 300_000)
    assert host.client(large) == own_query(OTHER_ID)
    out = host.server(own_reply(o=b"msgs"))
    _, answer = read_response("Produce", 13, out)
    assert errors(answer, parts="PartitionResponses") == {100}
    assert host.client(large) == large


def test_a_zero_topic_id_is_nobodys() -> None:
    host = Host("kafka", CONSUME)
    assert host.client(fetch(16, NO_ID, SessionEpoch=-1)) == own_query(NO_ID)
    topics = [{"ErrorCode": 100, "Name": None, "TopicId": NO_ID}]
    out = host.server(response("Metadata", 12, -1, Topics=topics))
    assert errors(read_response("Fetch", 16, out)[1]) == {100}


def session(version: int, number: int, epoch: int, *topics: bytes) -> bytes:
    return fetch(version, *topics, SessionId=number, SessionEpoch=epoch)


@pytest.mark.parametrize("version", range(7, 13))
def test_fetch_sessions(open_host: OpenHost, version: int) -> None:
    host = open_host("kafka", CONSUME)
    assert host.client(session(version, 0, 0, b"msgs"))
    host.server(response("Fetch", version, SessionId=42))
    for _ in range(2):
        assert host.client(session(version, 42, 1))
        host.server(response("Fetch", version, SessionId=42))
    # A session of another connection may be about anything.
    assert host.client(session(version, 43, 1)) == b""
    _, answer = read_response("Fetch", version, host.take(reply=True))
    assert (answer["ErrorCode"], answer["Responses"]) == (70, [])
    # The policy changes: the session's topic is no longer allowed.
    host.set_policy("kafka", [{"role": "consume", "topic": "other"}])
    assert host.client(session(version, 42, 2)) == b""
    assert read_response("Fetch", version, host.take(reply=True))[1]["ErrorCode"] == 70
    assert host.client(session(version, 0, 0, b"other"))


def share_fetch(epoch: int, *ids: bytes) -> bytes:
    topics = [{"TopicId": topic_id, "Partitions": [{"PartitionIndex": 0}]} for topic_id in ids]
    return request(
        "ShareFetch", 1, GroupId=b"g", MemberId=b"m", ShareSessionEpoch=epoch, Topics=topics
    )


def test_share_sessions() -> None:
    host = Host("kafka", CONSUME)
    assert host.client(share_fetch(1)) == b""
    assert read_response("ShareFetch", 1, host.take(reply=True))[1]["ErrorCode"] == 122
    assert host.client(share_fetch(0, ID)) == own_query(ID)
    host.server(own_reply(i=b"msgs"))
    assert host.take(reply=False) == share_fetch(0, ID)
    assert host.client(share_fetch(1)) == share_fetch(1)


def test_versions_are_narrowed(open_host: OpenHost) -> None:
    offered = [(0, 0, 99), (1, 20, 30), (17, 0, 1), (18, 0, 9), (999, 0, 1)]
    names = ("ApiKey", "MinVersion", "MaxVersion")
    keys = [dict(zip(names, versions, strict=True)) for versions in offered]
    for version in range(5):
        host = open_host("kafka", CONSUME)
        sent = request("ApiVersions", version)
        assert host.client(sent) == sent
        more: dict[str, Any] = {"FinalizedFeaturesEpoch": 5} if version > 2 else {}
        out = host.server(response("ApiVersions", version, ApiKeys=keys, **more))
        _, answer = read_response("ApiVersions", version, out)
        found = [tuple(key[name] for name in names) for key in answer["ApiKeys"]]
        assert found == [(0, 0, 13), (17, 1, 1), (18, 0, 4)]
        assert version < 3 or answer["FinalizedFeaturesEpoch"] == 5


def test_versions_that_need_no_narrowing_pass_as_they_are(open_host: OpenHost) -> None:
    host = open_host("kafka", CONSUME)
    host.client(request("ApiVersions", 4))
    reply = response("ApiVersions", 4, ApiKeys=[{"ApiKey": 1, "MinVersion": 4, "MaxVersion": 18}])
    reply = framed(reply[4:-1] + b"\x01\x63\x02hi")
    assert host.server(reply) == reply


def test_a_server_that_does_not_know_the_version_of_apiversions(open_host: OpenHost) -> None:
    host = open_host("kafka", CONSUME)
    host.client(request("ApiVersions", 4))
    keys = [{"ApiKey": 18, "MinVersion": 0, "MaxVersion": 2}]
    reply = response("ApiVersions", 0, ErrorCode=35, ApiKeys=keys)
    assert host.server(reply) == reply


@pytest.mark.parametrize("tail", [b"", b"anything at all"])
def test_apiversions_of_a_version_that_we_do_not_know(open_host: OpenHost, tail: bytes) -> None:
    host = open_host("kafka", CONSUME)
    newer = framed(struct.pack(">hhih", 18, 9, 3, -1) + tail)
    heartbeat = request("Heartbeat", 4, 4)
    assert host.client(newer + heartbeat) == heartbeat
    correlation, answer = read_response("ApiVersions", 0, host.take(reply=True))
    assert (correlation, answer["ErrorCode"]) == (3, 35)
    assert answer["ApiKeys"] == [{"ApiKey": 18, "MinVersion": 0, "MaxVersion": 4}]


def test_the_old_sasl_handshake_is_refused(open_host: OpenHost) -> None:
    host = open_host("kafka")
    assert host.client(request("SaslHandshake", 0, Mechanism=b"PLAIN")) == b""
    assert read_response("SaslHandshake", 0, host.take(reply=True))[1]["ErrorCode"] == 35
    sent = request("SaslHandshake", 1, Mechanism=b"PLAIN")
    assert host.client(sent) == sent


@pytest.mark.parametrize(
    ("rules", "passes"),
    [(CONSUME, True), (BOTH, True), ([{"apiKey": "fetch"}], False)],
)
def test_producer_ids(open_host: OpenHost, rules: list[dict[str, str]], passes: bool) -> None:
    for version in range(7):
        host = open_host("kafka", rules)
        sent = request("InitProducerId", version, TransactionalId=None)
        assert host.client(sent) == (sent if passes else b"")
        sent = request("InitProducerId", version, TransactionalId=b"t", correlation=2)
        assert host.client(sent) == (sent if rules is BOTH else b"")


def test_without_rules_everything_passes(open_host: OpenHost) -> None:
    host = open_host("kafka")
    sent = fetch(12, b"a", b"b") + produce(13, ID) + fetch(17, OTHER_ID) + request("CreateAcls", 3)
    assert host.client(sent) == sent
    assert [kind for kind, _ in text_log(host)] == ["Request"] * 4


def test_denying_rules(open_host: OpenHost) -> None:
    host = open_host("kafka", [{}], deny=[{"topic": "secret"}, {"apiKey": "deletetopics"}])
    assert host.client(fetch(11, b"msgs", SessionEpoch=-1))
    assert host.client(request("Heartbeat", 0))
    host.server(response("Fetch", 11) + response("Heartbeat", 0))
    for refused in (
        fetch(11, b"msgs", b"secret", SessionEpoch=-1),
        request("OffsetFetch", 3, Topics=None),
        request("DeleteTopics", 4, TopicNames=[b"msgs"]),
    ):
        assert host.client(refused) == b""
        assert host.take(reply=True)
    host.client(request("Metadata", 1, Topics=None))
    topics = [{"Name": b"msgs"}, {"Name": b"secret"}]
    _, answer = read_response("Metadata", 1, host.server(response("Metadata", 1, Topics=topics)))
    assert [topic["Name"] for topic in answer["Topics"]] == [b"msgs"]


def test_a_policy_that_changes(open_host: OpenHost) -> None:
    host = open_host("kafka", CONSUME)
    assert host.client(fetch(4, b"msgs"))
    host.set_policy("kafka", [{"role": "produce"}])
    assert host.client(fetch(4, b"msgs", correlation=2)) == b""
    out = host.server(response("Fetch", 4))
    assert [c for c, _ in read_responses([("Fetch", 4)] * 2, out)] == [1, 2]


def test_a_request_that_says_the_same_again(open_host: OpenHost) -> None:
    """What is remembered of it holds for that topic, under that policy."""
    host = open_host("kafka", BOTH)
    for number in range(3):
        for records in (b"r", b"more"):
            sent = produce(9, b"msgs", correlation=number, records=records)
            assert host.client(sent + fetch(4, b"msgs")) == sent + fetch(4, b"msgs")
    assert host.client(produce(9, b"msgz")) == b""
    assert host.client(produce(9, b"msgs", b"x")) == b""
    host.set_policy("kafka", [{"role": "consume"}])
    assert host.client(produce(9, b"msgs")) == b""
    assert host.client(fetch(4, b"msgs")) == fetch(4, b"msgs")
    kinds = [kind for kind, fields in text_log(host) if fields["api"] == "Produce"]
    assert kinds == ["Request"] * 6 + ["Denied"] * 3


def test_a_request_that_says_the_same_but_ends_before(open_host: OpenHost) -> None:
    host = open_host("kafka", BOTH)
    sent = produce(9, b"msgs")
    assert host.client(sent) == sent
    short = struct.pack(">i", len(sent) - 40) + sent[4:]
    assert host.client(short + b"\0" * 5000) == b""
    assert host.closed
    assert "runs past the end" in text_log(host)[-1][1]["status"]


def test_a_topic_id_that_has_got_another_name() -> None:
    host = Host("kafka", BOTH)
    for number, name, passes in ((1, b"msgs", True), (3, b"secret", False)):
        host.client(request("Metadata", 12, number, Topics=None))
        host.server(response("Metadata", 12, number, Topics=[{"Name": name, "TopicId": ID}]))
        for _ in range(2):
            sent = produce(13, ID, correlation=number + 1)
            assert host.client(sent) == (sent if passes else b"")
            if passes:
                host.server(response("Produce", 13, number + 1))


CLOSING: list[tuple[str, bytes]] = [
    ("a negative length", struct.pack(">i", -1)),
    ("a length of nothing", struct.pack(">ihhi", 7, 0, 0, 0)),
    ("too long", struct.pack(">ihhi", (100 << 20) + 1, 0, 9, 0)),
    ("an unknown API", framed(struct.pack(">hhih", 999, 0, 0, -1))),
    ("an unknown version", framed(struct.pack(">hhih", 0, 14, 0, -1))),
    ("a negative version", framed(struct.pack(">hhih", 18, -1, 0, -1))),
    ("a client id that is too long", framed(struct.pack(">hhih", 1, 4, 0, 500) + b"x")),
    ("a negative client id", framed(struct.pack(">hhih", 1, 4, 0, -2) + b"x" * 40)),
    ("no client id", framed(struct.pack(">hhi", 1, 4, 0))),
    ("no body", framed(struct.pack(">hhih", 1, 4, 0, -1))),
    ("endless tags", framed(struct.pack(">hhih", 1, 12, 0, -1) + b"\xff\xff\xff\xff\x0f" * 20)),
    ("an endless varint", framed(struct.pack(">hhih", 1, 12, 0, -1) + b"\xff" * 20)),
    (
        "more topics than bytes",
        framed(struct.pack(">hhihiiiibi", 1, 4, 0, -1, 0, 0, 0, 0, 0, 1 << 30) + b"\0" * 9),
    ),
    ("a topic past the end", framed(fetch(4, b"msgs")[4:-22])),
    ("a header without end", struct.pack(">ihhih", 90 << 20, 1, 12, 0, -1) + b"\1\0\xff\xff\xff\7"),
]


@pytest.mark.parametrize("data", [data for _, data in CLOSING], ids=[name for name, _ in CLOSING])
def test_malformed_requests_close(open_host: OpenHost, data: bytes) -> None:
    host = open_host("kafka", CONSUME)
    heartbeat = request("Heartbeat", 4)
    out = host.client(heartbeat)
    out += _until_closed(host, data, reply=False)
    assert out == heartbeat
    assert text_log(host)[-1][0] == "Denied"
    assert text_log(host)[-1][1]["status"].startswith("Parser error: ")


def test_how_long_replies_take() -> None:
    host = Host("kafka", CONSUME)
    for number, moment in enumerate((100, 250)):
        host.connection.monotonic_ns = lambda moment=moment: moment
        host.client(fetch(11, b"msgs", correlation=number, SessionEpoch=-1))
        host.client(fetch(11, b"no", correlation=9, SessionEpoch=-1))
    host.connection.monotonic_ns = lambda: 1000
    host.server(response("Fetch", 11, 0) + response("Fetch", 11, 1))
    replies = [entry for entry in host.log if entry.entry_type.name == "Response"]
    assert [entry.latency for entry in replies] == [900, 750]


def tagged(tags: bytes, *, topic: bytes = b"msgs") -> bytes:
    """A Fetch of version 12 for `topic` and then msgs, with tagged fields in between."""
    sent = fetch(12, topic, b"msgs", SessionEpoch=-1)
    second = sent.index(b"\x05msgs", sent.index(bytes((len(topic) + 1,)) + topic) + 1)
    return framed(sent[4 : second - 1] + tags + sent[second:])


EMPTY_TAGS = b"\xa0\x8d\x06" + b"\x07\x00" * 100_000
HUGE_TAG = b"\x01\x07\xff\xff\xff\xff\x0f"


def test_tagged_fields_are_stepped_over(open_host: OpenHost) -> None:
    """However many there are: what is behind them is judged."""
    host = open_host("kafka", CONSUME)
    for tags in (b"\0", b"\1\x63\2hi", b"\2\x63\0\x64\3abc", EMPTY_TAGS):
        assert host.client(tagged(tags)) == tagged(tags)
    assert host.client(tagged(b"\1\x63\2hi", topic=b"x")) == b""
    assert not host.closed


@pytest.mark.parametrize("tags", [EMPTY_TAGS, HUGE_TAG, b"\xff\xff\xff\xff\x0f\x07\0"])
def test_endless_tagged_fields_of_a_denied_request_close(open_host: OpenHost, tags: bytes) -> None:
    host = open_host("kafka", CONSUME)
    assert _until_closed(host, tagged(tags, topic=b"secret"), reply=False) == b""
    assert text_log(host)[-1][1]["status"].startswith("Parser error: ")


def test_tagged_fields_that_run_past_the_end_close(open_host: OpenHost) -> None:
    host = open_host("kafka", CONSUME)
    assert _until_closed(host, tagged(HUGE_TAG), reply=False) == b""
    host = open_host("kafka", CONSUME)
    host.client(request("Metadata", 12, Topics=None))
    reply = response("Metadata", 12, Topics=[{"Name": b"msgs"}])
    assert host.server(framed(reply[4:8] + HUGE_TAG + reply[9:])) == b""
    assert host.closed


@pytest.mark.parametrize("codec", range(1, 5))
def test_records_are_not_opened(open_host: OpenHost, codec: int) -> None:
    """Compressed or not, with whatever checksum: they are the broker's to read, and no bomb
    goes off here."""
    host = open_host("kafka", BOTH)
    head = struct.pack(">qiiBIhi", 0, 1 << 30, 0, 2, 0xBAD, codec, 1 << 30)
    sent = produce(9, b"msgs", records=head + b"\xff" * 2000)
    assert host.client(sent) == sent
    assert host.client(produce(9, b"other", records=head + b"\xff" * 2000)) == b""
    assert not host.closed


def _until_closed(host: AnyHost, data: bytes, *, reply: bool) -> bytes:
    feed = host.server if reply else host.client
    out = feed(data)
    if not host.closed:
        out += feed(b"\0" * 5000)
    assert host.closed
    return out


REPLIES: list[tuple[str, bytes]] = [
    ("to another request", response("Fetch", 11, 2)),
    ("shorter than its header", struct.pack(">ii", 3, 1)),
    ("of a negative length", struct.pack(">ii", -5, 1)),
    ("two to one request", response("Fetch", 11, 1) * 2),
]


@pytest.mark.parametrize("data", [data for _, data in REPLIES], ids=[name for name, _ in REPLIES])
def test_malformed_replies_close(open_host: OpenHost, data: bytes) -> None:
    host = open_host("kafka", CONSUME)
    host.client(fetch(11, b"msgs", SessionEpoch=-1))
    host.server(data)
    if not host.closed:
        # What was decided before goes out first; a host of the C ABI hears of it then.
        host.server(b"\0")
    assert host.closed
    assert text_log(host)[-1][1]["status"].startswith("Parser error: ")


def test_a_reply_before_any_request_closes(open_host: OpenHost) -> None:
    host = open_host("kafka", CONSUME)
    host.server(b"\0")
    assert host.closed


@pytest.mark.parametrize("body", [b"\xff\xff\xff\xff", b"\0\0\0\1\0", b"\0\0\xff\xff\0\0\0\0" * 9])
def test_malformed_metadata_replies_close(open_host: OpenHost, body: bytes) -> None:
    host = open_host("kafka", CONSUME)
    host.client(request("Metadata", 1, Topics=None))
    assert host.server(framed(struct.pack(">i", 1) + body)) == b""
    assert host.closed


def test_a_request_that_ends_with_the_connection(open_host: OpenHost) -> None:
    host = open_host("kafka", CONSUME)
    assert host.client(fetch(4, b"msgs")[:-5], end=True) == b""
    assert text_log(host)[-1] == ("Denied", {"status": "the connection ends inside a request"})


@pytest.mark.parametrize("api", ["Metadata", "Fetch"])
def test_denials_that_pile_up_close(api: str) -> None:
    """A client that reads nothing and asks for much: what is owed to it is bounded."""
    host = Host("kafka", CONSUME)
    host.client(request("Heartbeat", 4))
    topics = [{"Name": b"secret-%d" % n, "Topic": b"secret-%d" % n} for n in range(10_000)]
    asking = request(api, 9 if api == "Metadata" else 4, Topics=topics)
    for _ in range(20):
        host.client(asking)
        if host.closed:
            break
    assert host.closed
    assert "wait for their turn" in str(host.log[-1].fields["status"])


def test_more_elements_than_anybody_needs_close() -> None:
    host = Host("kafka", CONSUME)
    host.client(produce(9, *[b"secret-%d" % n for n in range(15_000)]))
    assert host.closed
    assert "more than 20000 elements" in str(host.log[-1].fields["status"])


def test_more_requests_than_anybody_sends_close() -> None:
    host = Host("kafka", CONSUME)
    heartbeats = request("Heartbeat", 4) * 1000
    for _ in range(11):
        host.client(heartbeats)
    assert host.closed
    assert "requests wait for their replies" in str(host.log[-1].fields["status"])
