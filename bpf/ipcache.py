"""Whose an address is: the longest prefix that has it tells the identity.

When the map is full, no address is taken for somebody else: the entry that would answer in place
of one that has no room says `UNRESOLVED` from then on, and what goes there is dropped. So a full
map closes the part of the address space that it cannot tell apart, and no other; removing
entries opens it again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bpf.errors import BpfError, IpcacheFull
from bpf.schema import IPCACHE_KEY, U32
from bpf.syscall import Map

WORLD = 2
UNRESOLVED = 0xFFFF_FFFF
"""The identity of addresses that cannot be told apart: nothing passes to or from them."""

EVERYTHING = "::/0"
"""Always in the map, so that there is an entry to close if a prefix has no room."""

_V4 = bytes(10) + b"\xff\xff"


def is_ipv4(raw: bytes) -> bool:
    """True for an IPv4 address in the maps' form."""
    return raw.startswith(_V4)


def address_bytes(text: str) -> bytes:
    """An address in the maps' form; zeros for an empty text. Raises `BpfError`."""
    if not text:
        return bytes(16)
    try:
        packed = ipaddress.ip_address(text).packed
    except ValueError as error:
        raise BpfError(f"{text!r} is not an IP address") from error
    return packed if len(packed) == 16 else _V4 + packed


def address_text(raw: bytes) -> str:
    """An address from the maps' form; empty for zeros."""
    if raw == bytes(16):
        return ""
    if is_ipv4(raw):
        return str(ipaddress.IPv4Address(raw[12:]))
    return str(ipaddress.IPv6Address(raw))


def prefix_key(text: str) -> bytes:
    """The key of an address or a prefix. Raises `BpfError`."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise BpfError(f"{text!r} is not an IP prefix") from error
    packed = network.network_address.packed
    if network.version == 4:
        return IPCACHE_KEY.pack(96 + network.prefixlen, _V4 + packed)
    return IPCACHE_KEY.pack(network.prefixlen, packed)


def prefix_text(key: bytes) -> str:
    """A prefix from its key, always with its length."""
    length, raw = IPCACHE_KEY.unpack(key)
    if length >= 96 and is_ipv4(raw):
        return f"{ipaddress.IPv4Address(raw[12:])}/{length - 96}"
    return f"{ipaddress.IPv6Address(raw)}/{length}"


@dataclass(slots=True)
class Ipcache:
    """The map, and what it says. Not thread-safe: `Datapath` is."""

    map: Map
    _placed: dict[bytes, int] = field(default_factory=dict)
    _homeless: dict[bytes, int] = field(default_factory=dict)
    _closed: set[bytes] = field(default_factory=set)

    def recover(self) -> None:
        """Take over the map as an earlier process left it.

        What that one closed stays so until its entries are told again.
        """
        self._placed = {key: U32.unpack(value)[0] for key, value in self.map.items()}
        self._homeless = {}
        self._closed = {key for key, value in self._placed.items() if value == UNRESOLVED}
        everything = prefix_key(EVERYTHING)
        if everything not in self._placed:
            self._put([], {everything: WORLD})

    def change(self, told: Mapping[str, int | None]) -> bool:
        """Give prefixes identities, or (None) take theirs. True if anything is different.

        Raises `BpfError` for text that is no prefix, before anything is done, and
        `IpcacheFull` when all that fits is in force.
        """
        everything = prefix_key(EVERYTHING)
        wanted = {prefix_key(text): identity for text, identity in told.items()}
        if wanted.get(everything, WORLD) is None:
            wanted[everything] = WORLD
        gone = [k for k, v in wanted.items() if v is None and k in self._placed]
        new = {k: v for k, v in wanted.items() if v is not None and self._placed.get(k) != v}
        if not new and not gone and not self._homeless.keys() & wanted.keys():
            return False
        # What found no room before tries again, after what is told now.
        before = {k: v for k, v in self._homeless.items() if k not in wanted}
        self._put(gone, new | before)
        if self._homeless:
            some = ", ".join(prefix_text(key) for key in list(self._homeless)[:3])
            raise IpcacheFull(
                f"ipcache: {len(self._homeless)} prefixes have no room beside "
                f"{len(self._placed)} ({some} …): they, and what shares a wider entry with them, "
                "are closed: raise bpf-ipcache-max"
            )
        return True

    def _put(self, gone: list[bytes], new: Mapping[bytes, int]) -> None:
        room = self.map.info.max_entries - len(self._placed) + len(gone)
        fitting: dict[bytes, int] = {}
        self._homeless = {}
        for key, identity in new.items():
            added = key not in self._placed
            place = fitting if not added or room > 0 else self._homeless
            place[key] = identity
            room -= added and place is fitting
        for key in gone:
            del self._placed[key]
        self._placed |= fitting
        closed = {self._covering(key) for key in self._homeless}
        # First what closes: nobody is taken for somebody else in between.
        written = fitting.keys() | (self._closed - closed) & self._placed.keys()
        values = {key: UNRESOLVED if key in closed else self._placed[key] for key in written}
        try:
            self._set(dict.fromkeys(closed - self._closed - fitting.keys(), UNRESOLVED))
            self.map.delete_many(gone)
            self._set(values)
        except OSError as error:
            self.recover()
            raise BpfError(f"ipcache: entries cannot be written: {error.strerror}") from error
        self._closed = closed

    def _set(self, entries: Mapping[bytes, int]) -> None:
        self.map.set_many((key, U32.pack(value)) for key, value in entries.items())

    def items(self) -> Iterator[tuple[str, int]]:
        """(prefix, identity) of everything in the map."""
        for key, identity in self._placed.items():
            yield prefix_text(key), identity

    @property
    def entries(self) -> int:
        """How many entries the map has."""
        return len(self._placed)

    def _covering(self, key: bytes) -> bytes:
        length, raw = IPCACHE_KEY.unpack(key)
        number = int.from_bytes(raw, "big")
        for shorter in range(length - 1, -1, -1):
            wide = (number >> (128 - shorter) << (128 - shorter)).to_bytes(16, "big")
            found = IPCACHE_KEY.pack(shorter, wide)
            if found in self._placed:
                return found
        raise AssertionError("the prefix of everything is always there")
