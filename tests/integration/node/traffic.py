"""Servers and clients in namespaces: small ones, in threads of the tests.

A socket stays in the namespace that it was made in, so a server is told where by the block
that it is started in (`Namespace.entered`).
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from demos.namespaces import Namespace

PATIENCE = 15.0
"""Seconds that an answer may take which is to come; the machine may be busy."""

SILENCE = 1.0
"""Seconds after which one that is not to come counts as dropped."""

NO_ANSWER = "no answer"
BLOCK = bytes(range(256)) * 256


class _Quiet:
    """A server whose clients may go away."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 4096

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[misc]


class _Web(_Quiet, ThreadingHTTPServer):
    # HTTPServer's asks the DNS for its own name.
    server_bind = socketserver.TCPServer.server_bind


class _Web6(_Web):
    address_family = socket.AF_INET6


class _Line(_Quiet, socketserver.ThreadingTCPServer):
    pass


class _Line6(_Line):
    address_family = socket.AF_INET6


class _Pages(BaseHTTPRequestHandler):
    """The body is the client's address; ``/bytes/N`` is N bytes, and a body's digest is told."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout: ClassVar[float] = 60

    def do_GET(self) -> None:
        wanted = self.path.removeprefix("/bytes/")
        if wanted == self.path:
            self._answer(self.client_address[0].encode())
            return
        size = int(wanted)
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for start in range(0, size, len(BLOCK)):
            self.wfile.write(BLOCK[: size - start])

    def do_POST(self) -> None:
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        while left:
            part = self.rfile.read(min(left, 1 << 16))
            digest.update(part)
            left -= len(part)
        self._answer(digest.hexdigest().encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class _Lines(socketserver.StreamRequestHandler):
    """Every line comes back, the first with the client's address before it."""

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.wfile.write(self.client_address[0].encode() + b"\n")
        for line in self.rfile:
            self.wfile.write(line)


def silent(client: Namespace, address: str, path: str = "/", port: int = 80) -> bool:
    """Whether a page is not even refused: its connection is dropped."""
    return fetch(client, address, path, port, timeout=SILENCE) == NO_ANSWER


@contextmanager
def _serving(where: Namespace, server: Any, address: str, port: int, handler: Any) -> Iterator[int]:
    with where.entered():
        made = server((address, port), handler)
    with made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield made.server_address[1]
        finally:
            made.shutdown()
            thread.join()


@contextmanager
def web(where: Namespace, address: str, port: int = 80) -> Iterator[None]:
    """An HTTP server."""
    with _serving(where, _Web6 if ":" in address else _Web, address, port, _Pages):
        yield


@contextmanager
def lines(where: Namespace, address: str, port: int = 7000) -> Iterator[None]:
    """A server that says who its client is, and echoes lines."""
    with _serving(where, _Line6 if ":" in address else _Line, address, port, _Lines):
        yield


@contextmanager
def datagrams(where: Namespace, address: str, port: int = 7000) -> Iterator[None]:
    """A UDP server that echoes."""
    with where.entered():
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, _DGRAM)
    made.bind((address, port))
    made.settimeout(0.1)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                data, sender = made.recvfrom(65536)
            except TimeoutError:
                continue
            made.sendto(data, sender)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        made.close()


_DGRAM = socket.SOCK_DGRAM


def fetch(
    client: Namespace,
    address: str,
    path: str = "/",
    port: int = 80,
    method: str = "GET",
    timeout: float = PATIENCE,
    own_port: int = 0,
) -> str:
    """``200 BODY``, the status alone for others, or what became of the connection."""
    source = (client.ipv6 if ":" in address else client.ipv4, own_port) if own_port else None
    connection = http.client.HTTPConnection(address, port, timeout, source)
    try:
        with client.entered():
            connection.request(method, path)
        response = connection.getresponse()
        body = response.read().decode()
        return f"200 {body}" if response.status == 200 else str(response.status)
    except TimeoutError:
        return NO_ANSWER
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def datagram(
    client: Namespace,
    address: str,
    port: int = 7000,
    data: bytes = b"x",
    timeout: float = PATIENCE,
) -> str:
    """What becomes of a datagram."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with client.entered(), socket.socket(family, _DGRAM) as made:
        made.settimeout(timeout)
        made.sendto(data, (address, port))
        try:
            return "answered" if made.recv(65536) == data else "answered wrongly"
        except TimeoutError:
            return NO_ANSWER


class Talk:
    """A TCP connection to a server of `lines` that stays open."""

    def __init__(
        self, client: Namespace, address: str, port: int = 7000, own_port: int = 0
    ) -> None:
        source = (client.ipv6 if ":" in address else client.ipv4, own_port)
        with client.entered():
            self.socket = socket.create_connection((address, port), PATIENCE, source)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.seen_as = self.hear()

    def say(self, line: str, timeout: float = PATIENCE) -> str:
        """The server's answer to a line; what was sent may arrive later than the timeout."""
        self.socket.settimeout(timeout)
        try:
            self.socket.sendall(f"{line}\n".encode())
            return self._read()
        except OSError as error:
            return NO_ANSWER if isinstance(error, TimeoutError) else type(error).__name__

    def hear(self, timeout: float = PATIENCE) -> str:
        """The next line."""
        self.socket.settimeout(timeout)
        try:
            return self._read()
        except OSError as error:
            return NO_ANSWER if isinstance(error, TimeoutError) else type(error).__name__

    def _read(self) -> str:
        data = b""
        while not data.endswith(b"\n"):
            part = self.socket.recv(1)
            if not part:
                return "closed"
            data += part
        return data.decode().strip()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pages:
    """An HTTP connection that stays open."""

    def __init__(self, client: Namespace, address: str, port: int = 80) -> None:
        self._client = client
        self._connection = http.client.HTTPConnection(address, port, timeout=PATIENCE)
        self.reopen()

    def reopen(self) -> None:
        self._connection.close()
        with self._client.entered():
            self._connection.connect()

    def get(self, path: str, timeout: float = PATIENCE) -> str:
        try:
            if self._connection.sock is None:
                return "closed"
            self._connection.sock.settimeout(timeout)
            self._connection.request("GET", path)
            response = self._connection.getresponse()
            response.read()
            return str(response.status)
        except TimeoutError:
            return NO_ANSWER
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Pages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
