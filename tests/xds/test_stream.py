"""The protocol of one stream, without any I/O."""

from __future__ import annotations

import pytest

from proxylib.proto import discovery_pb2 as discovery
from xds.stream import MAX_NODE_ID, MAX_REASON, Snapshot, Stream, StreamError, StreamStatus

URL = "type.googleapis.com/cilium.NetworkPolicy"
ONE = Snapshot(URL, 1, (b"a", b"b"))
TWO = Snapshot(URL, 2, (b"c",))


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
    found = stream.status()
    assert found is not None
    return found


def subscribed() -> Stream:
    stream = Stream(URL)
    stream.receive(request())
    return stream


def test_nothing_before_the_subscription_and_before_anything_is_published() -> None:
    stream = Stream(URL)
    assert stream.respond(ONE) is None
    assert stream.status() is None
    stream.receive(request())
    assert stream.respond(Snapshot(URL)) is None


def test_ack() -> None:
    stream = subscribed()
    first = response(stream.respond(ONE))
    assert (first.version_info, first.type_url, first.nonce) == ("1", URL, "1")
    assert [(r.type_url, r.value) for r in first.resources] == [(URL, b"a"), (URL, b"b")]
    assert status(stream) == StreamStatus("n1", URL, sent_version=1)
    stream.receive(request("1", "1"))
    assert status(stream) == StreamStatus("n1", URL, sent_version=1, acked_version=1)
    assert stream.respond(ONE) is None
    assert response(stream.respond(TWO)).nonce == "2"


def test_nack_keeps_the_last_good_version_and_is_not_retried() -> None:
    stream = subscribed()
    stream.respond(ONE)
    stream.receive(request("1", "1"))
    stream.respond(TWO)
    stream.receive(request("2", "1", "bad rule"))
    assert status(stream) == StreamStatus("n1", URL, 2, 1, 2, "bad rule")
    assert stream.respond(TWO) is None
    assert stream.respond(Snapshot(URL, 3)) is not None
    stream.receive(request("3", "3"))
    assert status(stream) == StreamStatus("n1", URL, 3, 3)


def test_stale_and_made_up_nonces_say_nothing() -> None:
    stream = subscribed()
    stream.respond(ONE)
    stream.respond(TWO)
    for nonce in ("1", "", "3", "0", "-1", "02", "x" * 1000):
        stream.receive(request(nonce, "2"))
        stream.receive(request(nonce, "2", "no"))
        assert stream.respond(TWO) is None
    assert status(stream) == StreamStatus("n1", URL, sent_version=2)


def test_nonce_before_any_response_says_nothing() -> None:
    stream = subscribed()
    stream.receive(request("0"))
    stream.receive(request("", error="no"))
    assert status(stream) == StreamStatus("n1", URL)


def test_reconnecting_subscriber_gets_everything_whatever_it_says_to_have() -> None:
    stream = Stream(URL)
    stream.receive(request("7", "1"))
    assert response(stream.respond(ONE)).version_info == "1"
    assert status(stream).acked_version == 0


def test_reason_is_bounded_and_never_empty() -> None:
    stream = subscribed()
    stream.respond(ONE)
    stream.receive(request("1", "", "x" * (2 * MAX_REASON)))
    assert status(stream).reason == "x" * MAX_REASON
    stream.receive(request("1", "", ""))
    assert status(stream).reason == "no reason given"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xff\xff", "not a DiscoveryRequest"),
        (request(type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster"), "this stream"),
        (request(resource_names=["10.0.0.1"]), "only all resources"),
    ],
)
def test_nonsense_ends_the_stream(data: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        Stream(URL).receive(data)


def test_long_node_id() -> None:
    message = discovery.DiscoveryRequest(node=discovery.Node(id="n" * (MAX_NODE_ID + 1)))
    with pytest.raises(StreamError, match="node id is longer"):
        Stream(URL).receive(message.SerializeToString())


def test_type_url_may_be_left_out_and_the_wildcard_be_named() -> None:
    stream = Stream(URL)
    stream.receive(request(type_url="", resource_names=["*"]))
    assert stream.respond(ONE) is not None
