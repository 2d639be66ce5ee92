"""The gRPC server on its Unix socket, with real clients."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proxylib.errors import ConfigError
from proxylib.npds import HOSTS_TYPE, POLICY_TYPE
from tests.xds.client import Subscriber
from xds import server as server_module
from xds.server import DiscoveryServer, check_socket
from xds.stream import StreamStatus


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
    server.wait(lambda streams, _: streams == list(expected), 5)
    assert server.streams() == list(expected)


def test_ack_nack_and_push(server: DiscoveryServer, path: Path) -> None:
    with Subscriber(path) as client:
        client.send()
        settle(server, StreamStatus("n1", POLICY_TYPE))
        assert server.publish({POLICY_TYPE: [b"one"]})
        first = client.receive()
        assert (first.version_info, [r.value for r in first.resources]) == ("1", [b"one"])
        client.ack(first)
        settle(server, StreamStatus("n1", POLICY_TYPE, 1, 1))

        assert not server.publish({POLICY_TYPE: [b"one"]}), "nothing is new"
        assert server.publish({POLICY_TYPE: [b"two"]})
        second = client.receive()
        assert second.version_info == "2"
        client.send(second.nonce, "1", "no good")
        settle(server, StreamStatus("n1", POLICY_TYPE, 2, 1, 2, "no good"))

        server.publish({POLICY_TYPE: [b"three"]})
        third = client.receive()
        assert third.version_info == "3", "and not the refused one again"
        client.ack(third)
        settle(server, StreamStatus("n1", POLICY_TYPE, 3, 3))


def test_types_have_versions_of_their_own(server: DiscoveryServer, path: Path) -> None:
    server.publish({POLICY_TYPE: [b"p"], HOSTS_TYPE: [b"h"]})
    server.publish({POLICY_TYPE: [b"q"], HOSTS_TYPE: [b"h"]})
    assert server.versions() == {POLICY_TYPE: 2, HOSTS_TYPE: 1}
    with Subscriber(path, POLICY_TYPE) as policies, Subscriber(path, HOSTS_TYPE) as hosts:
        assert policies.subscribe().version_info == "2"
        response = hosts.subscribe()
        assert (response.version_info, response.type_url) == ("1", HOSTS_TYPE)
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
            server.wait(lambda streams, _: any(s.connected for s in streams), 5)
        server.wait(lambda streams, _: not any(s.connected for s in streams), 5)
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
        assert good.receive().version_info == "2"


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
        assert server.wait(
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
        assert client.subscribe().version_info == "1"
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
        assert client.subscribe().version_info == "1"


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
            assert client.subscribe().version_info == "1"
    finally:
        server.stop()
