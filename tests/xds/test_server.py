"""The gRPC server on its Unix socket, with real clients."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from proxylib.errors import ConfigError
from proxylib.npds import HOSTS_TYPE, POLICY_TYPE
from tests.xds.client import Subscriber
from xds import server as server_module
from xds.ads.types import CLUSTER
from xds.listening import check_socket
from xds.pace import Pace
from xds.server import DiscoveryServer
from xds.subscription import StreamStatus
from xds.world import Resource, resource, version_of


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "xds.sock"


@pytest.fixture
def server(path: Path) -> Iterator[DiscoveryServer]:
    server = DiscoveryServer(path)
    server.start()
    yield server
    server.stop()


def settle(server: DiscoveryServer, *expected: StreamStatus) -> None:
    """Wait until the server sees exactly these subscribers."""
    server.wait_until(lambda streams, _: brief(streams) == list(expected), 5)
    assert brief(server.streams()) == list(expected)


def brief(streams: list[StreamStatus]) -> list[StreamStatus]:
    """Without times, and without the revisions that `test_wait` looks at."""
    return [replace(status, pending_since=None, revision=0) for status in streams]


def version(*bodies: bytes) -> str:
    """What subscribers are told as the version of these resources."""
    return version_of(resource(str(n), body) for n, body in enumerate(bodies))


def test_ack_nack_and_push(server: DiscoveryServer, path: Path) -> None:
    with Subscriber(path) as client:
        client.send()
        settle(server, StreamStatus("n1", POLICY_TYPE))
        assert server.publish({POLICY_TYPE: [b"one"]})
        first = client.receive()
        assert (first.version_info, [r.value for r in first.resources]) == (
            version(b"one"),
            [b"one"],
        )
        client.ack(first)
        settle(server, StreamStatus("n1", POLICY_TYPE, 1, 1))

        assert not server.publish({POLICY_TYPE: [b"one"]}), "nothing is new"
        assert server.publish({POLICY_TYPE: [b"two"]})
        second = client.receive()
        assert second.version_info == version(b"two")
        client.send(second.nonce, "1", "no good")
        settle(server, StreamStatus("n1", POLICY_TYPE, 2, 1, 2, "no good"))

        server.publish({POLICY_TYPE: [b"three"]})
        third = client.receive()
        assert third.version_info == version(b"three"), "and not the refused one again"
        client.ack(third)
        settle(server, StreamStatus("n1", POLICY_TYPE, 3, 3))


def test_types_have_versions_of_their_own(server: DiscoveryServer, path: Path) -> None:
    server.publish({POLICY_TYPE: [b"p"], HOSTS_TYPE: [b"h"]})
    server.publish({POLICY_TYPE: [b"q"], HOSTS_TYPE: [b"h"]})
    assert server.versions() == {POLICY_TYPE: 2, HOSTS_TYPE: 1}
    with Subscriber(path, POLICY_TYPE) as policies, Subscriber(path, HOSTS_TYPE) as hosts:
        assert policies.subscribe().version_info == version(b"q")
        response = hosts.subscribe()
        assert (response.version_info, response.type_url) == (version(b"h"), HOSTS_TYPE)
        assert [resource.value for resource in response.resources] == [b"h"]


def test_an_empty_world_is_sent_too(server: DiscoveryServer, path: Path) -> None:
    server.publish({POLICY_TYPE: []})
    with Subscriber(path) as client:
        assert list(client.subscribe().resources) == []


def test_large_state(server: DiscoveryServer, path: Path) -> None:
    big = [bytes([n]) * 100_000 for n in range(30)]
    server.publish({POLICY_TYPE: big})
    with Subscriber(path) as client:
        assert [resource.value for resource in client.subscribe().resources] == big


def test_reconnect(server: DiscoveryServer, path: Path) -> None:
    server.publish({POLICY_TYPE: [b"one"]})
    with Subscriber(path) as client:
        client.ack(client.subscribe())
        settle(server, StreamStatus("n1", POLICY_TYPE, 1, 1))
    settle(server, StreamStatus("n1", POLICY_TYPE, 1, 1, connected=False))
    with Subscriber(path) as again:
        again.send("1", "1")
        again.ack(again.receive())
        settle(server, StreamStatus("n1", POLICY_TYPE, 1, 1))


def test_half_close_ends_the_stream(server: DiscoveryServer, path: Path) -> None:
    with Subscriber(path) as client:
        client.send()
        settle(server, StreamStatus("n1", POLICY_TYPE))
        client.raw(None)  # type: ignore[arg-type]
        assert client.end() == (grpc.StatusCode.OK, "")


def test_only_so_many_of_the_gone_are_remembered(
    server: DiscoveryServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_GONE", 2)
    for node in "abc":
        with Subscriber(path, node=node) as client:
            client.send()
            server.wait_until(lambda streams, _: any(s.connected for s in streams), 5)
        server.wait_until(lambda streams, _: not any(s.connected for s in streams), 5)
    assert [status.node_id for status in server.streams()] == ["b", "c"]


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x22\x03foo"])
def test_nonsense_ends_only_its_stream(server: DiscoveryServer, path: Path, data: bytes) -> None:
    server.publish({POLICY_TYPE: [b"one"]})
    with Subscriber(path) as good, Subscriber(path, node="bad") as bad:
        good.ack(good.subscribe())
        bad.raw(data)
        code, _ = bad.end()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        server.publish({POLICY_TYPE: [b"two"]})
        assert good.receive().version_info == version(b"two")


def test_oversized_request(server: DiscoveryServer, path: Path) -> None:
    with Subscriber(path) as client:
        client.raw(b"x" * (server_module.MAX_REQUEST + 1))
        code, _ = client.end()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_unknown_method(server: DiscoveryServer, path: Path) -> None:
    with Subscriber(path, method="/envoy.service.discovery.v3.AggregatedDiscovery/X") as client:
        client.send()
        code, _ = client.end()
        assert code is grpc.StatusCode.UNIMPLEMENTED


def test_streams_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_STREAMS", 2)
    server = DiscoveryServer(path)
    server.start()
    try:
        server.publish({POLICY_TYPE: []})
        with Subscriber(path, node="a") as a, Subscriber(path, node="b") as b:
            a.subscribe()
            b.subscribe()
            with Subscriber(path, node="c") as c:
                c.send()
                code, _ = c.end()
                assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        server.stop()


def test_client_that_never_reads_holds_nobody_up(server: DiscoveryServer, path: Path) -> None:
    with Subscriber(path, node="lazy") as lazy, Subscriber(path, node="good") as good:
        lazy.send()
        good.send()
        for n in range(1, 30):
            server.publish({POLICY_TYPE: [bytes([n]) * 1_000_000]})
            good.ack(good.receive())
        assert server.wait_until(
            lambda streams, versions: any(
                s.node_id == "good" and s.acked_version == versions[POLICY_TYPE] for s in streams
            ),
            5,
        )


def test_stop_ends_streams_at_once_and_start_again_works(path: Path) -> None:
    server = DiscoveryServer(path)
    server.start()
    with Subscriber(path) as client:
        client.send()
        settle(server, StreamStatus("n1", POLICY_TYPE))
        before = time.monotonic()
        server.stop()
        code, _ = client.end()
        assert time.monotonic() - before < 2
        assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert not path.exists()
    server.stop()
    server.publish({POLICY_TYPE: [b"one"]})
    server.start()
    with Subscriber(path) as client:
        assert client.subscribe().version_info
    server.stop()
    assert not [t for t in threading.enumerate() if t.name == "xds"]


def test_started_twice(server: DiscoveryServer) -> None:
    with pytest.raises(ConfigError, match="running already"):
        server.start()


def test_socket_permissions(short_path: Path) -> None:
    for mode in (0o600, 0o660):
        path = short_path / f"{mode}.sock"
        server = DiscoveryServer(path, mode=mode)
        server.start()
        try:
            assert stat.S_IMODE(path.stat().st_mode) == mode
        finally:
            server.stop()


def test_live_socket_is_refused_and_stays(server: DiscoveryServer, path: Path) -> None:
    other = DiscoveryServer(path)
    with pytest.raises(ConfigError, match="another server listens there"):
        other.start()
    other.stop()
    server.publish({POLICY_TYPE: []})
    with Subscriber(path) as client:
        assert client.subscribe().version_info


def test_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        stale.listen()
    assert path.is_socket()
    server = DiscoveryServer(path)
    server.start()
    server.stop()


def test_what_is_no_socket_is_left_alone(short_path: Path) -> None:
    file = short_path / "file"
    file.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket"):
        check_socket(file)
    link = short_path / "link"
    os.symlink(file, link)
    with pytest.raises(ConfigError, match="is not a socket"):
        check_socket(link)
    assert file.read_text() == "precious"


def test_unusable_paths(short_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 107 bytes"):
        check_socket(short_path / ("x" * 108))
    with pytest.raises(ConfigError, match="does not exist"):
        check_socket(short_path / "none" / "s")


def test_directory_that_cannot_be_written(path: Path) -> None:
    server = DiscoveryServer(Path("/proc/xds.sock"))
    with pytest.raises(ConfigError, match=r"/proc/xds\.sock: cannot listen there"):
        server.start()
    server.stop()


def test_nothing_but_the_socket_is_left(server: DiscoveryServer, path: Path) -> None:
    assert list(path.parent.iterdir()) == [path]


def test_socket_that_another_server_has_taken_is_not_removed(path: Path) -> None:
    first, second = DiscoveryServer(path), DiscoveryServer(path)
    first.start()
    path.unlink()
    second.start()
    first.stop()
    try:
        assert path.is_socket()
    finally:
        second.stop()


@pytest.mark.parametrize("name", ["with space", "per%20cent", "qu?ery#x", "ünïcode"])
def test_paths_with_unusual_names(short_path: Path, name: str) -> None:
    path = short_path / name
    server = DiscoveryServer(path)
    server.start()
    try:
        assert path.is_socket()
        server.publish({POLICY_TYPE: []})
        with Subscriber(path) as client:
            assert client.subscribe().version_info
    finally:
        server.stop()


# -- ADS, waiting, and peers that misbehave --------------------------------------------------

STREAM_ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"


def ads(path: Path, url: str = CLUSTER, **options: str) -> Subscriber:
    return Subscriber(path, url, method=STREAM_ADS, **options)


def named(*bodies: bytes) -> dict[str, Resource]:
    return {body.decode(): resource(body.decode(), body) for body in bodies}


def test_ads_and_npds_are_served_side_by_side(server: DiscoveryServer, path: Path) -> None:
    server.publish({POLICY_TYPE: [b"policy"], CLUSTER: named(b"a", b"b")})
    with Subscriber(path) as library, ads(path, node="envoy") as envoy:
        assert [r.value for r in library.subscribe().resources] == [b"policy"]
        response = envoy.subscribe()
        assert [(r.type_url, r.value) for r in response.resources] == [
            (CLUSTER, b"a"),
            (CLUSTER, b"b"),
        ]
        assert not server.wait(1, 0.05), "neither has answered"
        envoy.ack(response)
        assert not server.wait(1, 0.05), "the library has not answered"


def test_wait(server: DiscoveryServer, path: Path) -> None:
    assert server.wait(0, 0), "nobody is there, and nothing is published"
    assert not server.wait(0, 0.01, types=[POLICY_TYPE])
    server.publish({POLICY_TYPE: [b"one"], CLUSTER: named(b"a")})
    assert server.revision == 1
    with Subscriber(path) as library, ads(path, node="envoy") as envoy:
        library.ack(library.subscribe())
        envoy.ack(envoy.subscribe())
        assert server.wait(1, 5, types=[POLICY_TYPE, CLUSTER])
        server.publish({CLUSTER: named(b"b")})
        assert not server.wait(2, 0.05)
        refused = envoy.receive()
        envoy.send(refused.nonce, error="cluster b: no good")
        settled = server.wait_until(lambda streams, _: any(s.reason for s in streams), 5)
        assert settled
        assert not server.wait(2, 0.05)
        assert server.wait(1, 0)
        (status,) = (s for s in server.streams() if s.reason)
        assert (status.node_id, status.type_url, status.refused) == ("envoy", CLUSTER, ("b",))
        server.publish({CLUSTER: named(b"c")}, revision=7)
        envoy.ack(envoy.receive())
        assert server.wait(7, 5)
    with pytest.raises(ValueError, match="revision 6 after revision 7"):
        server.publish({}, revision=6)


def test_wait_async(server: DiscoveryServer, path: Path) -> None:
    async def waiting(client: Subscriber) -> list[bool]:
        """Many at once, and one that gives up; then the answer that they wait for."""
        tries = [asyncio.create_task(server.wait_async(1, 10)) for _ in range(50)]
        early = await server.wait_async(1, 0.01)
        await asyncio.to_thread(lambda: client.ack(client.receive()))
        return [early, *await asyncio.gather(*tries)]

    server.publish({POLICY_TYPE: [b"one"]})
    with Subscriber(path) as client:
        client.send()
        settle(server, StreamStatus("n1", POLICY_TYPE, 1))
        assert asyncio.run(waiting(client)) == [False] + [True] * 50


def test_tcp(path: Path) -> None:
    server = DiscoveryServer(path, tcp="127.0.0.1:0")
    server.start()
    try:
        server.publish({CLUSTER: named(b"a")})
        assert server.tcp_port
        with ads(path, target=f"127.0.0.1:{server.tcp_port}") as client:
            assert [r.value for r in client.subscribe().resources] == [b"a"]
        other = DiscoveryServer(path.with_name("other"), tcp=f"127.0.0.1:{server.tcp_port}")
        with pytest.raises(ConfigError, match="cannot listen there"):
            other.start()
        assert not path.with_name("other").exists()
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("address", "message"),
    [("0.0.0.0:0", "anybody could connect"), ("localhost:0", "numeric"), ("7", "numeric")],
)
def test_tcp_only_where_nobody_else_can_connect(path: Path, address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiscoveryServer(path, tcp=address).start()
    assert not path.exists()


def test_socket_s_group(path: Path) -> None:
    group = os.getgroups()[-1] if os.getgroups() else os.getgid()
    server = DiscoveryServer(path, mode=0o660, group=group)
    server.start()
    try:
        assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (group, 0o660)
    finally:
        server.stop()


def test_flood_is_slowed_down_and_harms_nobody(
    server: DiscoveryServer,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_BURST", 20)
    server.publish({POLICY_TYPE: [b"one"]})
    with Subscriber(path, node="flood") as flood, Subscriber(path, node="good") as good:
        for number in range(2000):
            flood.send(nonce=f"made up {number}")
        good.ack(good.subscribe())
        assert server.wait_until(
            lambda streams, _: any(s.node_id == "good" and s.acked_version for s in streams), 5
        )
        assert eventually(lambda: "too many requests" in caplog.text)
    assert caplog.text.count("too many requests") == 1


def test_refusals_are_events_and_events_are_bounded(
    server: DiscoveryServer,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server._events = Pace(0.001, 3)
    with Subscriber(path, node="bad\nnode") as client:
        client.send()
        for number in range(1, 10):
            server.publish({POLICY_TYPE: [b"%d" % number]})
            client.send(client.receive().nonce, error=f"refused\n{number}")
            assert eventually(lambda n=number: server.streams()[0].nacked_version == n)
    events = [record.getMessage() for record in caplog.records]
    assert events == [
        f"node 'bad\\nnode': refuses NPDS version {n}: refused {n}" for n in (1, 2, 3)
    ]


def test_unanswered_responses_are_an_event(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "ANSWER_TIMEOUT", 0.1)
    server = DiscoveryServer(path)
    server.start()
    try:
        server.publish({CLUSTER: named(b"a")})
        with ads(path, node="silent") as client:
            client.subscribe()
            assert eventually(lambda: bool(caplog.records))
            (status,) = server.streams()
            assert status.pending_since is not None
            assert time.time() - status.pending_since > 0.1
            assert eventually(lambda: not server.wait(1, 0.3))
        messages = [record.getMessage() for record in caplog.records]
        assert messages == ["node 'silent': CDS sent and not answered"], "said once"
    finally:
        server.stop()


def test_types_that_are_not_served_are_left_unanswered(
    server: DiscoveryServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.publish({CLUSTER: named(b"a")})
    with ads(path, "type.googleapis.com/envoy.service.runtime.v3.Runtime") as client:
        client.send()
        client.url = CLUSTER
        assert client.subscribe().type_url == CLUSTER
    assert "asks for a type not served here" in caplog.text


def eventually(check: Callable[[], bool], timeout: float = 10) -> bool:
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
