"""What the programs take for one packet, by the kernel's own clock (BPF_PROG_TEST_RUN).

The packet is the same again and again, so that everything is in the processor's cache: a lower
bound, and what is compared is code. The least of several turns counts; what running nothing
takes (a program of two instructions) stands in the first line and is in all others.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bpf import compiler, syscall
from bpf.datapath import Datapath, DatapathConfig, Link, PolicyEntry
from bpf.netns import within
from demos.namespaces import Lab

TURNS = 9
TCP, ALLOW, PORT = 6, 1, 80
CLIENT, SERVER = 1001, 1002
SYN, ACK = 0x02, 0x10
NOTHING = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
"""Returns 0."""


@dataclass(frozen=True)
class Row:
    """One kind of packet. ns: with a policy of 10 entries; full_ns: of 16,384."""

    packet: str
    ns: int
    full_ns: int


def measure(folder: Path, scale: float) -> list[Row]:
    """All kinds of packets. Needs root."""
    repeat = max(100, int(50_000 * scale))
    with Lab("client", "server") as lab:
        root = lab.bpffs() / "bench"
        config = DatapathConfig(root=root, cache=folder, state=folder, netns=str(lab.node.path))
        datapath = Datapath.open(config)
        try:
            attach(datapath, lab)
            return list(rows(datapath, lab, repeat))
        finally:
            datapath.close()


def attach(datapath: Datapath, lab: Lab) -> None:
    for endpoint, identity in ((lab["client"], CLIENT), (lab["server"], SERVER)):
        index = lab.node.ifindex(endpoint.interface)
        datapath.attach(Link(endpoint.number, index, endpoint.ipv4, endpoint.ipv6, identity))
        datapath.set_identities({endpoint.ipv4: identity, endpoint.ipv6: identity})


def policy(count: int) -> list[PolicyEntry]:
    """One entry lets the client's connections out, the others are of other identities."""
    others = (
        PolicyEntry(2000 + number // 4, False, TCP, 1 + number % 4, 24, ALLOW, ALLOW)
        for number in range(count - 1)
    )
    return [PolicyEntry(SERVER, False, TCP, PORT, 24, ALLOW, ALLOW), *others]


def rows(datapath: Datapath, lab: Lab, repeat: int) -> Iterable[Row]:
    client, server = lab["client"], lab["server"]
    index, path = lab.node.ifindex(client.interface), str(lab.node.path)
    leaving, coming = datapath.programs.node
    nothing = syscall.load_program(compiler.SCHED_CLS, NOTHING, "nothing")
    packets = {
        "no program": (nothing, frame(client.ipv4, server.ipv4, ACK)),
        "established, from the endpoint": (leaving, frame(client.ipv4, server.ipv4, ACK)),
        "established, to the endpoint": (coming, frame(server.ipv4, client.ipv4, ACK)),
        "established, IPv6": (leaving, frame(client.ipv6, server.ipv6, ACK)),
        "new": (leaving, frame(client.ipv4, server.ipv4, SYN)),
    }
    found: dict[str, list[int]] = {name: [] for name in packets}
    for entries in (10, 16_384):
        datapath.set_policy(client.number, policy(entries))
        for source, target in ((client.ipv4, server.ipv4), (client.ipv6, server.ipv6)):
            run(leaving, frame(source, target, SYN), index, path, 1)
        for name, (program, data) in packets.items():
            found[name].append(min(run(program, data, index, path, repeat) for _ in range(TURNS)))
    for name, (few, full) in found.items():
        yield Row(name, few, full)


def run(program: int, data: bytes, index: int, netns: str, repeat: int) -> int:
    """Nanoseconds for a packet that comes by an interface of the namespace."""
    return within(netns, lambda: syscall.run_program(program, data, index, repeat=repeat).ns)


def frame(source: str, target: str, flags: int) -> bytes:
    """A TCP packet of 64 bytes, between the ports 40000 and `PORT`."""
    ports = (40_000, PORT) if source.endswith("2") else (PORT, 40_000)
    tcp = struct.pack("!HHIIBBHHH", *ports, 1, 1, 5 << 4, flags, 1000, 0, 0) + bytes(64)
    if ":" in source:
        ends = [socket.inet_pton(socket.AF_INET6, end) for end in (source, target)]
        head = struct.pack("!IHBB16s16s", 6 << 28, len(tcp), TCP, 64, *ends)
        return bytes(12) + b"\x86\xdd" + head + tcp
    ends = [socket.inet_aton(end) for end in (source, target)]
    length = 20 + len(tcp)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, 1, 0, 64, TCP, 0, *ends)
    return bytes(12) + b"\x08\0" + head + tcp


def show(found: Sequence[Row]) -> str:
    """The table."""
    lines = [f"{'ns for a packet':34}{'10 entries':>12}{'16,384':>10}"]
    lines += [f"{row.packet:34}{row.ns:12}{row.full_ns:10}" for row in found]
    return "\n".join(lines)
