"""Clients and servers of the tests: plain sockets, made in a namespace, used from here."""

from __future__ import annotations

import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from demos.namespaces import Namespace

PROXY = Path(__file__).with_name("proxy.py")
TIMEOUT = 5.0
"""Seconds in which what should come has come, also on a machine with work to do."""

DENIED_AFTER = 0.35
"""Seconds after which nothing comes any more; the first SYN is sent again after one."""


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def eventually(holds: Callable[[], bool], seconds: float = TIMEOUT) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it has not come to hold"
        time.sleep(0.01)


class Servers:
    """TCP and UDP at one port of a namespace, both families: who asks is told who they are.

    A TCP client gets a line with its address and port at once, and then its own bytes back, until
    they are a `Q`; a datagram is answered with its sender's address, port and the datagram itself.
    """

    def __init__(self, where: Namespace, port: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self.accepted = 0
        with where.entered():
            for version in (socket.AF_INET, socket.AF_INET6):
                stream = socket.create_server(("", port), family=version, backlog=4096)
                datagram = socket.socket(version, socket.SOCK_DGRAM)
                if version == socket.AF_INET6:
                    datagram.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                datagram.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                datagram.bind(("", port))
                stream.setblocking(False)
                datagram.setblocking(False)
                self._selector.register(stream, selectors.EVENT_READ, self._accept)
                self._selector.register(datagram, selectors.EVENT_READ, self._answer)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.05):
                with suppress(OSError):
                    key.data(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, peer = listener.accept()
            self.accepted += 1
            connection.setblocking(False)
            try:
                connection.sendall(f"{peer[0]} {peer[1]}\n".encode())
            except OSError:  # it is gone already
                connection.close()
                continue
            self._selector.register(connection, selectors.EVENT_READ, self._echo)

    def _echo(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(1 << 16)
            if data == b"Q":
                data = b""
            if data:
                connection.setblocking(True)
                connection.settimeout(TIMEOUT)
                connection.sendall(data)
                connection.setblocking(False)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            connection.close()

    def _answer(self, listener: socket.socket) -> None:
        data, peer = listener.recvfrom(1 << 16)
        listener.sendto(f"{peer[0]} {peer[1]}\n".encode() + data, peer)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


class Talk:
    """A client's TCP connection to a `Servers`. peer: who the server says that it is."""

    def __init__(
        self, where: Namespace, address: str, port: int, timeout: float = TIMEOUT, source: int = 0
    ) -> None:
        with where.entered():
            self.socket = socket.socket(family(address), socket.SOCK_STREAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.settimeout(timeout)
        try:
            if source:
                self.socket.bind(("", source))
            self.socket.connect((address, port))
            self._lines = self.socket.makefile("rb")
            told = self._lines.readline().split()
            if len(told) != 2:
                raise ConnectionError("closed before a word was said")
            self.peer = told[0].decode(), int(told[1])
        except BaseException:
            self.socket.close()
            raise
        self.socket.settimeout(TIMEOUT)

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def echo(self, data: bytes, timeout: float = TIMEOUT) -> bytes:
        """What comes back for `data`, as much as it was."""
        self.socket.settimeout(timeout)
        found = b""
        # No more at once than buffers on the way take: nobody reads while it is sent.
        for at in range(0, len(data), 1 << 16):
            part = data[at : at + (1 << 16)]
            self.socket.sendall(part)
            found += self._lines.read(len(part))
        return found

    def ask(self, data: bytes) -> bytes:
        """One message there, one back."""
        self.socket.sendall(data)
        return self.socket.recv(1 << 16)

    def close(self, gently: bool = False) -> None:
        """By a reset, after which nothing comes any more; gently: as programs do."""
        if not gently:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(AttributeError):
            self._lines.close()
        self.socket.close()

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connects(where: Namespace, address: str, port: int) -> bool:
    """True if a TCP connection is made; False if nothing comes."""
    try:
        Talk(where, address, port, timeout=DENIED_AFTER).close()
    except TimeoutError:
        return False
    return True


def datagram(
    where: Namespace, address: str, port: int, data: bytes = b"hello", timeout: float = DENIED_AFTER
) -> bytes | None:
    """The answer to a datagram; None: there is none."""
    with where.entered():
        made = socket.socket(family(address), socket.SOCK_DGRAM)
    with made:
        made.settimeout(timeout)
        made.connect((address, port))
        made.send(data)
        try:
            return made.recv(1 << 16)
        except TimeoutError:
            return None


def crowd(where: Namespace, address: str, port: int, count: int) -> list[socket.socket]:
    """So many connections to a `Servers`, all open at once, each with its line read."""
    selector = selectors.DefaultSelector()
    made = []
    with where.entered():
        for _ in range(count):
            one = socket.socket(family(address), socket.SOCK_STREAM)
            one.setblocking(False)
            one.connect_ex((address, port))
            made.append(one)
            selector.register(one, selectors.EVENT_READ)
    left, deadline = count, time.monotonic() + 30
    while left and time.monotonic() < deadline:
        for key, _ in selector.select(1):
            assert isinstance(key.fileobj, socket.socket)
            assert key.fileobj.recv(100).endswith(b"\n")
            selector.unregister(key.fileobj)
            left -= 1
    selector.close()
    assert not left, f"{left} of {count} connections have not been greeted"
    return made


class RunningProxy:
    """The program `proxy.py` in a namespace, and what it has told."""

    def __init__(self, where: Namespace, port: int, *options: str) -> None:
        self.port = port
        self._lines: list[str] = []
        command = [sys.executable, "-I", str(PROXY), str(port), *options]
        self.process = where.popen(*command, stdout=subprocess.PIPE, text=True)
        where.processes.remove(self.process)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", "the proxy has not started"
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line.rstrip("\n"))

    @property
    def connections(self) -> list[tuple[str, str, str]]:
        """(protocol, client, server) of what it has taken."""
        return [(p, c, s) for p, c, _, s, _ in (line.split() for line in list(self._lines))]

    def forget(self) -> None:
        self._lines.clear()

    def close(self) -> None:
        """End it as kill -9 would."""
        self.process.kill()
        self.process.wait()
        self._thread.join()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def proxies(where: Namespace, *ports: int) -> Iterator[list[RunningProxy]]:
    """Proxies at these ports."""
    with ExitStack() as stack:
        made = [RunningProxy(where, port) for port in ports]
        for one in made:
            stack.callback(one.close)
        yield made


def raw_socket(where: Namespace, interface: str = "eth0") -> socket.socket:
    """A socket that sends and receives frames of an interface, whatever is in them."""
    with where.entered():
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        made.bind((interface, 0))
    made.settimeout(TIMEOUT)
    return made
