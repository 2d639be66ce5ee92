"""The L4 tables: prefixes of ranges, the greater verdict, audit, and what to write."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.compilation import ALLOW_ALL, EVERY_PORT, ICMP_TYPE, Line, PortKey, Tables, Target
from xds.labels import Operator, Selector, requirement
from xds.mapstate import (
    ANY_IDENTITY,
    MapEntry,
    MapState,
    Verdict,
    map_builder,
    port_prefixes,
)

TCP, UDP, ICMP = 6, 17, 1
A, B = 256, 257
DENY = Line(True, None)


def target(app: str) -> Target:
    return Target(frozenset([Selector(frozenset([requirement("app", Operator.IN, [app])]))]))


MEANT = {target("a"): (A,), target("b"): (B,), target("both"): (A, B), target("none"): ()}


def state(
    ingress: dict[PortKey, list[Line]], would: dict[PortKey, list[Line]] | None = None
) -> MapState:
    def tables(lines: dict[PortKey, list[Line]]) -> Tables:
        return Tables({key: dict.fromkeys(found) for key, found in lines.items()}, {})

    builder = map_builder(tables(ingress), None if would is None else tables(would))
    return builder.state(MEANT.__getitem__)


def tcp(port: int, end_port: int = 0) -> PortKey:
    return PortKey("TCP", port, end_port)


def look(found: MapState, identity: int, port: int, protocol: int = TCP) -> MapEntry:
    return found.lookup(identity, ingress=True, protocol=protocol, port=port)


@given(st.integers(1, 65535), st.integers(0, 65535))
def test_prefixes_of_a_range_are_the_range(first: int, size: int) -> None:
    last = min(first + size, 65535)
    prefixes = list(port_prefixes(tcp(first, last), True))
    assert len(prefixes) <= 30
    starts = [(p.port, p.port + (1 << (24 - p.bits)) - 1) for p in prefixes]
    assert starts[0][0] == first
    assert starts[-1][1] == last
    assert all(one[1] + 1 == other[0] for one, other in pairwise(starts))
    for port in {first, last, first - 1, last + 1, (first + last) // 2}:
        inside = first <= port <= last
        assert any(prefix.covers(TCP, port) for prefix in prefixes) is inside
        assert not any(prefix.covers(UDP, port) for prefix in prefixes)


def test_what_is_not_said_is_denied() -> None:
    found = state({tcp(80): [Line(False, target("a"))]})
    assert look(found, A, 80).passes
    assert not look(found, A, 81).passes
    assert not look(found, A, 80, UDP).passes
    assert not look(found, B, 80).passes
    assert not found.lookup(A, ingress=False, protocol=TCP, port=80).passes


@pytest.mark.parametrize("wide", [EVERY_PORT, tcp(0), tcp(70, 90), tcp(80)])
def test_deny_wins_however_wide_and_whoever_it_is_about(wide: PortKey) -> None:
    for narrow_target, wide_target in (
        (None, target("a")),
        (target("a"), None),
        (target("a"), target("both")),
    ):
        lines: dict[PortKey, list[Line]] = {tcp(80): [Line(False, narrow_target)]}
        lines.setdefault(wide, []).append(Line(True, wide_target))
        assert look(state(lines), A, 80).verdict is Verdict.DENY
        lines = {tcp(80): [Line(True, narrow_target)]}
        lines.setdefault(wide, []).append(Line(False, wide_target))
        assert look(state(lines), A, 80).verdict is Verdict.DENY


def test_a_wider_allow_does_not_go_round_the_parser() -> None:
    found = state(
        {EVERY_PORT: [Line(False, target("a"))], tcp(80): [Line(False, target("both"), "r2d2")]}
    )
    assert look(found, A, 80).redirect == look(found, B, 80).redirect == "r2d2"
    assert look(found, A, 81) == MapEntry(Verdict.ALLOW, Verdict.ALLOW)
    assert not look(found, B, 81).passes


def test_icmp_types_are_ports_and_zero_is_one_of_them() -> None:
    found = state({PortKey("ICMP", ICMP_TYPE + 0, 0): [Line(False, None)]})
    assert look(found, A, 0, ICMP).passes
    assert not look(found, A, 8, ICMP).passes
    assert look(state({EVERY_PORT: [ALLOW_ALL]}), A, 8, ICMP).passes


def test_audit_mode() -> None:
    found = state({EVERY_PORT: [ALLOW_ALL]}, {tcp(80): [Line(False, target("a"), "r2d2")]})
    assert (look(found, A, 80).redirect, look(found, A, 80).audit) == ("r2d2", False)
    assert (look(found, B, 80).redirect, look(found, B, 80).audit) == ("", True)
    assert look(found, A, 81).audit
    denied = state({tcp(80): [DENY]}, {EVERY_PORT: [ALLOW_ALL]})
    assert not look(denied, A, 80).passes
    assert not look(denied, A, 80).audit, "what is denied in any case is no news"


def test_identities_with_equal_tables_share_one() -> None:
    found = state({tcp(80): [Line(False, target("both"))], tcp(81): [Line(False, target("a"))]})
    both = state({tcp(80): [Line(False, target("both"))]})
    assert both.tables[A] is both.tables[B]
    assert found.tables[A] is not found.tables[B]
    assert len(found) == 3
    assert found.pressure == 3 / 16384
    assert [identity for identity, _, _ in found.entries()] == [A, A, B]
    assert ANY_IDENTITY not in found.tables


lines = st.dictionaries(
    st.sampled_from([EVERY_PORT, tcp(0), tcp(80), tcp(80, 95), PortKey("UDP", 53, 0)]),
    st.lists(
        st.builds(Line, st.booleans(), st.sampled_from([None, *MEANT])), min_size=1, max_size=3
    ),
)


@given(lines, lines)
def test_changes_lead_from_one_state_to_the_next(
    before: dict[PortKey, list[Line]], after: dict[PortKey, list[Line]]
) -> None:
    old, new = state(before), state(after)
    held = {(identity, prefix): entry for identity, prefix, entry in old.entries()}
    write, delete = new.changes(old)
    assert all(held.get(key) != entry for key, entry in write.items())
    held |= write
    for key in delete:
        del held[key]
    assert held == {(identity, prefix): entry for identity, prefix, entry in new.entries()}
    assert new.changes(new) == ({}, set())
