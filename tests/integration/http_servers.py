"""Real HTTP servers: nginx, and uvicorn with an application that tells what it was asked."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from node.address import Address
from tests.integration.waiting import until

_NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {address};
        root {folder}/www;
        default_type text/plain;
        keepalive_requests 100000;
    }}
}}
"""


@contextmanager
def nginx(address: Address, folder: Path, files: dict[str, bytes]) -> Iterator[None]:
    """nginx serving `files` by their paths."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    assert program, "install nginx-light"
    for name, content in files.items():
        path = folder / "www" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, address=address))
    command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    with subprocess.Popen(command) as process:
        try:
            until(lambda: _accepts(address) or process.poll() is not None)
            assert process.poll() is None, (folder / "error.log").read_text()
            yield
        finally:
            process.terminate()


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


def _accepts(address: Address) -> bool:
    try:
        socket.create_connection((address.host, address.port), timeout=1).close()
    except OSError:
        return False
    return True
