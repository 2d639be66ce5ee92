"""Who is meant by the peers of rules: labels, prefixes, DNS names and services.

Prefixes that peers tell apart have identities of their own, of this node alone; so
what is learnt of a name or a service comes to the policies as identities that come
and go.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TypeAlias

from proxylib.errors import ConfigError
from xds.fqdn import Fqdn, normal_name
from xds.identity import Identities, prefix_labels, prefix_of
from xds.labels import LabelSet
from xds.policy import Cidr, Peer, Prefix, Service
from xds.selectors import Direct, Indirect, SelectorCache

Address: TypeAlias = IPv4Address | IPv6Address

Resolve: TypeAlias = Callable[[Service], Iterable[Direct]]
"""The peers that a service stands for at this moment."""

MAX_NAMES = 10_000
"""DNS names that are remembered at a time."""

MAX_ADDRESSES = 1_000
"""Addresses of one DNS name that are remembered at a time."""

MAX_PREFIXES = 65_536
"""Prefixes that have identities at a time; a name's and a service's addresses count too."""


class Peers:
    """The peers in use, and whom they mean.

    identities: who numbers prefixes. resolve: what a service stands for.
    """

    def __init__(self, identities: Identities) -> None:
        self.cache = SelectorCache()
        self._identities = identities
        self.resolve: Resolve = lambda service: ()
        self._names: dict[str, frozenset[Address]] = {}
        # The names that each Fqdn in use matches.
        self._matched: dict[Fqdn, set[str]] = {}
        self._services: set[Service] = set()
        self._prefixes: dict[Prefix, int] = {}

    @property
    def names(self) -> Mapping[str, frozenset[Address]]:
        """The addresses of every DNS name that is known."""
        return self._names

    @property
    def prefixes(self) -> Mapping[Prefix, int]:
        """The prefixes that have an identity, and which."""
        return self._prefixes

    def addresses(self, name: str) -> frozenset[Address]:
        """The addresses that a DNS name is known to have."""
        return self._names.get(normal_name(name), frozenset())

    def prefix_of(self, identity: int) -> Prefix | None:
        """The prefix in use that has `identity`."""
        labels = self.cache.identities.get(identity)
        prefix = None if labels is None else prefix_of(labels)
        return prefix if prefix in self._prefixes else None

    def add(self, peer: Peer) -> None:
        """Count a use of `peer`."""
        if isinstance(peer, Fqdn) and peer not in self._matched:
            self._matched[peer] = {name for name in self._names if peer.matches(name)}
        if isinstance(peer, Service):
            self._services.add(peer)
        members = self.members(peer) if isinstance(peer, (Fqdn, Service)) else ()
        self.cache.add(peer, members)

    def remove(self, peer: Peer) -> None:
        """Take a use of `peer` back."""
        self.cache.remove(peer)
        if peer not in self.cache.peers():
            if isinstance(peer, Fqdn):
                del self._matched[peer]
            if isinstance(peer, Service):
                self._services.discard(peer)

    def members(self, peer: Indirect) -> frozenset[Direct]:
        """What `peer` stands for by what is known now, whether it is in use or not."""
        if isinstance(peer, Service):
            return frozenset(self.resolve(peer))
        names = self._matched.get(peer)
        if names is None:
            names = {name for name in self._names if peer.matches(name)}
        return frozenset(Cidr(ip_network(a)) for name in names for a in self._names[name])

    def select(self, peer: Peer) -> frozenset[int]:
        """The identities that `peer` means now, whether it is in use or not."""
        if isinstance(peer, (Fqdn, Service)):
            return frozenset[int]().union(*map(self.cache.select, self.members(peer)))
        return self.cache.select(peer)

    def learn(self, names: Mapping[str, Collection[Address]]) -> set[Peer]:
        """Take up what DNS names have for addresses; the peers that mean others now.

        Raises ConfigError past a bound; then nothing is taken up.
        """
        known = {normal_name(name): frozenset(found) for name, found in names.items()}
        for name, found in known.items():
            if len(found) > MAX_ADDRESSES:
                raise ConfigError(f"{name}: more than {MAX_ADDRESSES} addresses")
        after = (self._names.keys() | known.keys()) - {n for n, found in known.items() if not found}
        if len(after) > max(MAX_NAMES, len(self._names)):
            raise ConfigError(f"more than {MAX_NAMES} DNS names are known; some must expire first")
        touched: set[Fqdn] = set()
        for name, found in known.items():
            if found == self._names.get(name, frozenset()):
                continue
            asking = [fqdn for fqdn in self._matched if fqdn.matches(name)]
            touched.update(asking)
            if found:
                self._names[name] = found
                for fqdn in asking:
                    self._matched[fqdn].add(name)
            else:
                del self._names[name]
                for fqdn in asking:
                    self._matched[fqdn].discard(name)
        return self._renew(touched)

    def set_services(self, resolve: Resolve) -> set[Peer]:
        """Resolve every service in use anew; the peers that mean others now."""
        self.resolve = resolve
        return self._renew(self._services)

    def _renew(self, peers: Iterable[Indirect]) -> set[Peer]:
        return {peer for peer in peers if self.cache.set_members(peer, self.members(peer))}

    def number_prefixes(self) -> tuple[dict[int, LabelSet], dict[Prefix, int]]:
        """Give identities to the prefixes that peers tell apart: the new ones by number,
        and those that are needed no more, which keep theirs for a while.

        Raises ConfigError if one cannot be had, or a bound is passed; the next call tries
        again.
        """
        touched = self.cache.prefixes_to_check()
        new = [p for p in touched if self.cache.needs(p) and p not in self._prefixes]
        old = [p for p in touched if not self.cache.needs(p) and p in self._prefixes]
        try:
            if len(new) > len(old) and len(self._prefixes) + len(new) - len(old) > MAX_PREFIXES:
                raise ConfigError(
                    f"more than {MAX_PREFIXES} prefixes (CIDRs, their exceptions, and "
                    "addresses of DNS names and services) are told apart"
                )
            numbers = self._identities.acquire(map(prefix_labels, new))
        except ConfigError:
            self.cache.check_prefixes(touched)
            raise
        came: dict[int, LabelSet] = {}
        for prefix in new:
            labels = prefix_labels(prefix)
            self._prefixes[prefix] = numbers[labels]
            came[numbers[labels]] = labels
        unneeded = {prefix: self._prefixes.pop(prefix) for prefix in old}
        self._identities.release(map(prefix_labels, unneeded))
        return came, unneeded
