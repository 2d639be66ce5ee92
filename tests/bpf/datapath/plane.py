"""The two programs on a lab's endpoints, and the maps that tests fill by hand.

No loader of ours takes part but the compiler: what is tested here is C.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

from bpf import compiler, schema, syscall, tc
from bpf.netns import within
from bpf.schema import Direction
from bpf.syscall import Map
from demos.namespaces import Endpoint, Lab, Namespace

ALLOW, REDIRECT, DENY = 1, 2, 3
NONE = 0
EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
WORLD, HOST = 2, 1

REASONS: Mapping[str, int] = {reason.name: reason.number for reason in schema.REASONS}
NAMES = {number: name for name, number in REASONS.items()} | {
    0: "FORWARDED",
    1: "TO_PROXY",
    255: "EVENTS_LOST",
}

SIZES = {
    "conntrack": 16_384,
    "fragments": 256,
    "policy": 65_536,
    "ipcache": 4_096,
    "counters": 4_096,
    "addresses": 1_024,
    "links": 1_024,
    "endpoints": 1_024,
    "events": 1 << 18,
    "traffic": 1_024,
}
"""Small: memory of the kernel's is taken at once for some."""


class Entry(NamedTuple):
    """A line of a policy. identity 0: any; protocol 0: any; bits: of the port that count."""

    direction: Direction
    identity: int = 0
    protocol: int = 0
    port: int = 0
    verdict: int = ALLOW
    would: int = -1
    proxy: int = 0
    both: int = 0
    port_bits: int = 16

    def packed(self, slot: int) -> tuple[bytes, bytes]:
        bits = 0 if not self.protocol else 8 + (self.port_bits if self.port else 0)
        key = schema.POLICY_KEY.pack(
            72 + bits, slot, self.identity, self.direction, self.protocol, self.port
        )
        would = self.verdict if self.would < 0 else self.would
        return key, schema.POLICY_VALUE.pack(self.verdict, would, 0, self.proxy, self.both)


OPEN = (Entry(EGRESS), Entry(INGRESS))
"""The policy where nothing is enforced."""


def mapped(address: str) -> bytes:
    """16 bytes, as the maps have them."""
    told = ip_address(address)
    return told.packed if told.version == 6 else bytes(10) + b"\xff\xff" + told.packed


class Ring:
    """Reads a ring buffer: one page with our position; one with the kernel's, and the data twice
    in a row, so that nothing wraps."""

    def __init__(self, events: Map) -> None:
        page, size = mmap.PAGESIZE, events.info.max_entries
        self._mine = mmap.mmap(events.fd, page)
        self._data = mmap.mmap(events.fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        self._mask = size - 1

    def close(self) -> None:
        self._mine.close()
        self._data.close()

    def read(self) -> Iterator[bytes]:
        (position,) = struct.unpack_from("=Q", self._mine, 0)
        (end,) = struct.unpack_from("=Q", self._data, 0)
        while position < end:
            start = mmap.PAGESIZE + (position & self._mask)
            (length,) = struct.unpack_from("=I", self._data, start)
            assert not length >> 30, "a record that is being written, or was given up"
            yield self._data[start + 8 : start + 8 + length]
            position += -(-(length + 8) // 8) * 8
            struct.pack_into("=Q", self._mine, 0, position)


@dataclass
class Plane:
    """Programs and maps of one node. Endpoints are known by the lab's names."""

    lab: Lab
    cache: Path
    sizes: Mapping[str, int] = field(default_factory=dict)
    maps: dict[str, Map] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    programs: list[int] = field(default_factory=list)
    _interfaces: dict[int, int] = field(default_factory=dict)
    _slot: int = 0
    _epoch: int = 0

    def __post_init__(self) -> None:
        for name, spec in schema.MAPS.items():
            size = {**SIZES, **self.sizes}.get(name, spec.size)
            fd = syscall.create_map(
                spec.type, spec.key.size, spec.value.size, size, spec.flags, name
            )
            self.maps[name] = Map(fd)
        self.ring = Ring(self.maps["events"])
        self.from_endpoint, self.to_endpoint = self.load()

    def load(self, sidecar: int = 0) -> tuple[int, int]:
        """Both programs; sidecar: of the endpoint of that number."""
        source = compiler.PROGRAMS / "endpoint.c"
        constants = {"SIDECAR_ENDPOINT": sidecar} if sidecar else {}
        code = compiler.compile_source(source, self.cache, constants=tuple(constants))
        fds = {name: found.fd for name, found in self.maps.items()}
        made = [
            compiler.load(code, name, fds, constants=constants)
            for name in ("from_endpoint", "to_endpoint")
        ]
        self.programs += made
        return made[0], made[1]

    def close(self) -> None:
        self.ring.close()
        for fd in self.programs:
            os.close(fd)
        for found in self.maps.values():
            found.close()

    def route(self, where: Namespace) -> None:
        """Packets with the proxy's mark stay in the namespace."""
        where.sysctl("ipv4/conf/all/rp_filter", 0)
        # What comes from outside for the proxy's sockets is forwarded, to the endpoint, before it
        # is judged there; the kernel drops what it forwards and has found a socket for already.
        where.sysctl("ipv4/ip_early_demux", 0)
        rule = ("rule", "add", "fwmark", "0x200/0xf00", "lookup", "2004")
        local = ("route", "add", "local", "default", "dev", "lo", "table", "2004")
        for version in ("-4", "-6"):
            where.run("ip", version, *rule, check=True)
            where.run("ip", version, *local, check=True)

    def attach(self, endpoint: Endpoint, identity: int) -> int:
        """Put the programs on the node's end of the endpoint's link."""
        node, number = self.lab.node, endpoint.number
        ifindex = node.ifindex(endpoint.interface)
        self._interfaces[number] = ifindex
        self._set_link(ifindex, endpoint, identity)
        for address in (endpoint.ipv4, endpoint.ipv6):
            self.maps["addresses"].set(mapped(address), schema.U32.pack(number))
        tc.attach(ifindex, tc.Hook.INGRESS, self.from_endpoint, "from", str(node.path))
        tc.attach(ifindex, tc.Hook.EGRESS, self.to_endpoint, "to", str(node.path))
        for setting, value in (("rp_filter", 0), ("accept_local", 1)):
            node.sysctl(f"ipv4/conf/{endpoint.interface}/{setting}", value)
        return number

    def attach_sidecar(self, endpoint: Endpoint, identity: int) -> None:
        """Put programs of its own into the endpoint's namespace."""
        self._set_link(0x80000000 | endpoint.number, endpoint, identity)
        outgoing, incoming = self.load(endpoint.number)
        ifindex, path = endpoint.ifindex(), str(endpoint.path)
        tc.attach(ifindex, tc.Hook.EGRESS, outgoing, "from", path)
        tc.attach(ifindex, tc.Hook.INGRESS, incoming, "to", path)
        for setting, value in (("rp_filter", 0), ("accept_local", 1)):
            endpoint.sysctl(f"ipv4/conf/eth0/{setting}", value)
        self.route(endpoint)

    def _set_link(self, key: int, endpoint: Endpoint, identity: int) -> None:
        number = endpoint.number
        self.numbers[endpoint.name] = number
        link = schema.LINK.pack(number, 0, mapped(endpoint.ipv4), mapped(endpoint.ipv6))
        self.maps["links"].set(schema.U32.pack(key), link)
        self._set_endpoint(number, identity, 0)
        self.identify({endpoint.ipv4: identity, endpoint.ipv6: identity})

    def _set_endpoint(self, number: int, identity: int, slot: int) -> None:
        value = schema.ENDPOINT.pack(identity, slot, 0, self._interfaces.get(number, 0))
        self.maps["endpoints"].set(schema.U32.pack(number), value)

    def identify(self, identities: Mapping[str, int]) -> None:
        """Addresses or prefixes, and whose they are."""
        for text, identity in identities.items():
            network = ip_network(text)
            bits = network.prefixlen + (96 if network.version == 4 else 0)
            key = schema.IPCACHE_KEY.pack(bits, mapped(str(network.network_address)))
            self.maps["ipcache"].set(key, schema.U32.pack(identity))
        self.bump()

    def relabel(self, name: str, identity: int) -> None:
        """Give an endpoint another identity."""
        number = self.numbers[name]
        old = schema.ENDPOINT.unpack(self.maps["endpoints"].get(schema.U32.pack(number)) or b"")
        self._set_endpoint(number, identity, old[1])
        endpoint = self.lab[name]
        self.identify({endpoint.ipv4: identity, endpoint.ipv6: identity})

    def policy(self, name: str, *entries: Entry) -> None:
        """Replace an endpoint's policy, in one step."""
        self._slot += 1
        self.maps["policy"].set_many(entry.packed(self._slot) for entry in entries)
        number = self.numbers[name]
        old = schema.ENDPOINT.unpack(self.maps["endpoints"].get(schema.U32.pack(number)) or b"")
        self._set_endpoint(number, old[0], self._slot)
        gone = [
            key
            for key, _ in self.maps["policy"].items()
            if schema.POLICY_KEY.unpack(key)[1] == old[1]
        ]
        self.maps["policy"].delete_many(gone)
        self.bump()

    def bump(self) -> None:
        self._epoch += 1
        self.config(schema.Config.EPOCH, self._epoch)

    def config(self, slot: int, value: int) -> None:
        self.maps["config"].set(schema.U32.pack(slot), schema.U64.pack(value))

    def reset(self) -> None:
        """As after `attach`: open policies, nothing tracked, nothing counted."""
        for name in ("conntrack", "counters", "fragments"):
            self.maps[name].delete_many(key for key, _ in self.maps[name].items())
        self.config(schema.Config.FLAGS, 0)
        for name, number in self.numbers.items():
            self.maps["traffic"].set(schema.U32.pack(number), b"")
            self.policy(name, *OPEN)
        self.events()

    def counters(self) -> Counter[tuple[str, Direction, str]]:
        """Packets by (endpoint, direction, reason)."""
        names = {number: name for name, number in self.numbers.items()}
        found: Counter[tuple[str, Direction, str]] = Counter()
        for key, raw in self.maps["counters"].items():
            number, direction, reason, _ = schema.COUNTER_KEY.unpack(key)
            packets = sum(n for n, _ in struct.iter_unpack("=QQ", raw))
            name = names.get(number, "")
            found[name, Direction(direction), NAMES.get(reason, str(reason))] = packets
        for number, name in names.items():
            raw = self.maps["traffic"].get(schema.U32.pack(number)) or b""
            for sent, _, received, _ in struct.iter_unpack("=QQQQ", raw):
                found[name, EGRESS, "FORWARDED"] += sent
                found[name, INGRESS, "FORWARDED"] += received
        return +found

    def drops(self) -> Counter[str]:
        """Dropped packets by reason."""
        told: Counter[str] = Counter()
        for (_, _, reason), packets in self.counters().items():
            if reason not in ("FORWARDED", "TO_PROXY", "EVENTS_LOST"):
                told[reason] += packets
        return told

    def events(self) -> list[dict[str, int | bytes]]:
        """What the ring buffer has, by field."""
        return [
            dict(zip(schema.EVENT.fields, schema.EVENT.unpack(raw), strict=True))
            for raw in self.ring.read()
        ]

    def conntrack(self) -> dict[tuple[str, int, int, int, str], dict[str, int]]:
        """Entries by (endpoint, protocol, own port, peer's port, peer)."""
        names = {number: name for name, number in self.numbers.items()}
        found = {}
        for key, value in self.maps["conntrack"].items():
            number, protocol, _, own, peer_port, peer = schema.CONNTRACK_KEY.unpack(key)
            address = ip_address(peer)
            text = str(getattr(address, "ipv4_mapped", None) or address)
            fields = zip(
                schema.CONNTRACK_VALUE.fields, schema.CONNTRACK_VALUE.unpack(value), strict=True
            )
            found[names[number], protocol, own, peer_port, text] = dict(fields)
        return found


def run_program(program: int, frame: bytes, ifindex: int, netns: str) -> int:
    """What a program answers for a frame that comes by an interface of a namespace."""
    return within(netns, lambda: syscall.run_program(program, frame, ifindex).code)
