"""A transparent proxy of bytes, as small as one can be; run as a program in a namespace::

    python proxy.py PORT [--same-port] [--upstream-ports LOW-HIGH]

It listens at PORT of 127.0.0.1 and ::1, by TCP and UDP, connects to where the client wanted to
go from the client's own address, and prints a line for each connection and datagram: protocol,
client, server. It does what Envoy does here: a mark on the listening sockets, which accepted
ones inherit, and another on those towards servers. A message that begins with `X` is its own: the
client is told so, which shows that it was the proxy that judged.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import struct
from contextlib import suppress

MARK_FROM_UPSTREAM, MARK_FROM_LISTENER = 0xA00, 0xB00
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
IP_RECVORIGDSTADDR, IPV6_RECVORIGDSTADDR = 20, 74
IP_BIND_ADDRESS_NO_PORT = 24
IP_LOCAL_PORT_RANGE = 51
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
DENIED = b"X denied by the proxy"


def transparent(family: int, kind: int, mark: int) -> socket.socket:
    made = socket.socket(family, kind)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        made.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    return made


def note(protocol: str, client: tuple[str, int], server: tuple[str, int]) -> None:
    print(protocol, client[0], client[1], server[0], server[1], flush=True)


class Proxy:
    def __init__(self, same_port: bool, ports: str) -> None:
        self.same_port = same_port
        low, _, high = ports.partition("-")
        self.ports = int(high) << 16 | int(low) if ports else 0

    def upstream(self, family: int, kind: int, client: tuple[str, int]) -> socket.socket:
        """A socket with the client's address; its port is chosen when it connects."""
        made = transparent(family, kind, MARK_FROM_UPSTREAM)
        if self.same_port:
            made.bind(client[:2])
            return made
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        if self.ports:
            ports = struct.pack("=I", self.ports)
            made.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, ports)
        made.bind((client[0], 0))
        return made

    async def stream(self, accepted: socket.socket) -> None:
        """Relays one connection both ways until both ends are closed."""
        loop = asyncio.get_running_loop()
        client, server = accepted.getpeername(), accepted.getsockname()
        note("tcp", client, server)
        upstream = self.upstream(accepted.family, socket.SOCK_STREAM, client)
        with accepted, upstream:
            try:
                await loop.sock_connect(upstream, server[:2])
                async with asyncio.TaskGroup() as both:
                    both.create_task(self.pump(accepted, upstream, accepted))
                    both.create_task(self.pump(upstream, accepted, None))
            except (OSError, ExceptionGroup):
                # Tell both at once: closing alone would be a friendly end.
                for end in (accepted, upstream):
                    linger = struct.pack("ii", 1, 0)
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async def pump(
        self, source: socket.socket, sink: socket.socket, judged: socket.socket | None
    ) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, 1 << 16):
            if judged is not None and data.startswith(b"X"):
                await loop.sock_sendall(judged, DENIED)
            else:
                await loop.sock_sendall(sink, data)
        sink.shutdown(socket.SHUT_WR)

    async def serve_tcp(self, family: int, port: int) -> None:
        loop = asyncio.get_running_loop()
        listener = transparent(family, socket.SOCK_STREAM, MARK_FROM_LISTENER)
        listener.bind((LOOPBACK[socket.AddressFamily(family)], port))
        listener.listen(4096)
        tasks: set[asyncio.Task[None]] = set()
        while True:
            accepted, _ = await loop.sock_accept(listener)
            accepted.setblocking(False)
            task = asyncio.create_task(self.stream(accepted))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def serve_udp(self, family: int, port: int) -> None:
        loop = asyncio.get_running_loop()
        listener = transparent(family, socket.SOCK_DGRAM, MARK_FROM_LISTENER)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, 1)
        else:
            listener.setsockopt(socket.IPPROTO_IP, IP_RECVORIGDSTADDR, 1)
        listener.bind((LOOPBACK[socket.AddressFamily(family)], port))
        readable = asyncio.Event()
        loop.add_reader(listener, readable.set)
        tasks: set[asyncio.Task[None]] = set()
        while True:
            await readable.wait()
            readable.clear()
            with suppress(BlockingIOError):
                while True:
                    data, ancillary, _, client = listener.recvmsg(1 << 16, 256)
                    task = asyncio.create_task(
                        self.datagram(family, data, client[:2], original(ancillary))
                    )
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)

    async def datagram(
        self, family: int, data: bytes, client: tuple[str, int], server: tuple[str, int]
    ) -> None:
        """One question and its answer, which comes from the address that was asked."""
        loop = asyncio.get_running_loop()
        note("udp", client, server)
        answer = DENIED
        if not data.startswith(b"X"):
            with self.upstream(family, socket.SOCK_DGRAM, client) as upstream:
                upstream.connect(server)
                await loop.sock_sendall(upstream, data)
                answer = await asyncio.wait_for(loop.sock_recv(upstream, 1 << 16), 3)
        with transparent(family, socket.SOCK_DGRAM, MARK_FROM_LISTENER) as reply:
            reply.bind(server)
            reply.sendto(answer, client)


def original(ancillary: list[tuple[int, int, bytes]]) -> tuple[str, int]:
    """Where a datagram was sent to, from the kernel's note on it."""
    for _, kind, raw in ancillary:
        (port,) = struct.unpack_from("!H", raw, 2)
        if kind == IP_RECVORIGDSTADDR:
            return socket.inet_ntop(socket.AF_INET, raw[4:8]), port
        if kind == IPV6_RECVORIGDSTADDR:
            return socket.inet_ntop(socket.AF_INET6, raw[8:24]), port
    raise ValueError("no address")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--same-port", action="store_true")
    parser.add_argument("--upstream-ports", default="")
    told = parser.parse_args()
    proxy = Proxy(told.same_port, told.upstream_ports)
    families = (socket.AF_INET, socket.AF_INET6)
    async with asyncio.TaskGroup() as group:
        for family in families:
            group.create_task(proxy.serve_tcp(family, told.port))
            group.create_task(proxy.serve_udp(family, told.port))
        print("ready", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
