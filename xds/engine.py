"""The policy engine: policies x identities to what each endpoint enforces, incrementally.

A subject is what some endpoints have in common: their identity, mode and port names.
The policies that select it are compiled once, to `Tables` of lines whose peers are
still selectors.  `Peers` knows which identities these mean, so that one that comes or
goes touches only the subjects with a line about it, and of these only such lines.

`Engine.change` is the only way to change anything: all of a change is in force when
it returns, or nothing of it is.  What it returns says what others have to send on.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from proxylib.errors import ConfigError
from xds.changes import Change, Changes, EndpointPolicy
from xds.compilation import (
    OPEN,
    Encoder,
    Tables,
    Target,
    conflicts,
    hosts,
    is_enforced,
    names_used,
    network_policy,
    tables,
)
from xds.endpoints import Endpoint
from xds.identity import HOST, Identities, reserved_labels
from xds.labels import LabelSet
from xds.mapstate import MapBuilder, MapState, map_builder
from xds.peers import Peers
from xds.policy import Peer, Policy
from xds.roster import Mode, Roster, SubjectKey, port_names
from xds.selecting import PolicyIndex
from xds.source import DocumentError, Problem
from xds.yamltext import MAX_PROBLEMS

__all__ = ("Change", "Changes", "EndpointPolicy", "Engine")

_OPEN = Tables(OPEN, OPEN)


@dataclass(eq=False, slots=True)
class _Subject:
    """The policy that the endpoints of one key share."""

    key: SubjectKey
    endpoints: set[int] = field(default_factory=set)
    policies: tuple[Policy, ...] = ()
    tables: Tables = _OPEN
    would_be: Tables | None = None
    peers: frozenset[Peer] = frozenset()
    names: frozenset[str] = frozenset()
    encoder: Encoder = field(default_factory=Encoder)
    body: bytes | None = None
    revision: int = 0
    builder: MapBuilder | None = None
    map_state: MapState | None = None


@dataclass(eq=False, slots=True)
class _Step:
    """What a change has touched so far, and what of it there is still to do."""

    rebuild: set[SubjectKey] = field(default_factory=set)
    """Subjects with other policies."""
    renew: set[Peer] = field(default_factory=set)
    """Peers that mean others."""
    emptied: set[SubjectKey] = field(default_factory=set)
    """Subjects that an endpoint has left; those without any go when all is well."""
    before: dict[SubjectKey, tuple[Tables, Tables | None]] = field(default_factory=dict)
    """What subjects said that were compiled anew."""
    endpoints: set[int] = field(default_factory=set)
    maps: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    hosts: set[int] = field(default_factory=set)
    came: dict[int, LabelSet] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)


class Engine:
    """Policies in force. Safe to use from several threads.

    identities: who numbers label sets; it is the caller's to close.
    mode: how endpoints are enforced that have no mode of their own.
    work: counts what changes have cost, by kind, for tests of that.
    """

    def __init__(
        self,
        identities: Identities | None = None,
        *,
        mode: Mode = Mode(),  # noqa: B008 - frozen
    ) -> None:
        self.identities = identities or Identities()
        self.work: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._revision = 0
        self._policies = PolicyIndex()
        self._roster = Roster(mode)
        self._subjects: dict[SubjectKey, _Subject] = {}
        self._of_identity: dict[int, set[SubjectKey]] = defaultdict(set)
        self._of_endpoint: dict[int, SubjectKey] = {}
        # The peers of rules, and the subjects that have such rules.
        self._peers = Peers(self.identities)
        self._about: dict[Peer, set[SubjectKey]] = defaultdict(set)
        self._naming: dict[str, set[SubjectKey]] = defaultdict(set)
        self._remote: dict[int, LabelSet] = {}
        self._own: tuple[str, ...] = ()
        for number, labels in reserved_labels().items():
            self._peers.cache.identity_came(number, labels)

    # What is in force.

    @property
    def revision(self) -> int:
        """How many changes there have been."""
        return self._revision

    @property
    def own_addresses(self) -> frozenset[str]:
        """The addresses of the host itself, as it was told them."""
        return frozenset(self._own)

    @property
    def mode(self) -> Mode:
        """How endpoints are enforced that have no mode of their own."""
        return self._roster.mode

    @property
    def policies(self) -> Mapping[str, tuple[Policy, ...]]:
        """The policies of each document."""
        with self._lock:
            return dict(self._policies.documents)

    @property
    def endpoints(self) -> Mapping[int, Endpoint]:
        """Every endpoint by its number."""
        with self._lock:
            return dict(self._roster.endpoints)

    def policy(self, endpoint: int) -> EndpointPolicy:
        """What an endpoint enforces. Raises KeyError if there is no such endpoint."""
        with self._lock:
            subject = self._subjects[self._of_endpoint[endpoint]]
            enforcement = subject.key.mode.enforcement
            return EndpointPolicy(
                endpoint=self._roster.endpoints[endpoint],
                identity=subject.key.identity,
                mode=subject.key.mode,
                policies=subject.policies,
                tables=subject.tables,
                would_be=subject.would_be,
                ingress_enforced=is_enforced(subject.policies, enforcement, ingress=True),
                egress_enforced=is_enforced(subject.policies, enforcement, ingress=False),
                revision=subject.revision,
                resource=self.resource(endpoint),
            )

    def resource(self, endpoint: int) -> bytes:
        """The serialized cilium.NetworkPolicy of an endpoint. Raises KeyError if there is none."""
        with self._lock:
            subject = self._subjects[self._of_endpoint[endpoint]]
            addresses = self._roster.endpoints[endpoint].addresses
            return network_policy(addresses, endpoint, subject.body or b"")

    def map_state(self, endpoint: int) -> MapState:
        """The L4 policy of an endpoint; endpoints with the same policy share it.

        Raises KeyError if there is no such endpoint.
        """
        with self._lock:
            subject = self._subjects[self._of_endpoint[endpoint]]
            if subject.builder is None:
                subject.builder = map_builder(subject.tables, subject.would_be)
            if subject.map_state is None:
                subject.map_state = subject.builder.state(self.meant)
            return subject.map_state

    def hosts(self, identity: int) -> bytes | None:
        """The cilium.NetworkPolicyHosts of an identity; None if it has no address."""
        with self._lock:
            held = self._addresses_of(identity)
            return hosts(identity, held) if held else None

    def addresses(self) -> dict[str, int]:
        """The identity of every address and prefix that has one (the ipcache)."""
        with self._lock:
            known = {
                address: self._roster.identities[number]
                for number, endpoint in self._roster.endpoints.items()
                for address in endpoint.addresses
            }
            return {str(prefix): n for prefix, n in self._peers.prefixes.items()} | known

    def known_identities(self) -> dict[int, LabelSet]:
        """Every identity that peers can mean: reserved, of endpoints, of prefixes, remote."""
        with self._lock:
            return dict(self._peers.cache.identities)

    def endpoint_at(self, address: str) -> int:
        """The number of the endpoint that has an address; 0 if none has.

        This and the next two are one look into a dict: they never wait for a change.
        """
        return self._roster.owner(address)

    def identity_of(self, endpoint: int) -> int:
        """The identity of an endpoint; 0 if there is no such endpoint."""
        return self._roster.identities.get(endpoint, 0)

    def labels_of(self, identity: int) -> LabelSet | None:
        """The labels of an identity; None if peers cannot mean it."""
        return self._peers.cache.identities.get(identity)

    def select(self, peer: Peer) -> frozenset[int]:
        """The identities that `peer` means now, whether a policy has it or not."""
        with self._lock:
            return self._peers.select(peer)

    def meant(self, target: Target) -> tuple[int, ...]:
        """The identities that the `target` of a line means now, sorted."""
        with self._lock:
            meant = self._peers.cache.union(target.peers)
            if target.named is None:
                return meant
            holders = self._roster.holders(*target.named)
            return tuple(number for number in meant if number in holders)

    def peers(self) -> Mapping[Peer, int]:
        """Every peer of the policies in force, and how many subjects have it."""
        with self._lock:
            return {peer: len(keys) for peer, keys in self._about.items()}

    def sketch(self, endpoints: Mapping[int, Endpoint]) -> Engine:
        """Another engine with the same policies, names, services and mode, to try things in.

        It has only these endpoints, and numbers of its own.
        """
        with self._lock:
            other = Engine(mode=self.mode)
            other.change(
                Change(
                    policies=dict(self._policies.documents),
                    endpoints=dict(endpoints),
                    names={name: self._peers.addresses(name) for name in self._peers.names},
                    services=self._peers.resolve,
                )
            )
            return other

    # Changes.

    def change(self, change: Change) -> Changes:
        """Put a change in force, all of it or nothing.

        Raises DocumentError if rules contradict each other (two parsers on a port),
        and ConfigError if identities cannot be numbered, two endpoints have one
        address, or a bound is passed.
        """
        with self._lock:
            self._roster.check(change.endpoints)
            undo = self._undo(change)
            step = _Step()
            tried = self._tried()
            try:
                self._apply(change, step)
                self._check(step)
                self._settle(step)
            except Exception:
                # Whatever it is: a change is in force whole, or not at all.
                self._apply(undo, step)
                self._settle(step)
                self._finish(step)
                raise
            self._revision += 1
            changes = self._finish(step)
            self.work["selectors tried"] += self._tried() - tried
            return changes

    def _tried(self) -> int:
        return self._peers.cache.work + self._policies.cache.work

    def renumber(self, keys: Collection[str]) -> Changes:
        """Give other numbers to label sets, as text, whose numbers are not theirs any more."""
        with self._lock:
            self.identities.lose(keys)
            found = {n: e for n, e in self._roster.endpoints.items() if str(e.labels) in keys}
            return self.change(Change(endpoints=found))

    def expire(self) -> Changes:
        """Forget the identities that nobody has used for a while."""
        return self.change(Change())

    def _undo(self, change: Change) -> Change:
        """The change that takes `change` back."""
        return Change(
            policies={key: self._policies.documents.get(key, ()) for key in change.policies},
            endpoints={n: self._roster.endpoints.get(n) for n in change.endpoints},
            names={name: self._peers.addresses(name) for name in change.names},
            identities={n: self._remote.get(n) for n in change.identities},
            services=None if change.services is None else self._peers.resolve,
            own=self._own,
            mode=self._roster.mode,
        )

    def _apply(self, change: Change, step: _Step) -> None:
        """Take up what `change` says; which subjects it concerns goes to `step`."""
        new = {n: e for n, e in change.endpoints.items() if e is not None}
        step.renew |= self._peers.learn(change.names)
        # From here on nothing fails that would have to give these back.
        numbers = self.identities.acquire(endpoint.labels for endpoint in new.values())
        for key, policies in change.policies.items():
            for identity in self._policies.put(key, tuple(policies)):
                step.rebuild |= self._of_identity[identity]
        for number, labels in change.identities.items():
            self._set_remote(number, labels, step)
        for number in change.endpoints:
            self._take_away(number, step)
        for number, endpoint in new.items():
            identity = numbers[endpoint.labels]
            self._identity_came(identity, endpoint.labels, step)
            self._roster.put(number, endpoint, identity)
            step.hosts.add(identity)
            step.endpoints.add(number)
            step.rebuild |= self._users_of(endpoint)
            self._place(number, step)
        if change.mode is not None and change.mode != self._roster.mode:
            self._roster.mode = change.mode
            for number in self._roster.endpoints:
                self._place(number, step)
        if change.services is not None:
            step.renew |= self._peers.set_services(change.services)
        if change.own is not None:
            self._own = tuple(sorted(change.own))
            step.hosts.add(HOST)

    def _set_remote(self, number: int, labels: LabelSet | None, step: _Step) -> None:
        before = self._remote.pop(number, None)
        if labels is not None:
            self._remote[number] = labels
        if labels is not None:
            self._identity_came(number, labels, step)
        elif before is not None and not self.identities.has(number):
            self._identity_went(number, step)

    def _take_away(self, number: int, step: _Step) -> None:
        if number not in self._roster.endpoints:
            return
        identity = self._roster.identities[number]
        endpoint = self._roster.pop(number)
        step.rebuild |= self._users_of(endpoint)
        step.hosts.add(identity)
        step.removed.add(number)
        step.endpoints.discard(number)
        self._leave(number, self._of_endpoint.pop(number), step)
        self.identities.release([endpoint.labels])

    def _place(self, number: int, step: _Step) -> None:
        """Give an endpoint the subject that it belongs to."""
        key, before = self._roster.key(number), self._of_endpoint.get(number)
        if key == before:
            return
        step.endpoints.add(number)
        if self._policies.came(key.identity, self._roster.endpoints[number].labels):
            step.rebuild |= self._of_identity[key.identity]
        if key not in self._subjects:
            self._subjects[key] = _Subject(key)
            self._of_identity[key.identity].add(key)
            step.rebuild.add(key)
        self._subjects[key].endpoints.add(number)
        self._of_endpoint[number] = key
        if before is not None:
            self._leave(number, before, step)

    def _leave(self, number: int, key: SubjectKey, step: _Step) -> None:
        self._subjects[key].endpoints.discard(number)
        step.emptied.add(key)

    def _drop(self, key: SubjectKey) -> None:
        self._set_uses(self._subjects.pop(key), frozenset(), frozenset())
        self._of_identity[key.identity].discard(key)
        if not self._of_identity[key.identity]:
            del self._of_identity[key.identity]
            self._policies.went(key.identity)

    def _users_of(self, endpoint: Endpoint) -> set[SubjectKey]:
        """The subjects with rules about ports by a name that `endpoint` has for one."""
        return set[SubjectKey]().union(*(self._naming.get(p.name, ()) for p in endpoint.ports))

    def _identity_came(self, number: int, labels: LabelSet, step: _Step) -> None:
        known = self._peers.cache.identities.get(number)
        if known == labels:
            return
        if known is not None:
            # The host: it has a number before anybody knows its other labels.
            self._identity_went(number, step)
        step.renew |= self._peers.cache.identity_came(number, labels)
        step.came[number] = labels
        step.gone.discard(number)

    def _identity_went(self, number: int, step: _Step) -> None:
        step.renew |= self._peers.cache.identity_went(number)
        step.came.pop(number, None)
        step.gone.add(number)

    # What follows from a change.

    def _check(self, step: _Step) -> None:
        """Raise DocumentError if a subject that is to be rebuilt has contradicting rules."""
        problems: list[Problem] = []
        for key in step.rebuild:
            if self._subjects[key].endpoints:
                policies = self._policies.selecting(key.identity)
                problems += islice(conflicts(policies, port_names(key.ports)), MAX_PROBLEMS)
        if problems:
            raise DocumentError(dict.fromkeys(problems))

    def _settle(self, step: _Step) -> None:
        """Compile the subjects that are to be rebuilt, and number the prefixes they tell apart."""
        for key in step.rebuild:
            if self._subjects[key].endpoints:
                self._compile(self._subjects[key], step)
        self._number_prefixes(step)
        for key in step.emptied:
            if not self._subjects[key].endpoints:
                self._drop(key)
        # What only those had who are gone now is given up: that cannot fail.
        self._number_prefixes(step)
        step.emptied.clear()
        step.rebuild &= self._subjects.keys()

    def _number_prefixes(self, step: _Step) -> None:
        came, unneeded = self._peers.number_prefixes()
        for number, labels in came.items():
            self._identity_came(number, labels, step)
        step.hosts.update(came, unneeded.values())

    def _compile(self, subject: _Subject, step: _Step) -> None:
        key = subject.key
        self.work["subjects compiled"] += 1
        step.before.setdefault(key, (subject.tables, subject.would_be))
        subject.policies = policies = self._policies.selecting(key.identity)
        subject.names = names_used(policies)
        peer_ports = self._roster.peer_ports() if subject.names else {}
        own_ports = port_names(key.ports)

        def compiled(of: Sequence[Policy]) -> Tables:
            enforcement = key.mode.enforcement
            return tables(of, enforcement, own_ports=own_ports, peer_ports=peer_ports)

        enforced = [policy for policy in policies if not policy.audit]
        full = compiled(policies)
        if key.mode.audit:
            subject.tables, subject.would_be = _OPEN, full
        elif len(enforced) < len(policies):
            subject.tables, subject.would_be = compiled(enforced), full
        else:
            subject.tables, subject.would_be = full, None
        subject.builder = subject.map_state = None
        self._set_uses(subject, _peers_of(subject), subject.names)

    def _set_uses(self, subject: _Subject, peers: frozenset[Peer], names: frozenset[str]) -> None:
        for peer in peers - subject.peers:
            self._peers.add(peer)
            self._about[peer].add(subject.key)
        for peer in subject.peers - peers:
            self._peers.remove(peer)
            self._about[peer].discard(subject.key)
            if not self._about[peer]:
                del self._about[peer]
        for name in subject.names - names:
            self._naming[name].discard(subject.key)
        for name in names:
            self._naming[name].add(subject.key)
        subject.peers, subject.names = peers, names

    def _finish(self, step: _Step) -> Changes:
        """Write what has changed. Nothing in here can fail."""
        # A store that cannot be told of it now is told the next time.
        with suppress(ConfigError):
            for number in self.identities.expire() - self._remote.keys():
                if number in self._peers.cache.identities:
                    self._identity_went(number, step)
        stale = set(step.rebuild)
        for peer in step.renew:
            stale |= self._about.get(peer, set())
        for key in stale & self._subjects.keys():
            subject = self._subjects[key]
            self.work["subjects written"] += 1
            subject.map_state = None
            step.maps |= subject.endpoints
            written = subject.encoder.written
            body = subject.encoder.body(subject.tables, subject.would_be, self.meant)
            self.work["lines written"] += subject.encoder.written - written
            now = (subject.tables, subject.would_be)
            if body != subject.body or step.before.get(key, now) != now:
                subject.revision = self._revision
            if body != subject.body:
                subject.body = body
                step.endpoints |= subject.endpoints
        return Changes(
            revision=self._revision,
            endpoints=frozenset(step.endpoints & self._roster.endpoints.keys()),
            removed=frozenset(step.removed - self._roster.endpoints.keys()),
            hosts=frozenset(step.hosts),
            came=step.came,
            gone=frozenset(step.gone),
            maps=frozenset((step.endpoints | step.maps) & self._roster.endpoints.keys()),
        )

    def _addresses_of(self, identity: int) -> list[str]:
        prefix = self._peers.prefix_of(identity)
        named = [] if prefix is None else [str(prefix)]
        own = self._own if identity == HOST else ()
        return [*named, *own, *self._roster.addresses(identity)]


def _peers_of(subject: _Subject) -> frozenset[Peer]:
    """Every peer that a line of `subject` is about."""
    compiled = (subject.tables, subject.would_be or ())
    return frozenset(
        peer
        for both in compiled
        for table in both
        for lines in table.values()
        for line in lines
        if line.target is not None
        for peer in line.target.peers
    )
