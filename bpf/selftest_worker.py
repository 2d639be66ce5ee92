"""Run as a program of its own: the checks of acceleration's self-test, on loopback sockets.

``python -m bpf.selftest_worker CACHE CGROUP`` moves itself into the cgroup and a new network
namespace, loads the programs for that cgroup only, and prints a `selftest.SelfTest` as JSON.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import random
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bpf.errors import BpfError
from bpf.netns import CLONE_NEWNET
from bpf.selftest import Check, SelfTest, encoded
from bpf.sockmap import Counts, Sockmap, SockmapConfig

HOST = "127.0.0.1"
SILENT = 10.0
"""Seconds without anything happening that are a hang, also on a machine with other work to do."""

ROUNDS, FEW = 100, 20
STREAM = 8 << 20
CAP = 16 << 20
"""Bytes that may wait for a slow reader, in both sockets' buffers. TCP's own come to about half
of it with the kernel's defaults."""

MESSAGES = 4096
"""Messages that may wait: each takes about a KiB of the kernel's memory, however small it is."""

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_SO_MEMINFO = 55


class Hang(Exception):
    """Nothing happened for `SILENT` seconds."""


def main(cache: str, cgroup: str) -> None:
    """Move, load, check, print."""
    Path(cgroup, "cgroup.procs").write_text(str(os.getpid()))
    _own_namespace()
    with Sockmap.open(SockmapConfig(None, Path(cache), Path(cgroup))) as sockmap:
        sockmap.join([HOST])
        print(encoded(SelfTest(tuple(_judged(name, sockmap) for name in CHECKS))))


def _judged(name: str, sockmap: Sockmap) -> Check:
    check, required = CHECKS[name]
    try:
        ok, sentence = check(sockmap)
    except Hang:
        ok, sentence = False, f"The check of {name} hung."
    except OSError as error:
        ok, sentence = False, f"The check of {name} failed: {error}."
    return Check(name, ok, sentence, required)


def _own_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise BpfError(f"a network namespace cannot be made: {os.strerror(ctypes.get_errno())}")
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", _IFF_UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


def order(sockmap: Sockmap) -> tuple[bool, str]:
    """A stream whose way changes all the time: by the switch, by policy, by a reader that is
    slow now and then."""
    before, chance = sockmap.counts(), random.Random(1)
    data = memoryview(chance.randbytes(STREAM))
    client, server = _pair()
    with client, server:
        sent, got, digest = 0, 0, hashlib.blake2b()
        last = time.monotonic()
        while got < len(data):
            turn = chance.random()
            if turn < 0.02:
                sockmap.switch(turn < 0.016)
            elif turn < 0.025:
                sockmap.bump()
            moved = 0
            largest = chance.choice((100, 5_000, 90_000))
            for _ in range(chance.randrange(1, 12)):
                at = sent + moved
                with suppress(BlockingIOError):
                    moved += client.send(data[at : at + chance.randrange(1, largest)])
            sent += moved
            for _ in range(chance.choice((0, 1, 4, 40))):
                with suppress(BlockingIOError):
                    part = server.recv(chance.randrange(1, 100_000))
                    digest.update(part)
                    got += len(part)
                    moved += len(part)
            last = time.monotonic() if moved else last
            if time.monotonic() > last + SILENT:
                raise Hang
        sockmap.switch(True)
    after = sockmap.counts()
    if digest.digest() != hashlib.blake2b(data).digest():
        return False, "Bytes change their order when a connection's way changes."
    direct, wire = after.messages - before.messages, _wire(after) - _wire(before)
    if not direct or not wire:
        return False, f"A connection did not change its way: {direct} messages direct, {wire} not."
    return True, f"A stream kept its order over {direct} messages past TCP and {wire} by it."


def handshake(sockmap: Sockmap) -> tuple[bool, str]:
    """The client sends while the server's socket is not there yet. TCP_DEFER_ACCEPT drops the
    handshake's last ACK at the server, which is what a lost one comes to."""
    wrong = 0
    with _listener(defer=True) as listener:
        for _ in range(ROUNDS):
            with _client(listener) as client:
                parts = [b"%06d;" % n for n in range(40)]
                client.send(parts[0])
                with _accepted(listener) as server:
                    for part in parts[1:]:
                        client.send(part)
                    client.shutdown(socket.SHUT_WR)
                    wrong += _all_of(server) != b"".join(parts)
    if wrong:
        return False, f"After a lost ACK of the handshake, {wrong} of {ROUNDS} streams were wrong."
    return True, f"{ROUNDS} connections whose handshake lost its last ACK kept their order."


def half_close(sockmap: Sockmap) -> tuple[bool, str]:
    """An event-driven request, its end, and the answer after it."""
    wrong = 0
    for n in range(ROUNDS):
        client, server = _pair()
        with client, server:
            for _ in range(4):
                _send_all(client, b"q" * 500)
                _read(server, 500)
            client.shutdown(socket.SHUT_WR)
            wrong += _all_of(server) != b""
            _send_all(server, b"a" * 1000 * (n + 1))
            server.shutdown(socket.SHUT_WR)
            wrong += len(_all_of(client)) != 1000 * (n + 1)
    if wrong:
        return False, f"{wrong} of {ROUNDS} event-driven exchanges with a half-close were wrong."
    return True, f"{ROUNDS} event-driven exchanges with a half-close ended as they should."


def blocking(sockmap: Sockmap) -> tuple[bool, str]:
    """Programs that block in recv, on both sides: they must be left alone."""
    before = sockmap.counts()
    with socket.create_server((HOST, 0)) as listener:
        failures = _blocking_exchanges(listener)
    after = sockmap.counts()
    if failures:
        return False, (
            f"{failures} of {ROUNDS} exchanges of programs that block in recv() failed: "
            "they are not told from event-driven ones."
        )
    if after.messages != before.messages or after.sockets != before.sockets:
        return False, "Sockets of programs that block were accelerated."
    return True, (
        f"Programs that block keep plain TCP: {ROUNDS} exchanges with a half-close were right."
    )


def accepted(sockmap: Sockmap) -> tuple[bool, str]:
    """A blocking socket from a non-blocking listener, which cannot be told when it is made: it
    sends, half-closes, and the acknowledgement of that wakes its recv()."""
    answer = b"a" * 300_000
    surprised: list[BlockingIOError] = []

    def serve() -> None:
        for _ in range(FEW):
            with _accepted(listener) as server:
                server.setblocking(True)
                server.recv(1)
                server.sendall(answer)
                server.shutdown(socket.SHUT_WR)
                try:
                    server.recv(1)
                except BlockingIOError as error:
                    surprised.append(error)

    with _listener() as listener:
        server = threading.Thread(target=serve, daemon=True)
        server.start()
        for _ in range(FEW):
            with _client(listener, receive=8192) as client:
                _send_all(client, b"?")
                for part in (260_000, 40_000):
                    _read(client, part)
                    time.sleep(0.005)
        server.join(SILENT)
    if surprised:
        return False, (
            "A server that accepts from a non-blocking listener, and then half-closes and blocks "
            f"in recv(), may be told EAGAIN there (here {len(surprised)} times of {FEW})."
        )
    return True, "Blocking sockets of a non-blocking listener were right, too."


def splice(sockmap: Sockmap) -> tuple[bool, str]:
    """A reader that moves its bytes with splice(2): it sees only what came by the wire."""
    wrong = 0
    out, into = os.pipe2(os.O_NONBLOCK)
    for _ in range(10):
        client, server = _pair()
        with client, server:
            for n in range(20):
                word = b"%06d" % n * 100
                _send_all(client, word)
                _wait([server], [])
                try:
                    os.splice(server.fileno(), into, 1 << 16)
                    wrong += os.read(out, 1 << 16) != word
                except BlockingIOError:
                    wrong += 1
    os.close(out)
    os.close(into)
    if wrong:
        return False, "A program that reads with splice(2) gets other bytes than were sent."
    return True, "A program that reads with splice(2) from the first byte on keeps plain TCP."


def memory(sockmap: Sockmap) -> tuple[bool, str]:
    """A reader that sleeps: what waits for it is bounded, and nothing of it is lost."""
    before = sockmap.counts().messages
    small, _ = _piled_up(b"s", 20_000)
    messages = sockmap.counts().messages - before
    large, held = _piled_up(b"l" * 65536, 2 * CAP >> 16)
    if small < 0 or large < 0:
        return False, "A slow reader got other bytes than were sent."
    if large > CAP or messages > MESSAGES:
        return False, (
            f"A reader that sleeps does not stop its sender: {large >> 20} MiB "
            f"or {messages} messages waited."
        )
    return True, (
        f"A reader that sleeps stops its sender after {large / (1 << 20):.1f} MiB "
        f"({held / (1 << 20):.1f} MiB of it in its socket)."
    )


def _piled_up(block: bytes, most: int) -> tuple[int, int]:
    """Send up to `most` blocks to a reader that sleeps: how many bytes its sender gets rid of
    (-1: that is not what it reads in the end), and how many of them are in its socket."""
    client, server = _pair()
    with client, server:
        for _ in range(20):  # until the connection is past TCP
            _send_all(client, b"x" * 1000)
            _read(server, 1000)
        sent, held = 0, 0
        while sent < most * len(block) and select.select([], [client], [], 0.3)[1]:
            with suppress(BlockingIOError):
                sent += client.send(block)
            held = max(held, _held(server))
        client.shutdown(socket.SHUT_WR)
        right = _all_of(server) == block[:1] * sent
    return (sent if right else -1), held


CHECKS: dict[str, tuple[Callable[[Sockmap], tuple[bool, str]], bool]] = {
    "order": (order, True),
    "handshake": (handshake, True),
    "half-close": (half_close, True),
    "splice": (splice, True),
    "memory": (memory, True),
    "blocking": (blocking, True),
    "accepted": (accepted, False),
}
"""By name: the check, and whether it is required."""


def _wire(counts: Counts) -> int:
    return counts.off + counts.unread + counts.unproven + counts.full


def _listener(defer: bool = False) -> socket.socket:
    listener = socket.socket()
    listener.setblocking(False)
    if defer:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
    listener.bind((HOST, 0))
    listener.listen(16)
    return listener


def _client(listener: socket.socket, receive: int = 0) -> socket.socket:
    client = socket.socket()
    client.setblocking(False)
    if receive:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if client.connect_ex(listener.getsockname()) not in (0, errno.EINPROGRESS):
        raise OSError("loopback refuses a connection")
    _wait([], [client])
    return client


def _accepted(listener: socket.socket) -> socket.socket:
    _wait([listener], [])
    server, _ = listener.accept()
    server.setblocking(False)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server


def _pair() -> tuple[socket.socket, socket.socket]:
    with _listener() as listener:
        client = _client(listener)
        return client, _accepted(listener)


def _wait(readers: list[socket.socket], writers: list[socket.socket]) -> None:
    if select.select(readers, writers, [], SILENT) == ([], [], []):
        raise Hang


def _send_all(to: socket.socket, data: bytes) -> None:
    left = memoryview(data)
    while left:
        _wait([], [to])
        left = left[to.send(left) :]


def _read(at: socket.socket, count: int) -> None:
    while count:
        _wait([at], [])
        if not (part := at.recv(count)):
            raise OSError("a connection ended early")
        count -= len(part)


def _all_of(at: socket.socket) -> bytes:
    parts: list[bytes] = []
    while True:
        _wait([at], [])
        if not (part := at.recv(1 << 18)):
            return b"".join(parts)
        parts.append(part)


def _held(at: socket.socket) -> int:
    """Bytes of the kernel's memory that wait in a socket."""
    return int(struct.unpack("=I", at.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36)[:4])[0])


def _blocking_exchanges(listener: socket.socket) -> int:
    """How many exchanges fail; every tenth is so large that sending it blocks."""
    failures = []

    def serve() -> None:
        for _ in range(ROUNDS):
            select.select([listener], [], [], SILENT)
            connection, _ = listener.accept()
            with connection:
                connection.setblocking(True)
                try:
                    while connection.recv(1 << 16):
                        pass
                    connection.sendall(b"a" * 1000)
                except OSError as error:
                    failures.append(error)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    for n in range(ROUNDS):
        with socket.socket() as client:
            client.connect(listener.getsockname())
            try:
                client.sendall(b"q" * (1_000_000 if n % 10 == 0 else 300))
                client.shutdown(socket.SHUT_WR)
                got = 0
                while part := client.recv(1 << 16):
                    got += len(part)
                if got != 1000:
                    failures.append(OSError(f"{got} bytes"))
            except OSError as error:
                failures.append(error)
    server.join(SILENT)
    return min(len(failures), ROUNDS)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (BpfError, OSError) as error:
        sys.exit(str(error))
