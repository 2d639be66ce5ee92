"""Which identities each peer of a rule means, kept up to date as identities come and go.

An identity offers handles: its labels, their keys, and every network that its
address lies in.  A peer asks for one of some handles, or for none that an index
could use.  So an identity that comes is tried only on the peers that may mean it,
and a peer that comes only on the identities that it may mean.

`Fqdn` and `Service` peers stand for others (their members), which change at run time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeAlias, TypeVar

from xds.fqdn import Fqdn
from xds.identity import prefix_of
from xds.labels import LabelSet, Operator, Selector
from xds.policy import Cidr, Network, Peer, Prefix, Service, network_of, networks_around

Direct: TypeAlias = Selector | Cidr
Indirect: TypeAlias = Fqdn | Service
_K = TypeVar("_K")
_V = TypeVar("_V")

Handle: TypeAlias = tuple[str, str] | tuple[str] | Network
"""A label's key and value, a label's key, or a network."""


MAX_UNIONS = 1 << 17
"""Remembered unions: some for each rule in force, and some of rules that were."""


def offers(labels: LabelSet) -> Iterator[Handle]:
    """The handles by which a peer may find the identity with `labels`."""
    for label in labels:
        yield (label.key, label.value)
        yield (label.key,)
    prefix = prefix_of(labels)
    if prefix is not None:
        yield from networks_around(prefix)


def asks(peer: Direct) -> Collection[Handle] | None:
    """Handles of which an identity has at least one if `peer` means it; None: not known."""
    if isinstance(peer, Cidr):
        return [network_of(peer.prefix)]
    best: Collection[Handle] | None = None
    for need in peer.requirements:
        if need.operator is Operator.IN:
            found: list[Handle] = [(need.key, value) for value in need.values]
            if best is None or len(found) < len(best):
                best = found
        elif need.operator is Operator.EXISTS and best is None:
            best = [(need.key,)]
    return best


class SelectorCache:
    """The identities of every peer in use. `add` and `remove` count the uses.

    work: how many pairs of a peer and an identity were compared, for tests of what
    a change costs.
    """

    def __init__(self) -> None:
        self.work = 0
        self._labels: dict[int, LabelSet] = {}
        self._prefixes: dict[int, Prefix] = {}
        self._offering: dict[Handle, set[int]] = defaultdict(set)
        self._uses: Counter[Peer] = Counter()
        self._meant: dict[Direct, set[int]] = {}
        self._asking: dict[Handle, set[Direct]] = defaultdict(set)
        self._broad: set[Direct] = set()
        self._prefix_uses: Counter[Prefix] = Counter()
        self._prefixes_touched: set[Prefix] = set()
        self._members: dict[Indirect, frozenset[Direct]] = {}
        self._containing: dict[Direct, set[Indirect]] = defaultdict(set)
        self._unions: dict[frozenset[Peer], tuple[int, ...]] = {}
        self._unions_of: dict[Peer, set[frozenset[Peer]]] = defaultdict(set)

    @property
    def identities(self) -> Mapping[int, LabelSet]:
        """Every identity that can be meant."""
        return self._labels

    def peers(self) -> Mapping[Peer, int]:
        """Every peer in use, and how often."""
        return self._uses

    def prefixes_to_check(self) -> set[Prefix]:
        """The prefixes whose `needs` may be another than when this was last asked."""
        found, self._prefixes_touched = self._prefixes_touched, set()
        return found

    def check_prefixes(self, prefixes: Iterable[Prefix]) -> None:
        """Have `prefixes_to_check` name these too."""
        self._prefixes_touched.update(prefixes)

    def needs(self, prefix: Prefix) -> bool:
        """True if a peer in use tells `prefix` apart, so that it needs an identity."""
        return self._prefix_uses[prefix] > 0

    # Peers.

    def add(self, peer: Peer, members: Iterable[Direct] = ()) -> None:
        """Count a use of `peer`; `members` are those of an Fqdn or Service."""
        self._uses[peer] += 1
        if self._uses[peer] > 1:
            return
        if isinstance(peer, (Fqdn, Service)):
            self._members[peer] = frozenset()
            self.set_members(peer, members)
            return
        handles = asks(peer)
        for handle in handles or ():
            self._asking[handle].add(peer)
        if handles is None:
            self._broad.add(peer)
        self._meant[peer] = self._evaluate(peer, handles)
        self._count_prefixes(peer, 1)

    def remove(self, peer: Peer) -> None:
        """Take one use of `peer` back; the last one forgets it."""
        self._uses[peer] -= 1
        if self._uses[peer]:
            return
        del self._uses[peer]
        self._forget_unions(peer)
        if isinstance(peer, (Fqdn, Service)):
            self.set_members(peer, ())
            del self._members[peer]
            return
        for handle in asks(peer) or ():
            _discard(self._asking, handle, peer)
        self._broad.discard(peer)
        del self._meant[peer]
        self._count_prefixes(peer, -1)

    def _count_prefixes(self, peer: Direct, uses: int) -> None:
        if isinstance(peer, Cidr):
            for prefix in (peer.prefix, *peer.excepts):
                self._prefix_uses[prefix] += uses
                self._prefixes_touched.add(prefix)
                if not self._prefix_uses[prefix]:
                    del self._prefix_uses[prefix]

    def set_members(self, peer: Indirect, members: Iterable[Direct]) -> bool:
        """Say what `peer` stands for now; True if that is something else than before."""
        before, after = self._members[peer], frozenset(members)
        for member in after - before:
            self.add(member)
            self._containing[member].add(peer)
        for member in before - after:
            _discard(self._containing, member, peer)
            self.remove(member)
        self._members[peer] = after
        if before != after:
            self._forget_unions(peer)
        return before != after

    def members(self, peer: Indirect) -> frozenset[Direct]:
        """What `peer` stands for; nothing if it is not in use."""
        return self._members.get(peer, frozenset())

    def select(self, peer: Peer) -> frozenset[int]:
        """The identities that `peer` means, whether it is in use or not."""
        if isinstance(peer, (Fqdn, Service)):
            return frozenset().union(*map(self.select, self.members(peer)))
        meant = self._meant.get(peer)
        return frozenset(self._evaluate(peer, asks(peer)) if meant is None else meant)

    def union(self, peers: frozenset[Peer]) -> tuple[int, ...]:
        """The identities that any of `peers` means, sorted; remembered while they are in use."""
        found = self._unions.get(peers)
        if found is None:
            found = tuple(sorted(frozenset().union(*map(self.select, peers))))
            if all(peer in self._uses for peer in peers):
                if len(self._unions) >= MAX_UNIONS:
                    self._unions.clear()
                    self._unions_of.clear()
                self._unions[peers] = found
                for peer in peers:
                    self._unions_of[peer].add(peers)
        return found

    def _evaluate(self, peer: Direct, handles: Collection[Handle] | None) -> set[int]:
        if handles is None:
            candidates: Iterable[int] = self._labels
        else:
            candidates = set[int]().union(*(self._offering.get(h, ()) for h in handles))
        return {number for number in candidates if self._means(peer, number)}

    def _means(self, peer: Direct, number: int) -> bool:
        self.work += 1
        if isinstance(peer, Selector):
            return peer.matches(self._labels[number])
        prefix = self._prefixes.get(number)
        return prefix is not None and peer.selects(prefix)

    # Identities.

    def identity_came(self, number: int, labels: LabelSet) -> set[Peer]:
        """Take up an identity; the peers that mean it."""
        self._labels[number] = labels
        prefix = prefix_of(labels)
        if prefix is not None:
            self._prefixes[number] = prefix
        candidates = set(self._broad)
        for handle in offers(labels):
            self._offering[handle].add(number)
            candidates |= self._asking.get(handle, set())
        meaning = {peer for peer in candidates if self._means(peer, number)}
        for peer in meaning:
            self._meant[peer].add(number)
        return self._changed(meaning)

    def identity_went(self, number: int) -> set[Peer]:
        """Forget an identity; the peers that meant it."""
        labels = self._labels[number]
        candidates = set(self._broad)
        for handle in offers(labels):
            _discard(self._offering, handle, number)
            candidates |= self._asking.get(handle, set())
        meaning = {peer for peer in candidates if number in self._meant[peer]}
        for peer in meaning:
            self._meant[peer].discard(number)
        del self._labels[number]
        self._prefixes.pop(number, None)
        return self._changed(meaning)

    def _changed(self, direct: set[Direct]) -> set[Peer]:
        changed: set[Peer] = set(direct)
        for peer in direct:
            changed |= self._containing.get(peer, set())
        for each in changed:
            self._forget_unions(each)
        return changed

    def _forget_unions(self, peer: Peer) -> None:
        for union in self._unions_of.pop(peer, ()):
            self._unions.pop(union, None)
            for other in union:
                if other != peer:
                    _discard(self._unions_of, other, union)


def _discard(index: dict[_K, set[_V]], key: _K, value: _V) -> None:
    """Take `value` out of a set of `index`, and an empty set out of the index."""
    found = index.get(key)
    if found is not None:
        found.discard(value)
        if not found:
            del index[key]
