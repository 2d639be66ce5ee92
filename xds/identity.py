"""Numeric identities: one number for each set of security-relevant labels.

Numbers of workloads are cluster-wide (24 bits). Those of CIDR prefixes are known on
one node only: they have a 24-bit space of their own, told apart by `LOCAL_SCOPE`.

A store remembers which number has which labels, so that they outlive a restart; one
that several nodes share gives all of them the same number.  What nobody uses any
more keeps its number for a while: connections and maps may still carry it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Protocol

from proxylib.errors import ConfigError
from xds.labels import RESERVED, Label, LabelSet, label_set, parse_label
from xds.policy import Prefix

RESERVED_IDENTITIES = {
    "unknown": 0,
    "host": 1,
    "world": 2,
    "unmanaged": 3,
    "health": 4,
    "init": 5,
    "remote-node": 6,
}
"""Cilium's reserved numbers, by the key of their ``reserved:`` label."""

HOST, WORLD = 1, 2

CIDR = "cidr"
"""The source of the label that names an identity's prefix."""

MIN_USER_IDENTITY = 256
MAX_IDENTITY = (1 << 24) - 1
LOCAL_SCOPE = 1 << 24
"""The bit of identities that only this node knows (Cilium's IdentityScopeLocal)."""

RELEASE_DELAY = 600.0
"""Seconds that an identity keeps its number after its last use."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A range of numbers, first and last included."""

    name: str
    first: int
    last: int


CLUSTER = Scope("cluster", MIN_USER_IDENTITY, MAX_IDENTITY)
LOCAL = Scope("local", LOCAL_SCOPE + 1, LOCAL_SCOPE | MAX_IDENTITY)


class Store(Protocol):
    """What remembers numbers. Keys are label sets as text."""

    def numbers(self, scope: Scope, keys: Collection[str]) -> Mapping[str, int]:
        """The number of each of `keys`; new ones get one, in the order given.

        Raises ConfigError if the store cannot be used or has no number left; what
        it has not answered it has not given away.
        """

    def known(self, scope: Scope) -> Mapping[str, int]:
        """What this user of the store has numbered before and not forgotten."""

    def forget(self, scope: Scope, keys: Collection[str]) -> None:
        """Say that this user of the store needs the numbers of `keys` no more."""

    def close(self) -> None:
        """Give up the store."""


class MemoryStore:
    """Remembers as long as it lives."""

    def __init__(self) -> None:
        self._numbers: dict[Scope, dict[str, int]] = {CLUSTER: {}, LOCAL: {}}
        self._next = {scope: scope.first for scope in self._numbers}

    def numbers(self, scope: Scope, keys: Collection[str]) -> Mapping[str, int]:
        known = self._numbers[scope]
        for key in keys:
            if key not in known:
                known[key] = free_number(scope, self._next[scope], known.values())
                self._next[scope] = known[key] + 1
        return {key: known[key] for key in keys}

    def known(self, scope: Scope) -> Mapping[str, int]:
        return dict(self._numbers[scope])

    def forget(self, scope: Scope, keys: Collection[str]) -> None:
        for key in keys:
            self._numbers[scope].pop(key, None)

    def close(self) -> None:
        pass


def free_number(scope: Scope, following: int, taken: Collection[int]) -> int:
    """`following`, or the lowest number of `scope` that is free once that is beyond the last.

    So a number is given anew only when all others have been. Raises ConfigError if
    none is free.
    """
    if following <= scope.last:
        return following
    used = set(taken)
    for number in range(scope.first, scope.last + 1):
        if number not in used:
            return number
    raise ConfigError(f"no identity is left: all {scope.last - scope.first + 1} are in use")


def reserved_labels() -> dict[int, LabelSet]:
    """The label set of each reserved identity."""
    return {
        number: label_set([Label(name, source=RESERVED)])
        for name, number in RESERVED_IDENTITIES.items()
    }


def reserved_number(labels: LabelSet) -> int | None:
    """The reserved identity of `labels`; None if they are not those of one.

    The host is one whatever labels it has besides.
    """
    names = [label.key for label in labels if label.source == RESERVED]
    if "host" in names:
        return RESERVED_IDENTITIES["host"]
    return RESERVED_IDENTITIES.get(names[0]) if names and len(labels.labels) == 1 else None


def prefix_labels(prefix: Prefix) -> LabelSet:
    """The labels of the identity of addresses in `prefix`: its own, and the world's."""
    return label_set([Label(str(prefix), source=CIDR), Label("world", source=RESERVED)])


def prefix_of(labels: LabelSet) -> Prefix | None:
    """The prefix whose identity has `labels`; None if they are not of a prefix."""
    return next((ip_network(label.key) for label in labels if label.source == CIDR), None)


def parse_labels(text: str) -> LabelSet:
    """The label set that ``str`` made `text` of. Raises ValueError if none did."""
    return label_set(map(parse_label, text.split()))


def scope_of(labels: LabelSet) -> Scope:
    """Where the number of `labels` comes from."""
    return LOCAL if any(label.source == CIDR for label in labels) else CLUSTER


class Identities:
    """Numbers for label sets; each use is counted.

    store: where they are remembered; local: where those of prefixes are, if elsewhere.
    delay: seconds that a number is kept after its last use; clock: what time it is.
    Safe to use from several threads.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        local: Store | None = None,
        delay: float = RELEASE_DELAY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        cluster = store or MemoryStore()
        self._stores = {CLUSTER: cluster, LOCAL: local or cluster}
        self._delay, self._clock = delay, clock
        self._lock = threading.RLock()
        self._numbers: dict[LabelSet, int] = {}
        self._labels: dict[int, LabelSet] = {}
        self._uses: Counter[LabelSet] = Counter()
        # By time of release, as dicts keep their order. Text for what an earlier run
        # has left: it may be many, and most of it is taken up again at once.
        self._idle: dict[LabelSet, float] = {}
        now = clock()
        self._left = {scope: (set(s.known(scope)), now) for scope, s in self._stores.items()}

    def acquire(self, sets: Iterable[LabelSet]) -> dict[LabelSet, int]:
        """The identity of each of `sets`, and count a use of each.

        Raises ConfigError if one cannot be had; then nothing is counted.
        """
        wanted = list(sets)
        with self._lock:
            new = {s for s in wanted if s not in self._numbers and reserved_number(s) is None}
            for scope, store in self._stores.items():
                ordered = sorted((s for s in new if scope_of(s) is scope), key=lambda s: s.labels)
                keys = {str(labels): labels for labels in ordered}
                numbers = store.numbers(scope, list(keys)) if keys else {}
                for key, number in numbers.items():
                    self._numbers[keys[key]] = number
                    self._labels[number] = keys[key]
                    self._idle[keys[key]] = self._clock()
                    self._left[scope][0].discard(key)
            for labels in wanted:
                self._uses[labels] += 1
                self._idle.pop(labels, None)
            return {labels: self.number(labels) for labels in wanted}

    def number(self, labels: LabelSet) -> int:
        """The identity of `labels`, which somebody uses. Raises KeyError if nobody does."""
        reserved = reserved_number(labels)
        return self._numbers[labels] if reserved is None else reserved

    def release(self, sets: Iterable[LabelSet]) -> None:
        """Take uses back. A number that has none left is kept until `expire` finds it old."""
        with self._lock:
            for labels in sets:
                self._uses[labels] -= 1
                if self._uses[labels] <= 0:
                    del self._uses[labels]
                    if labels in self._numbers:
                        self._idle[labels] = self._clock()

    def lose(self, keys: Collection[str]) -> None:
        """Forget the numbers of label sets, as text, that others have in the store now."""
        with self._lock:
            for labels in [labels for labels in self._numbers if str(labels) in keys]:
                self._labels.pop(self._numbers.pop(labels), None)
                self._idle.pop(labels, None)

    def expire(self) -> set[int]:
        """Give up what has not been used for the delay; the numbers that are gone.

        Raises ConfigError if the store cannot be told; then none is gone.
        """
        gone: dict[LabelSet, int] = {}
        with self._lock:
            before = self._clock() - self._delay
            for labels, since in self._idle.items():
                if since > before:
                    break
                gone[labels] = self._numbers[labels]
            for scope, store in self._stores.items():
                keys = [str(labels) for labels in gone if scope_of(labels) is scope]
                left, since = self._left[scope]
                old = left if since <= before else set[str]()
                if keys or old:
                    store.forget(scope, [*keys, *old])
                    old.clear()
            for labels in gone:
                del self._idle[labels], self._labels[self._numbers.pop(labels)]
        return set(gone.values())

    def all(self) -> dict[int, LabelSet]:
        """Every identity that has a number here, reserved ones too, also those just released."""
        with self._lock:
            return reserved_labels() | self._labels

    def has(self, number: int) -> bool:
        """True if `number` is of label sets that are, or were until lately, in use here."""
        return number in self._labels or number in RESERVED_IDENTITIES.values()

    def uses(self, labels: LabelSet) -> int:
        """How often `labels` are in use."""
        return self._uses[labels]

    def close(self) -> None:
        """Close the stores."""
        for store in {id(store): store for store in self._stores.values()}.values():
            store.close()
