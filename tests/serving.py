"""Small servers for tests of proxies: started with a block, gone with it."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from node.address import Address


class Echo(socketserver.StreamRequestHandler):
    """Answers every line with itself."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 1024


@contextmanager
def serving(handler: type[socketserver.BaseRequestHandler] = Echo) -> Iterator[Address]:
    """A server at a free port of 127.0.0.1, while the block lasts."""
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Address(*server.server_address[:2])  # type: ignore[arg-type]
        finally:
            server.shutdown()
            thread.join()
