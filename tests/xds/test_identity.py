"""Identity numbers: reserved, stable, counted, released late, never one for two."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from proxylib.errors import ConfigError
from xds.identity import (
    CLUSTER,
    LOCAL,
    LOCAL_SCOPE,
    MAX_IDENTITY,
    Identities,
    MemoryStore,
    Scope,
    free_number,
    parse_labels,
    prefix_labels,
    prefix_of,
)
from xds.labels import LabelSet, label_set, parse_label


def labels(*texts: str) -> LabelSet:
    return label_set(map(parse_label, texts))


A, B, C = labels("a"), labels("b"), labels("c")


class Clock:
    """A clock that stands still until it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_reserved_numbers() -> None:
    names = ["unknown", "host", "world", "unmanaged", "health", "init", "remote-node"]
    sets = [labels(f"reserved:{name}") for name in names]
    assert Identities().acquire(sets) == {s: number for number, s in enumerate(sets)}
    assert Identities().acquire([labels("reserved:host", "k8s:zone=a")]).popitem()[1] == 1
    both = labels("reserved:host", "reserved:kube-apiserver")
    assert Identities().acquire([both]) == {both: 1}
    assert Identities().acquire([labels("reserved:remote-node", "k8s:zone=a")]).popitem()[1] == 256


def test_new_ones_in_sorted_order_and_stable_while_used() -> None:
    identities = Identities()
    assert identities.acquire([C, A, C]) == {A: 256, C: 257}
    assert identities.acquire([B, A]) == {A: 256, B: 258}
    assert identities.number(C) == 257
    assert identities.all()[258] == B


def test_prefixes_have_numbers_of_their_own_scope() -> None:
    prefixes = [ip_network("10.0.0.0/8"), ip_network("fd00::/64")]
    sets = list(map(prefix_labels, prefixes))
    numbers = Identities().acquire([A, *sets])
    assert numbers[A] == 256
    assert sorted(numbers[s] for s in sets) == [LOCAL_SCOPE + 1, LOCAL_SCOPE + 2]
    assert [prefix_of(parse_labels(str(s))) for s in sets] == prefixes
    assert prefix_of(A) is None
    assert MAX_IDENTITY == 0xFFFFFF


def test_released_after_the_delay_and_not_given_to_others_at_once() -> None:
    clock = Clock()
    identities = Identities(delay=10, clock=clock)
    identities.acquire([A, B])
    identities.acquire([A])
    identities.release([A, B])
    clock.now = 9.0
    assert identities.expire() == set()
    assert identities.acquire([B]) == {B: 257}, "in use again, and so not forgotten"
    identities.release([A, B])
    clock.now = 18.0
    assert identities.expire() == set()
    clock.now = 19.0
    assert identities.expire() == {256, 257}
    assert identities.acquire([B, A]) == {A: 258, B: 259}


def test_what_an_earlier_run_left_is_taken_up_or_forgotten() -> None:
    clock, store = Clock(), MemoryStore()
    first = Identities(store)
    assert first.acquire([A, B, prefix_labels(ip_network("10.0.0.0/8"))])[B] == 257
    again = Identities(store, delay=10, clock=clock)
    assert again.acquire([B]) == {B: 257}
    clock.now = 11.0
    again.expire()
    assert store.known(CLUSTER) == {str(B): 257}
    assert store.known(LOCAL) == {}


def test_numbers_come_back_only_when_all_have_been_used() -> None:
    small = Scope("small", 5, 7)
    assert free_number(small, 6, [5]) == 6
    assert free_number(small, 8, [5, 7]) == 6
    with pytest.raises(ConfigError, match="no identity is left: all 3 are in use"):
        free_number(small, 8, [5, 6, 7])


def test_a_store_that_fails_counts_nothing() -> None:
    class Full(MemoryStore):
        full = False

        def numbers(self, scope: Scope, keys: object) -> dict[str, int]:
            if self.full:
                raise ConfigError("full")
            return dict(super().numbers(scope, keys))  # type: ignore[arg-type]

    clock, store = Clock(), Full()
    identities = Identities(store, delay=0, clock=clock)
    identities.acquire([A])
    store.full = True
    with pytest.raises(ConfigError, match="full"):
        identities.acquire([A, B])
    identities.release([A])
    clock.now = 1.0
    assert identities.expire() == {256}, "the use that failed was not counted"
