"""The protocol of one stream, without any I/O: NPDS, as the library speaks it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxylib.proto import discovery_pb2 as discovery
from xds.stream import MAX_IGNORED, MAX_NODE_ID, NPDS, Stream
from xds.subscription import MAX_NAME, MAX_NAMES, MAX_REASON, StreamError, StreamStatus
from xds.world import Snapshot, World, resource

URL = "type.googleapis.com/cilium.NetworkPolicy"


def world(version: int, *bodies: bytes) -> World:
    items = {str(n): resource(str(n), body) for n, body in enumerate(bodies)}
    return World(version, {URL: Snapshot(URL, version, items)})


ONE = world(1, b"a", b"b")
TWO = world(2, b"c")
THREE = world(3, b"d")


def request(nonce: str = "", version: str = "", error: str | None = None, **more: object) -> bytes:
    message = discovery.DiscoveryRequest(
        node=discovery.Node(id="n1"), type_url=URL, response_nonce=nonce, version_info=version
    )
    if error is not None:
        message.error_detail.message = error
    for name, value in more.items():
        field = getattr(message, name)
        if isinstance(value, list):
            field.extend(value)
        else:
            setattr(message, name, value)
    return message.SerializeToString()


def response(data: bytes | None) -> discovery.DiscoveryResponse:
    assert data is not None
    return discovery.DiscoveryResponse.FromString(data)


def status(stream: Stream) -> StreamStatus:
    """Its only status, without what `test_pending` and `test_revision` look at."""
    (found,) = stream.statuses()
    return replace(found, pending_since=None, revision=0)


def subscribed() -> Stream:
    stream = Stream(NPDS)
    stream.receive(request())
    return stream


def test_nothing_before_the_subscription_and_before_anything_is_published() -> None:
    stream = Stream(NPDS)
    assert stream.respond(ONE) is None
    assert not stream.statuses()
    stream.receive(request())
    assert stream.respond(World()) is None


def test_ack() -> None:
    stream = subscribed()
    first = response(stream.respond(ONE))
    assert (first.type_url, first.nonce) == (URL, "1")
    assert [(r.type_url, r.value) for r in first.resources] == [(URL, b"a"), (URL, b"b")]
    assert status(stream) == StreamStatus("n1", URL, sent_version=1)
    stream.receive(request("1", first.version_info))
    assert status(stream) == StreamStatus("n1", URL, sent_version=1, acked_version=1)
    assert stream.respond(ONE) is None
    assert response(stream.respond(TWO)).nonce == "2"


def test_versions_are_those_of_the_content() -> None:
    first, second, third = (
        response(subscribed().respond(w)).version_info for w in (ONE, TWO, world(7, b"a", b"b"))
    )
    assert first == third != second


def test_nack_keeps_the_last_good_version_and_is_not_retried() -> None:
    stream = subscribed()
    stream.respond(ONE)
    stream.receive(request("1", "1"))
    stream.respond(TWO)
    answer = stream.receive(request("2", "1", "bad rule"))
    assert answer is not None
    assert (answer.version, answer.reason) == (2, "bad rule")
    assert status(stream) == StreamStatus("n1", URL, 2, 1, 2, "bad rule")
    assert stream.respond(TWO) is None
    assert stream.respond(world(3, b"c")) is None, "the same, whatever its number"
    assert stream.respond(world(4, b"d")) is not None
    stream.receive(request("3", "4"))
    assert status(stream) == StreamStatus("n1", URL, 4, 4)


def test_what_was_good_is_sent_again_after_a_refusal() -> None:
    stream = subscribed()
    stream.respond(ONE)
    stream.receive(request("1", "1"))
    stream.respond(TWO)
    stream.receive(request("2", "1", "bad rule"))
    back = world(3, b"a", b"b")
    assert [r.value for r in response(stream.respond(back)).resources] == [b"a", b"b"]
    stream.receive(request("3"))
    assert status(stream) == StreamStatus("n1", URL, 3, 3)


def test_stale_and_made_up_nonces_say_nothing() -> None:
    stream = subscribed()
    stream.respond(ONE)
    stream.respond(TWO)
    for nonce in ("1", "", "3", "0", "-1", "02", "x" * 1000):
        assert stream.receive(request(nonce, "2")) is None
        assert stream.receive(request(nonce, "2", "no")) is None
        assert stream.respond(TWO) is None
    assert status(stream) == StreamStatus("n1", URL, sent_version=2)


def test_an_answer_counts_once() -> None:
    stream = subscribed()
    stream.respond(ONE)
    stream.receive(request("1"))
    assert stream.receive(request("1", error="changed my mind")) is None
    assert status(stream) == StreamStatus("n1", URL, 1, 1)


def test_nonce_before_any_response_says_nothing() -> None:
    stream = subscribed()
    stream.receive(request("0"))
    stream.receive(request("", error="no"))
    assert status(stream) == StreamStatus("n1", URL)


def test_reconnecting_subscriber_gets_what_it_does_not_have() -> None:
    stream = Stream(NPDS)
    stream.receive(request("7", "1"))
    assert stream.respond(ONE) is not None
    assert status(stream).acked_version == 0
    has_it = Stream(NPDS)
    has_it.receive(request("", ONE.of(URL).content_version))
    assert has_it.respond(ONE) is None
    assert status(has_it) == StreamStatus("n1", URL, 1, 1)
    assert has_it.respond(TWO) is not None


def test_pending() -> None:
    now = 1000.0
    stream = Stream(NPDS, clock=lambda: now)
    stream.receive(request())
    stream.respond(ONE)
    now = 1005.0
    stream.respond(TWO)
    (found,) = stream.statuses()
    assert found.pending_since == 1000.0, "since the first that it left unanswered"
    stream.receive(request("2"))
    (found,) = stream.statuses()
    assert found.pending_since is None


def test_revision() -> None:
    def revision() -> int:
        while stream.respond(current) is not None:
            pass
        return stream.statuses()[0].revision

    stream, current = subscribed(), ONE
    assert revision() == 0
    stream.receive(request("1"))
    assert revision() == 1
    current = World(5, ONE.snapshots)
    assert revision() == 5, "nothing of it concerns this subscriber"
    current = TWO = World(6, world(2, b"c").snapshots)
    assert revision() == 5
    stream.receive(request("2", error="no"))
    assert revision() == 5
    current = World(7, TWO.snapshots)
    assert revision() == 5, "what it refused is not in force by waiting"
    current = World(8, world(3, b"d").snapshots)
    assert revision() == 5
    stream.receive(request("3"))
    assert revision() == 8


def test_reason_is_bounded_and_never_empty() -> None:
    stream = subscribed()
    stream.respond(ONE)
    stream.receive(request("1", "", "x" * (2 * MAX_REASON)))
    assert status(stream).reason == "x" * MAX_REASON
    stream.respond(TWO)
    stream.receive(request("2", "", ""))
    assert status(stream).reason == "no reason given"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xff\xff", "not a DiscoveryRequest"),
        (request(type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster"), "this stream"),
        (request(resource_names=["x" * (MAX_NAME + 1)]), "name is longer"),
        (request(resource_names=[f"n{n}" for n in range(MAX_NAMES + 1)]), "are named"),
    ],
    ids=["garbage", "type", "name", "names"],
)
def test_nonsense_ends_the_stream(data: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        Stream(NPDS).receive(data)


def test_long_node_id() -> None:
    message = discovery.DiscoveryRequest(node=discovery.Node(id="n" * (MAX_NODE_ID + 1)))
    with pytest.raises(StreamError, match="node id is longer"):
        Stream(NPDS).receive(message.SerializeToString())


def test_type_url_may_be_left_out_and_the_wildcard_be_named() -> None:
    stream = Stream(NPDS)
    stream.receive(request(type_url="", resource_names=["*"]))
    assert stream.respond(ONE) is not None


def test_ignored_types_are_bounded() -> None:
    from xds.stream import ADS

    stream = Stream(ADS)
    for n in range(MAX_IGNORED):
        assert stream.receive(request(type_url=f"type.googleapis.com/T{n}")) is None
        stream.receive(request(type_url="type.googleapis.com/T0"))
    assert not stream.statuses()
    with pytest.raises(StreamError, match="too many types"):
        stream.receive(request(type_url="type.googleapis.com/one-more"))
    with pytest.raises(StreamError, match="must name its type_url"):
        Stream(ADS).receive(request(type_url=""))
