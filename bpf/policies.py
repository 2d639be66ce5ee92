"""The policy map: each policy under a slot of its own, so that one is replaced as a whole.

A new policy is written under a slot that no endpoint has; then the endpoint is given that slot,
which is one step; then the old slot's entries are deleted. Endpoints with equal policies share
one slot. Slot 0 has no entries: everything is denied.
"""

from __future__ import annotations

import hashlib
import struct
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from bpf.errors import PolicyMapFull
from bpf.schema import POLICY_BITS
from bpf.syscall import Map

DENY_ALL = 0
"""The slot without entries."""

Pair = tuple[bytes, bytes]

# `schema.POLICY_KEY` and `POLICY_VALUE`, but for tens of thousands of entries at a time.
_BEGINNINGS = [struct.pack("=II", POLICY_BITS + bits, 0) for bits in range(25)]
_REST = struct.Struct(">IBBH")
_VALUE = struct.Struct(">BBHHH")


class PolicyEntry(NamedTuple):
    """What is said to a peer about ports of one direction.

    identity: 0: to whoever it is; protocol: IANA's number; port: for ICMP, the type;
    bits: 0: every protocol, 8: every port, 8 + n: the first n bits of the port;
    verdict, would: 0 none, 1 allow, 2 redirect, 3 deny (would: without audit mode);
    proxy_port: of the proxy for this direction, and proxy_port_both: of the one that judges
    for both ends of a connection; 0: there is none.
    """

    identity: int
    ingress: bool
    protocol: int
    port: int
    bits: int
    verdict: int
    would: int
    proxy_port: int = 0
    proxy_port_both: int = 0

    def pair(self) -> Pair:
        """Key (of slot 0) and value."""
        identity, ingress, protocol, port, bits, verdict, would, proxy, both = self
        key = _BEGINNINGS[bits] + _REST.pack(identity, ingress, protocol, port)
        return key, _VALUE.pack(verdict, would, 0, proxy, both)


@dataclass(slots=True)
class _Slot:
    keys: list[bytes]
    digest: bytes
    users: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Policies:
    """What is in the map, and whose it is. Not thread-safe: `Datapath` is."""

    map: Map
    maximum: int
    """Entries that one policy may have."""
    _slots: dict[int, _Slot] = field(default_factory=dict)
    _numbers: dict[bytes, int] = field(default_factory=dict)
    _last: int = DENY_ALL

    def recover(self, used: Collection[tuple[int, int]]) -> None:
        """Take over the map as an earlier process left it.

        used: (endpoint number, slot). What nobody uses is deleted.
        """
        by_slot: dict[int, list[Pair]] = defaultdict(list)
        for key, value in self.map.items():
            by_slot[int.from_bytes(key[4:8], "big")].append((key, value))
        self._last = max([DENY_ALL, *by_slot, *(slot for _, slot in used)])
        wanted = {slot for _, slot in used}
        for slot, pairs in by_slot.items():
            if slot in wanted:
                digest = _digest([(_in_slot(key, 0), value) for key, value in pairs])
                self._slots[slot] = _Slot([key for key, _ in pairs], digest)
                self._numbers[digest] = slot
            else:
                self.map.delete_many(key for key, _ in pairs)
        for number, slot in used:
            if slot in self._slots:
                self._slots[slot].users.add(number)

    def write(self, number: int, entries: Iterable[PolicyEntry]) -> int:
        """The slot under which the entries are; it is `number`'s as well, from now on.

        Raises `PolicyMapFull`; then nothing of them is left in the map.
        """
        pairs = list(dict(entry.pair() for entry in entries).items())
        if not pairs:
            return DENY_ALL
        if len(pairs) > self.maximum:
            raise PolicyMapFull(
                f"endpoint {number}: its policy has {len(pairs)} entries and may have "
                f"{self.maximum}: raise bpf-policy-map-max, or select with fewer labels and ports"
            )
        digest = _digest(pairs)
        slot = self._numbers.get(digest)
        if slot is None:
            slot = self._next()
            keys = [_in_slot(key, slot) for key, _ in pairs]
            try:
                self.map.set_many(zip(keys, (value for _, value in pairs), strict=True))
            except OSError as error:
                self.map.delete_many(keys)
                raise PolicyMapFull(
                    f"endpoint {number}: the policy map ({self.map.info.max_entries} entries for "
                    f"all endpoints) takes no more of its {len(pairs)} entries: {error.strerror}"
                ) from error
            self._slots[slot] = _Slot(keys, digest)
            self._numbers[digest] = slot
        self._slots[slot].users.add(number)
        return slot

    def release(self, number: int, slot: int) -> None:
        """`number` does not use the slot any more; the last one's entries are deleted."""
        found = self._slots.get(slot)
        if found is None:
            return
        found.users.discard(number)
        if not found.users:
            self.map.delete_many(found.keys)
            del self._slots[slot], self._numbers[found.digest]

    @property
    def entries(self) -> int:
        """How many entries the map has."""
        return sum(len(slot.keys) for slot in self._slots.values())

    def _next(self) -> int:
        while True:
            self._last = (self._last + 1) & 0xFFFF_FFFF
            if self._last != DENY_ALL and self._last not in self._slots:
                return self._last


def _in_slot(key: bytes, slot: int) -> bytes:
    return key[:4] + slot.to_bytes(4, "big") + key[8:]


def _digest(pairs: list[Pair]) -> bytes:
    return hashlib.sha256(b"".join(key + value for key, value in sorted(pairs))).digest()
