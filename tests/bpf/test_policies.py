from __future__ import annotations

from collections.abc import Iterator

import pytest

from bpf import syscall
from bpf.errors import PolicyMapFull
from bpf.policies import DENY_ALL, Policies, PolicyEntry
from bpf.schema import MAPS, POLICY_KEY, POLICY_VALUE
from bpf.syscall import Map


@pytest.fixture
def table(privileged: None) -> Iterator[Map]:
    spec = MAPS["policy"]
    made = Map(
        syscall.create_map(spec.type, spec.key.size, spec.value.size, 100, spec.flags, "policy")
    )
    yield made
    made.close()


def entries(count: int, first: int = 1) -> list[PolicyEntry]:
    return [PolicyEntry(n, True, 6, 80, 24, 1, 1) for n in range(first, first + count)]


def lookup(table: Map, slot: int, identity: int, ingress: bool, protocol: int, port: int) -> object:
    """What a program finds: the longest prefix."""
    found = table.get(POLICY_KEY.pack(96, slot, identity, ingress, protocol, port))
    return found and POLICY_VALUE.unpack(found)


def test_prefixes_mean_what_the_policy_says(table: Map) -> None:
    slot = Policies(table, 100).write(
        1,
        [
            PolicyEntry(7, True, 6, 8080, 24, 2, 2, 10001, 10002),
            PolicyEntry(7, True, 6, 0x1F00, 16, 1, 1),
            PolicyEntry(7, True, 6, 0, 8, 3, 1),
            PolicyEntry(7, True, 0, 0, 0, 0, 3),
            PolicyEntry(7, False, 58, 128, 24, 1, 1),
        ],
    )
    assert lookup(table, slot, 7, True, 6, 8080) == [2, 2, 0, 10001, 10002]
    assert lookup(table, slot, 7, True, 6, 0x1FFF) == [1, 1, 0, 0, 0]
    assert lookup(table, slot, 7, True, 6, 0x2000) == [3, 1, 0, 0, 0]
    assert lookup(table, slot, 7, True, 17, 8080) == [0, 3, 0, 0, 0]
    assert lookup(table, slot, 7, False, 58, 128) == [1, 1, 0, 0, 0]
    assert lookup(table, slot, 7, False, 58, 129) is None
    assert lookup(table, slot, 8, True, 6, 8080) is None
    assert lookup(table, slot + 1, 7, True, 6, 8080) is None


def test_shared_by_what_they_say(table: Map) -> None:
    policies = Policies(table, 100)
    one = policies.write(1, entries(5))
    assert policies.write(2, entries(5)[::-1]) == one
    other = policies.write(3, entries(5, first=2))
    assert other not in (one, DENY_ALL)
    assert policies.entries == table.count() == 10
    policies.release(1, one)
    assert table.count() == 10
    policies.release(2, one)
    policies.release(2, one)
    assert policies.entries == table.count() == 5
    assert policies.write(4, []) == DENY_ALL


def test_taken_over(table: Map) -> None:
    first = Policies(table, 100)
    used, unused = first.write(1, entries(5)), first.write(2, entries(7))
    second = Policies(table, 100)
    second.recover([(1, used), (9, 77)])
    assert second.entries == table.count() == 5
    assert second.write(1, entries(5)) == used
    assert second.write(3, entries(7)) not in (used, unused, 77)
    second.release(1, used)
    assert table.count() == 7


def test_slots_do_not_run_out(table: Map) -> None:
    policies = Policies(table, 100)
    kept = policies.write(1, entries(1))
    policies._last = 0xFFFF_FFFE
    assert policies.write(2, entries(2)) == 0xFFFF_FFFF
    assert policies.write(3, entries(3)) == kept + 1


def test_nothing_is_left_of_what_does_not_fit(table: Map) -> None:
    policies = Policies(table, 90)
    with pytest.raises(PolicyMapFull, match="has 91 entries and may have 90"):
        policies.write(1, entries(91))
    kept = policies.write(2, entries(80))
    with pytest.raises(PolicyMapFull, match=r"the policy map \(100 entries for all endpoints\)"):
        policies.write(1, entries(50, first=1000))
    assert table.count() == 80
    policies.release(2, kept)
    assert policies.write(1, entries(50, first=1000)) != DENY_ALL
