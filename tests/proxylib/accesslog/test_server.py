"""The receiving end, with real SEQPACKET clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxylib.accesslog import (
    MAX_CLIENTS,
    MAX_PACKET,
    REPORT_PROTO,
    AccessLog,
    AccessLogError,
    AccessLogServer,
    is_report,
)
from proxylib.proto.accesslog_pb2 import EntryType, L7LogEntry, LogEntry


def entry(number: int) -> LogEntry:
    return LogEntry(
        timestamp=number,
        entry_type=EntryType.Request,
        generic_l7=L7LogEntry(proto="r2d2", fields={"cmd": "READ", "file": str(number)}),
    )


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(str(path))
    return client


def read(server: AccessLogServer, count: int) -> list[LogEntry]:
    entries: list[LogEntry] = []
    for _ in range(10 * count + 100):
        entries += server.read(timeout=0 if len(entries) >= count else 1)
        if len(entries) >= count:
            break
    return entries


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.sock"


@pytest.fixture
def server(path: Path) -> Iterator[AccessLogServer]:
    with AccessLogServer(path) as server:
        yield server


def test_entries_of_several_clients_keep_their_order(server: AccessLogServer) -> None:
    clients = [connect(server.path) for _ in range(5)]
    for number in range(20):
        for index, client in enumerate(clients):
            client.send(entry(index * 1000 + number).SerializeToString())
    entries = read(server, 100)
    assert server.clients == 5
    for index in range(5):
        own = [e.timestamp % 1000 for e in entries if e.timestamp // 1000 == index]
        assert own == list(range(20))
    for client in clients:
        client.close()
    while server.clients:
        assert server.read(timeout=1) == []


def test_nothing_is_lost_while_the_consumer_keeps_up(server: AccessLogServer) -> None:
    total = 20_000
    client = connect(server.path)
    client.setblocking(False)
    received: list[int] = []
    sent = 0
    while len(received) < total:
        try:
            while sent < total:
                client.send(entry(sent).SerializeToString())
                sent += 1
        except BlockingIOError:
            pass
        received += [e.timestamp for e in server.read(timeout=1)]
    assert received == list(range(total))
    assert server.entries == total
    client.close()


def test_a_busy_client_does_not_starve_another(server: AccessLogServer) -> None:
    busy, quiet = connect(server.path), connect(server.path)
    while server.clients < 2:
        server.read(timeout=1)
    busy.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            busy.send(entry(0).SerializeToString())
    quiet.send(entry(7).SerializeToString())
    first: list[LogEntry] = []
    while not first:
        first = server.read(timeout=1)
    assert 7 in [e.timestamp for e in first]
    busy.close()
    quiet.close()


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"\xff\xff\xff", "packet of 3 bytes is not a cilium.LogEntry"),
        (b"\x0a" + bytes(MAX_PACKET), f"packet longer than {MAX_PACKET} bytes"),
        (bytes(MAX_PACKET), f"packet of {MAX_PACKET} bytes is not a cilium.LogEntry"),
    ],
)
def test_a_bad_packet_is_reported_and_the_rest_goes_on(
    server: AccessLogServer, packet: bytes, reason: str
) -> None:
    client = connect(server.path)
    client.send(packet)
    client.send(entry(1).SerializeToString())
    bad, good = read(server, 2)
    assert is_report(bad)
    assert bad.generic_l7.proto == REPORT_PROTO
    assert dict(bad.generic_l7.fields) == {"status": "undecodable", "reason": reason}
    assert good == entry(1)
    assert server.undecodable == 1
    client.close()


def test_too_many_clients_are_turned_away(server: AccessLogServer) -> None:
    clients = []
    for _ in range(MAX_CLIENTS):
        clients.append(connect(server.path))
        server.read(timeout=1)
    extra = connect(server.path)
    server.read(timeout=1)
    assert extra.recv(1) == b""
    assert server.clients == MAX_CLIENTS
    clients[0].send(entry(3).SerializeToString())
    assert read(server, 1) == [entry(3)]
    for client in [*clients, extra]:
        client.close()


def test_the_file_is_private_and_goes_with_the_server(path: Path) -> None:
    old = os.umask(0)
    try:
        with AccessLogServer(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not path.exists()
        with AccessLogServer(path, group=True):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
    finally:
        os.umask(old)


def test_a_stale_socket_file_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    assert path.exists()
    with AccessLogServer(path) as server:
        client = connect(path)
        client.send(entry(1).SerializeToString())
        assert read(server, 1) == [entry(1)]
        client.close()


def test_a_live_socket_is_refused_and_stays(server: AccessLogServer) -> None:
    with pytest.raises(AccessLogError, match="another program is reading the access log here"):
        AccessLogServer(server.path)
    client = connect(server.path)
    client.send(entry(1).SerializeToString())
    assert read(server, 1) == [entry(1)]
    client.close()


def test_a_live_socket_of_another_kind_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(str(path))
        stream.listen()
        with pytest.raises(AccessLogError, match="in use"):
            AccessLogServer(path)
    assert path.exists()


def test_other_bad_paths_are_refused_with_the_reason(tmp_path: Path) -> None:
    plain = tmp_path / "notes.txt"
    plain.write_text("keep me")
    with pytest.raises(AccessLogError, match=r"notes\.txt: is there and is not a socket"):
        AccessLogServer(plain)
    assert plain.read_text() == "keep me"
    with pytest.raises(AccessLogError, match="does not exist; create it first"):
        AccessLogServer(tmp_path / "no" / "log.sock")
    with pytest.raises(AccessLogError, match="longer than 107 bytes"):
        AccessLogServer(tmp_path / ("x" * 120))


def test_closing_does_not_remove_a_successors_file(path: Path) -> None:
    first = AccessLogServer(path)
    path.unlink()
    with AccessLogServer(path):
        first.close()
        assert path.exists()
    first.close()


def test_async_iteration(path: Path) -> None:
    async def story() -> list[int]:
        async with AccessLog(path) as log:
            client = connect(path)
            client.setblocking(False)
            loop = asyncio.get_running_loop()

            async def send() -> None:
                for number in range(1000):
                    await loop.sock_sendall(client, entry(number).SerializeToString())
                client.close()

            sender = asyncio.create_task(send())
            seen: list[int] = []
            async for item in log:
                seen.append(item.timestamp)
                if len(seen) == 1000:
                    break
            await sender
            return seen

    assert asyncio.run(asyncio.wait_for(story(), 20)) == list(range(1000))
    assert not path.exists()


def test_async_iteration_can_be_cancelled(path: Path) -> None:
    async def story() -> None:
        async with AccessLog(path) as log:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(log), 0.05)
            client = connect(path)
            client.send(entry(1).SerializeToString())
            assert await asyncio.wait_for(anext(log), 5) == entry(1)
            client.close()

    asyncio.run(story())
