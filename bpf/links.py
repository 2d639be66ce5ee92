"""Endpoints' attachments: what the maps say of them, and the interface that each is.

On the node an endpoint is the node's end of a routed veth. In a sidecar it is the endpoint's own
interface, inside its network namespace, and the programs sit on it the other way round.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bpf import conntrack, tc
from bpf.errors import BpfError
from bpf.ipcache import address_bytes, address_text, is_ipv4
from bpf.memory import Memory
from bpf.netlink import netlink
from bpf.netns import within
from bpf.schema import ENDPOINT, LINK, LINK_SIDECAR, U32
from bpf.syscall import Map

PROGRAMS = ("from_endpoint", "to_endpoint")

LAST_NUMBER = 0xFFFF
"""Of an endpoint: the connections' key has 16 bits for it."""

_GONE = "/proc/gone"
"""The path of a sidecar's namespace that nobody remembers."""


@dataclass(frozen=True, slots=True)
class Link:
    """One endpoint's attachment.

    number: the endpoint's, 1 to 65,535; ifindex: the interface's, in the namespace where
    the programs are; ipv4, ipv6: its addresses, empty: none; netns: the path of a
    sidecar's network namespace, empty on the node.
    """

    number: int
    ifindex: int
    ipv4: str = ""
    ipv6: str = ""
    identity: int = 0
    netns: str = ""

    def check(self) -> None:
        """Raises `BpfError` for what cannot be attached."""
        if not 0 < self.number <= LAST_NUMBER:
            raise BpfError(f"endpoint {self.number}: numbers are 1 to {LAST_NUMBER}")
        if self.ifindex <= 0:
            raise BpfError(f"endpoint {self.number}: {self.ifindex} is no interface")
        if not 0 <= self.identity < 1 << 32:
            raise BpfError(f"endpoint {self.number}: {self.identity} is no identity")
        for text, version in ((self.ipv4, 4), (self.ipv6, 6)):
            if text and is_ipv4(address_bytes(text)) != (version == 4):
                raise BpfError(f"endpoint {self.number}: {text} is not an IPv{version} address")

    @property
    def addresses(self) -> list[bytes]:
        """Its addresses in the maps' form."""
        return [address_bytes(text) for text in (self.ipv4, self.ipv6) if text]

    @property
    def key(self) -> bytes:
        """Its key in the map `links`."""
        return U32.pack(LINK_SIDECAR | self.number if self.netns else self.ifindex)


def read(maps: dict[str, Map], memory: Memory) -> dict[int, tuple[Link, int]]:
    """The links that are in the maps, with the slot of each one's policy."""
    endpoints = {
        U32.unpack(key)[0]: ENDPOINT.unpack(value) for key, value in maps["endpoints"].items()
    }
    paths = {n: at.path for at in memory.namespaces.values() for n in at.sidecars}
    found = {}
    for key, value in maps["links"].items():
        number, _, ipv4, ipv6 = LINK.unpack(value)
        if number not in endpoints:
            continue
        identity, slot, _, ifindex = endpoints[number]
        sidecar = U32.unpack(key)[0] & LINK_SIDECAR
        netns = paths.get(number, _GONE) if sidecar else ""
        link = Link(number, ifindex, address_text(ipv4), address_text(ipv6), identity, netns)
        found[number] = (link, slot)
    return found


def write(maps: dict[str, Map], link: Link, slot: int) -> None:
    """Put a link into the maps; the endpoint before what leads to it."""
    write_endpoint(maps, link, slot)
    number = U32.pack(link.number)
    value = LINK.pack(link.number, 0, address_bytes(link.ipv4), address_bytes(link.ipv6))
    try:
        if not link.netns:
            for address in link.addresses:
                maps["addresses"].set(address, number)
        maps["links"].set(link.key, value)
    except OSError as error:
        raise _full(link, error) from error


def write_endpoint(maps: dict[str, Map], link: Link, slot: int) -> None:
    """An endpoint's identity and policy: one step."""
    value = ENDPOINT.pack(link.identity, slot, 0, link.ifindex)
    try:
        maps["endpoints"].set(U32.pack(link.number), value)
    except OSError as error:
        raise _full(link, error) from error


def _full(link: Link, error: OSError) -> BpfError:
    more = "; there are too many endpoints" if error.errno == errno.E2BIG else ""
    return BpfError(f"endpoint {link.number} does not fit into the maps: {error.strerror}{more}")


def erase(maps: dict[str, Map], link: Link, kept: Link | None = None) -> None:
    """Take a link out of the maps, but for what is `kept`'s too."""
    if kept is None or kept.key != link.key:
        maps["links"].delete(link.key)
    left = kept.addresses if kept is not None and not kept.netns else []
    for address in link.addresses:
        # Another endpoint may have taken the address over.
        if address not in left and maps["addresses"].get(address) == U32.pack(link.number):
            maps["addresses"].delete(address)
    if kept is None:
        maps["endpoints"].delete(U32.pack(link.number))
        conntrack.forget(maps, link.number)


def check_interface(link: Link, netns: str) -> None:
    """Raises `BpfError` unless the interface is in `netns` and its packets are routed."""

    def action() -> None:
        with netlink(f"endpoint {link.number}: interface {link.ifindex}") as route:
            (found,) = route.get_links(link.ifindex)
            master = found.get_attr("IFLA_MASTER")
            kind = _kind(route.get_links(master)[0]) if master else ""
        if kind == "bridge":
            name = found.get_attr("IFLA_IFNAME")
            raise BpfError(
                f"endpoint {link.number}: {name} is a port of a bridge, whose packets are not "
                "routed: give the endpoint a veth of its own with a route to its address"
            )

    within(netns, action)


def _kind(interface: Any) -> str:
    info = interface.get_attr("IFLA_LINKINFO")
    return str(info.get_attr("IFLA_INFO_KIND")) if info is not None else ""


def attach(link: Link, programs: Callable[[], tuple[int, int]], name: str, netns: str) -> None:
    """Put programs in their places, unless those of this name are there.

    programs: from_endpoint and to_endpoint, asked for if they are needed.
    """
    wanted = filters(link, name)
    if {*wanted} == {*tc.filters(link.ifindex, netns)}:
        return
    for one, fd in zip(wanted, programs(), strict=True):
        tc.attach(link.ifindex, one.hook, fd, one.name, netns)


def filters(link: Link, name: str) -> list[tc.Filter]:
    """The places of from_endpoint and to_endpoint, with programs of this name."""
    hooks = (tc.Hook.EGRESS, tc.Hook.INGRESS) if link.netns else (tc.Hook.INGRESS, tc.Hook.EGRESS)
    return [
        tc.Filter(link.ifindex, hook, f"{program}/{name}")
        for hook, program in zip(hooks, PROGRAMS, strict=True)
    ]
