"""Thousands of connections at once, as programs of their own: ``python crowd.py serve|call ...``.

``serve ADDRESS PORT`` echoes; ``call ADDRESS PORT COUNT`` opens COUNT connections, all of them
before it says anything, then a line on each, and prints how many came back.  ``web`` is HTTP:
a page for every request; ``browse`` asks for one on each connection.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections import Counter

TIMEOUT = 60.0
AT_ONCE = 200
"""Connections in the making; a listener's queue has an end."""

PAGE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def serve(address: str, port: int, *, pages: bool) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await (reader.readuntil(b"\r\n\r\n") if pages else reader.readline()):
                writer.write(PAGE if pages else data)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, address, port, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


async def call(address: str, port: int, count: int, *, pages: bool) -> None:
    gate = asyncio.Semaphore(AT_ONCE)
    everybody_is_in = asyncio.Barrier(count)

    async def one(number: int) -> str:
        try:
            async with gate:
                reader, writer = await asyncio.open_connection(address, port)
        except OSError as error:
            await everybody_is_in.wait()
            return type(error).__name__
        await everybody_is_in.wait()
        said = f"{number}\n".encode()
        try:
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" if pages else said)
            head = await reader.readuntil(b"\r\n\r\n") if pages else b""
            heard = head + (await reader.readexactly(2) if pages else await reader.readline())
            right = heard.startswith(b"HTTP/1.1 200") and heard.endswith(b"ok")
            return "right" if (right if pages else heard == said) else f"wrong: {heard[:40]!r}"
        except (OSError, asyncio.IncompleteReadError) as error:
            return type(error).__name__
        finally:
            writer.close()

    async with asyncio.timeout(TIMEOUT):
        results = await asyncio.gather(*map(one, range(count)))
    print(json.dumps(Counter(results)))


def main() -> None:
    verb, address, port, *more = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if verb in ("serve", "web"):
        asyncio.run(serve(address, int(port), pages=verb == "web"))
    else:
        asyncio.run(call(address, int(port), int(more[0]), pages=verb == "browse"))


if __name__ == "__main__":
    main()
