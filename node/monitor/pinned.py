"""What the eBPF programs know, read from their pinned maps: with an agent, or without.

Rows are plain values, as ``proxylib bpf … list --json`` prints them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bpf import maps, schema
from bpf.conntrack import Connection, connections
from bpf.datapath import read_counters
from bpf.errors import BpfError
from bpf.ipcache import address_text, prefix_text
from bpf.schema import Config, ConntrackFlags, Flags
from bpf.syscall import Map
from node.errors import SetupError

Rows = Iterator[dict[str, Any]]
Maps = Mapping[str, Map]

PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}
VERDICTS = {0: "none", 1: "allow", 2: "redirect", 3: "deny"}
"""xds.mapstate.Verdict; none is denied."""

DIRECTIONS = ("egress", "ingress")
_PROTOCOL_BITS = 8


@contextmanager
def pinned(root: Path) -> Iterator[Maps]:
    """The maps below `root`.

    Raises SetupError with what to do.
    """
    if os.geteuid() != 0:
        raise SetupError("only root may read the programs' maps: sudo proxylib bpf ...")
    try:
        found = maps.folders(root)
        # More than one only while an agent takes over from one with other sizes.
        newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
        opened = {} if newest is None else maps.read_maps(newest)
        if not opened:
            raise SetupError(
                f"no maps are pinned below {root}: no endpoint has had an interface here; or the "
                "agent has another bpf-root (--bpf-root DIR)"
            )
    except (OSError, BpfError) as error:
        raise SetupError(f"{root}: the maps cannot be read: {error}") from error
    try:
        yield opened
    finally:
        maps.close_maps(opened)


def endpoints(opened: Maps) -> Rows:
    """Endpoints with programs: who they are to these."""
    addresses = _addresses(opened)
    for key, value in sorted(_items(opened, "endpoints"), key=lambda item: _number(item[0])):
        identity, slot, _, ifindex = schema.ENDPOINT.unpack(value)
        number = _number(key)
        ipv4, ipv6 = addresses.get(number, ("", ""))
        yield {
            "endpoint": number,
            "identity": identity,
            "slot": slot,
            "ifindex": ifindex,
            "ipv4": ipv4,
            "ipv6": ipv6,
        }


def policies(opened: Maps, wanted: Collection[int] = ()) -> Rows:
    """The policy entries of endpoints (empty: of all), what is narrowest last.

    Endpoints with the same policy share its entries in the map; each has its own rows here.
    """
    # First the endpoints: a policy that is being replaced is then the old one, or incomplete,
    # but never of two.
    users: dict[int, list[int]] = {}
    for row in endpoints(opened):
        if not wanted or row["endpoint"] in wanted:
            users.setdefault(row["slot"], []).append(row["endpoint"])
    found = []
    for key, value in _items(opened, "policy"):
        length, slot, identity, direction, protocol, port = schema.POLICY_KEY.unpack(key)
        bits = length - schema.POLICY_BITS
        for number in users.get(slot, ()):
            found.append((number, -direction, identity, protocol, bits, port, value))
    for number, direction, identity, protocol, bits, port, value in sorted(found):
        verdict, would, _, proxy_port, proxy_port_both = schema.POLICY_VALUE.unpack(value)
        yield {
            "endpoint": number,
            "direction": DIRECTIONS[-direction],
            "identity": identity,
            "protocol": PROTOCOLS.get(protocol, str(protocol)) if bits else "",
            "ports": _ports(port, bits),
            "verdict": VERDICTS.get(verdict, str(verdict)),
            "would": VERDICTS.get(would, str(would)),
            "proxy_port": proxy_port,
            "proxy_port_both": proxy_port_both,
        }


def conntrack(opened: Maps, wanted: Collection[int] = ()) -> Rows:
    """Connections that have not expired, each as an endpoint (of `wanted`) sees it."""
    if "conntrack" not in opened:
        return
    addresses = _addresses(opened)
    counted = bool(_flags(opened) & Flags.ACCOUNTING)
    for found in connections(opened["conntrack"]):
        if not wanted or found.endpoint in wanted:
            yield _connection(found, addresses.get(found.endpoint, ("", "")), counted)


def ipcache(opened: Maps) -> Rows:
    """Whose addresses are."""
    for key, value in sorted(_items(opened, "ipcache"), key=lambda item: item[0][4:]):
        yield {"prefix": prefix_text(key), "identity": _number(value)}


def counters(opened: Maps, wanted: Collection[int] = ()) -> Rows:
    """What was forwarded and dropped, by endpoint, direction and reason."""
    if not {"counters", "endpoints", "traffic"} <= opened.keys():
        return
    found = read_counters(opened)
    for one in sorted(found, key=lambda one: (one.endpoint, one.ingress, one.reason)):
        if not wanted or one.endpoint in wanted:
            yield {
                "endpoint": one.endpoint,
                "direction": DIRECTIONS[one.ingress],
                "reason": reason_text(one.reason),
                "code": one.reason,
                "packets": one.packets,
                "bytes": one.bytes,
            }


def reason_text(number: int) -> str:
    """What became of packets that are counted under a number."""
    known = {
        schema.FORWARDED: "Forwarded",
        schema.TO_PROXY: "Forwarded to the proxy",
        schema.EVENTS_LOST: "Events that nobody took (no drop)",
    }
    return known.get(number) or schema.REASON_TEXTS.get(number, f"unknown reason {number}")


def _connection(found: Connection, own: tuple[str, str], counted: bool) -> dict[str, Any]:
    """From whoever made it to whom it was made; numbers are None if nobody counts."""
    ingress = ConntrackFlags.FROM_PEER in found.flags
    mine = (own[1 if ":" in found.peer else 0], found.own_port, found.own_identity)
    theirs = (found.peer, found.peer_port, found.peer_identity)
    source, destination = (theirs, mine) if ingress else (mine, theirs)
    flags = found.flags & ~(ConntrackFlags.FROM_PEER)
    return {
        "endpoint": found.endpoint,
        "direction": DIRECTIONS[ingress],
        "protocol": PROTOCOLS.get(found.protocol, str(found.protocol)),
        "source": _end(*source),
        "destination": _end(*destination),
        "proxy_port": found.proxy_port,
        "flags": [flag.name.lower() for flag in ConntrackFlags if flag in flags and flag.name],
        "expires": round(found.expires, 1),
        "rx_packets": found.rx_packets if counted else None,
        "rx_bytes": found.rx_bytes if counted else None,
        "tx_packets": found.tx_packets if counted else None,
        "tx_bytes": found.tx_bytes if counted else None,
    }


def _end(address: str, port: int, identity: int) -> dict[str, Any]:
    return {"address": address, "port": port, "identity": identity}


def _ports(port: int, bits: int) -> str:
    """``80``, ``8080-8095``; empty for all."""
    width = 16 - (bits - _PROTOCOL_BITS)
    if width >= 16:
        return ""
    return f"{port}-{port + (1 << width) - 1}" if width else str(port)


def _addresses(opened: Maps) -> dict[int, tuple[str, str]]:
    """IPv4 and IPv6 of each endpoint."""
    links = (schema.LINK.unpack(value) for _, value in _items(opened, "links"))
    return {number: (address_text(v4), address_text(v6)) for number, _, v4, v6 in links}


def _flags(opened: Maps) -> int:
    """What the programs are told to report."""
    raw = opened["config"].get(schema.U32.pack(Config.FLAGS)) if "config" in opened else None
    return 0 if raw is None else int(schema.U64.unpack(raw)[0])


def _items(opened: Maps, name: str) -> list[tuple[bytes, bytes]]:
    return opened[name].items() if name in opened else []


def _number(raw: bytes) -> int:
    number: int = schema.U32.unpack(raw)[0]
    return number
