"""uvicorn, a real HTTP server, with an application that tells what it was asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from node.address import Address
from tests.integration.waiting import until


@dataclass
class Seen:
    """An application that remembers what it was asked: method, path, headers and content."""

    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]
    ) -> None:
        """An echo, but for ``/status/N`` (that status) and ``/stream`` (a hundred chunks)."""
        if scope["type"] == "websocket":
            await _shout(receive, send)
            return
        content, more = b"", True
        while more:
            event = await receive()
            content += event.get("body", b"")
            more = event.get("more_body", False)
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        path = scope["raw_path"].decode()
        self.requests.append((scope["method"], path, headers, content))
        status = int(path.removeprefix("/status/")) if path.startswith("/status/") else 200
        pieces = [b"x" * 1000] * 100 if path == "/stream" else [content or b"hello"]
        length = [(b"content-length", b"%d" % len(pieces[0]))] if len(pieces) == 1 else []
        if status in (204, 304):
            pieces, length = [], []
        await send({"type": "http.response.start", "status": status, "headers": length})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})


async def _shout(receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    while (event := await receive())["type"] != "websocket.disconnect":
        if event["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "websocket.send", "text": event["text"].upper()})


@contextmanager
def application(address: Address) -> Iterator[Seen]:
    """uvicorn with such an application."""
    seen = Seen()
    config = uvicorn.Config(
        seen,
        host=address.host,
        port=address.port,
        http="h11",
        ws="websockets-sansio",
        lifespan="off",
        log_level="error",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), name="uvicorn")
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started
        yield seen
    finally:
        server.should_exit = True
        thread.join(timeout=10)
