"""The L4 policy of an endpoint as tables that a data path can look up in.

The data path makes two look-ups of the longest prefix, in the table of the peer's
identity and in that of `ANY_IDENTITY`, and takes the greater verdict of the two:

    DENY > REDIRECT > ALLOW > NONE, and NONE is denied too.

An entry's prefix covers a protocol and a port (`MapKey.bits`); its verdict is the
greatest of all entries that cover it, so the longest one is enough.  `would` is the
verdict that would be in force if nothing were in audit mode; it is taken in the same
way, and only tells what to log.  Identities with equal tables share one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from xds.compilation import EVERY_PORT, ICMP_TYPE, Line, PortKey, Table, Tables, Target

ANY_IDENTITY = 0
"""The key of the table for whoever it is; what is said there holds beside what is
said to an identity."""

MAX_ENTRIES = 16384
"""Entries that the policy map of one endpoint has room for in Cilium."""

PROTOCOL_NUMBERS = {"": 0, "ICMP": 1, "TCP": 6, "UDP": 17, "ICMPv6": 58, "SCTP": 132}
"""IANA's numbers; 0 stands for every protocol."""

_ICMP = ("ICMP", "ICMPv6")
_PORT_BITS = 16


class Verdict(IntEnum):
    """What becomes of a connection; a greater one wins."""

    NONE = 0
    ALLOW = 1
    REDIRECT = 2
    DENY = 3


class PortPrefix(NamedTuple):
    """Ports of one direction and protocol that agree in their first bits.

    bits: 0: every protocol; 8: every port of `protocol`; 8 + n: those whose first n
    of 16 bits are those of `port`. For ICMP, `port` is the message's type.
    """

    ingress: bool
    protocol: int
    port: int
    bits: int

    def covers(self, protocol: int, port: int) -> bool:
        """True if the prefix has `port` of `protocol` in it."""
        return self.bits == 0 or (
            self.protocol == protocol and (self.port ^ port) >> (8 + _PORT_BITS - self.bits) == 0
        )


class MapEntry(NamedTuple):
    """What an entry says. parser: who judges a redirected connection (or a listener)."""

    verdict: Verdict
    would: Verdict
    parser: str = ""

    def join(self, other: MapEntry) -> MapEntry:
        """What both of them say together."""
        return MapEntry(
            max(self.verdict, other.verdict),
            max(self.would, other.would),
            self.parser or other.parser,
        )

    @property
    def passes(self) -> bool:
        """True if the connection may be made, be it to a proxy."""
        return self.verdict in (Verdict.ALLOW, Verdict.REDIRECT)

    @property
    def redirect(self) -> str:
        """The parser that a connection goes to; empty if it goes to none.

        Also where only a policy in audit mode has L7 rules: its verdicts are logged.
        """
        told = Verdict.REDIRECT in (self.verdict, self.would)
        return self.parser if self.passes and told else ""

    @property
    def audit(self) -> bool:
        """True if it passes, and would not without audit mode."""
        return self.passes and self.would in (Verdict.NONE, Verdict.DENY)


NOTHING = MapEntry(Verdict.NONE, Verdict.NONE)

PortTable: TypeAlias = Mapping[PortPrefix, MapEntry]


@dataclass(frozen=True, slots=True)
class MapState:
    """The tables of one endpoint, by identity."""

    tables: Mapping[int, PortTable] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.tables.values()))

    @property
    def pressure(self) -> float:
        """How full Cilium's map would be with it: 1 and less fits into `MAX_ENTRIES`."""
        return len(self) / MAX_ENTRIES

    def entries(self) -> Iterator[tuple[int, PortPrefix, MapEntry]]:
        """Every entry, in a fixed order."""
        for identity in sorted(self.tables):
            for prefix in sorted(self.tables[identity]):
                yield identity, prefix, self.tables[identity][prefix]

    def lookup(self, identity: int, *, ingress: bool, protocol: int, port: int) -> MapEntry:
        """What the data path finds for a connection, with the two look-ups of above.

        protocol: IANA's number; port: the destination's, or the ICMP type.
        """
        found = NOTHING
        for number in {identity, ANY_IDENTITY}:
            table = self.tables.get(number, {})
            for bits in (*range(8 + _PORT_BITS, 7, -1), 0):
                entry = table.get(_prefix(ingress, protocol, port, bits))
                if entry is not None:
                    found = found.join(entry)
                    break
        return found

    def changes(
        self, before: MapState
    ) -> tuple[dict[tuple[int, PortPrefix], MapEntry], set[tuple[int, PortPrefix]]]:
        """What to write, and what to delete, where `before` is in force.

        Write first: then nothing is denied in between that both of them allow.
        """
        write: dict[tuple[int, PortPrefix], MapEntry] = {}
        delete: set[tuple[int, PortPrefix]] = set()
        for identity in self.tables.keys() | before.tables.keys():
            new, old = self.tables.get(identity, {}), before.tables.get(identity, {})
            if new is old:
                continue
            write |= {(identity, key): e for key, e in new.items() if old.get(key) != e}
            delete |= {(identity, key) for key in old if key not in new}
        return write, delete


def _prefix(ingress: bool, protocol: int, port: int, bits: int) -> PortPrefix:
    if bits == 0:
        return PortPrefix(ingress, 0, 0, 0)
    spare = 8 + _PORT_BITS - bits
    return PortPrefix(ingress, protocol, port >> spare << spare, bits)


def port_prefixes(key: PortKey, ingress: bool) -> Iterator[PortPrefix]:
    """The prefixes that together are the ports of `key`: one, or up to 30 for a range."""
    protocol = PROTOCOL_NUMBERS[key.protocol]
    if key == EVERY_PORT:
        yield PortPrefix(ingress, 0, 0, 0)
    elif key.protocol in _ICMP:
        yield PortPrefix(ingress, protocol, key.port - ICMP_TYPE, 8 + _PORT_BITS)
    elif key.port == 0:
        yield PortPrefix(ingress, protocol, 0, 8)
    else:
        first, last = key.port, key.end_port or key.port
        while first <= last:
            # The largest block that starts at `first` and does not pass `last`.
            size = min(first & -first, 1 << ((last - first + 1).bit_length() - 1))
            yield PortPrefix(ingress, protocol, first, 8 + _PORT_BITS - (size.bit_length() - 1))
            first += size


@dataclass(eq=False)
class MapBuilder:
    """Makes the tables of one subject; those of the same lines it makes once."""

    _said: dict[Target | None, list[tuple[PortPrefix, MapEntry]]]
    _made: dict[frozenset[Target | None], PortTable] = field(default_factory=dict)

    def state(self, identities: Callable[[Target], Iterable[int]]) -> MapState:
        """The tables, if each target means these identities."""
        targets: dict[int, set[Target | None]] = defaultdict(set)
        for target in self._said:
            for number in (ANY_IDENTITY,) if target is None else identities(target):
                targets[number].add(target)
        return MapState({n: self._table(frozenset(told)) for n, told in targets.items()})

    def _table(self, targets: frozenset[Target | None]) -> PortTable:
        """The table of an identity that exactly `targets` mean."""
        found = self._made.get(targets)
        if found is None:
            found = self._made[targets] = _joined(e for key in targets for e in self._said[key])
        return found


def map_builder(enforced: Tables, would_be: Tables | None) -> MapBuilder:
    """The builder for lines; would_be: what would be in force without audit mode."""
    said: dict[Target | None, list[tuple[PortPrefix, MapEntry]]] = defaultdict(list)
    for tables, now, then in ((enforced, True, would_be is None), (would_be, False, True)):
        if tables is None:
            continue
        for ingress, table in ((True, tables.ingress), (False, tables.egress)):
            for prefix, line in _said(table, ingress):
                verdict, parser = _verdict(line)
                entry = MapEntry(
                    verdict if now else Verdict.NONE, verdict if then else Verdict.NONE, parser
                )
                said[line.target].append((prefix, entry))
    return MapBuilder(dict(said))


def _said(table: Table, ingress: bool) -> Iterator[tuple[PortPrefix, Line]]:
    for key, lines in table.items():
        for prefix in port_prefixes(key, ingress):
            for line in lines:
                yield prefix, line


def _verdict(line: Line) -> tuple[Verdict, str]:
    if line.deny:
        return Verdict.DENY, ""
    if line.listener is not None:
        return Verdict.REDIRECT, str(line.listener.name)
    return (Verdict.REDIRECT, line.proto) if line.proto else (Verdict.ALLOW, "")


def _joined(said: Iterable[tuple[PortPrefix, MapEntry]]) -> PortTable:
    """One entry for each prefix, which says what the wider ones say too."""
    own: dict[PortPrefix, MapEntry] = {}
    for prefix, entry in said:
        own[prefix] = own.get(prefix, NOTHING).join(entry)
    joined = {}
    for prefix, entry in own.items():
        for bits in (0, *range(8, prefix.bits)):
            if bits < prefix.bits:
                wider = own.get(_prefix(prefix.ingress, prefix.protocol, prefix.port, bits))
                entry = entry if wider is None else entry.join(wider)
        joined[prefix] = entry
    return joined
