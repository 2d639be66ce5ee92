"""The selector cache says what trying everything would, whatever came and went before."""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.xds.test_labels import requirements, sets
from xds.identity import prefix_labels, prefix_of, reserved_labels
from xds.labels import LabelSet, Selector
from xds.policy import Cidr, Service
from xds.selectors import Direct, SelectorCache

PREFIXES = [
    ip_network(text)
    for text in ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "::/0", "fd00::/8")
]
prefixes = st.sampled_from(PREFIXES)
cidrs = st.builds(Cidr, prefixes, st.lists(prefixes, max_size=2).map(tuple))
direct = st.one_of(st.frozensets(requirements, max_size=3).map(Selector), cidrs)
numbered = st.tuples(st.integers(256, 262), st.one_of(sets, prefixes.map(prefix_labels)))
service = Service("s")
steps = st.one_of(
    st.tuples(st.just("came"), numbered),
    st.tuples(st.just("went"), st.integers(256, 262)),
    st.tuples(st.just("add"), direct),
    st.tuples(st.just("remove"), direct),
    st.tuples(st.just("members"), st.lists(direct, max_size=3)),
)


def means(peer: Direct, labels: LabelSet) -> bool:
    if isinstance(peer, Selector):
        return peer.matches(labels)
    prefix = prefix_of(labels)
    return prefix is not None and peer.selects(prefix)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=20), st.lists(direct, min_size=1, max_size=4))
def test_same_as_trying_all(story: list[tuple[str, object]], asked: list[Direct]) -> None:
    cache = SelectorCache()
    cache.add(service)
    identities: dict[int, LabelSet] = {}
    used: list[Direct] = []
    for number, labels in reserved_labels().items():
        identities[number] = labels
        cache.identity_came(number, labels)

    def meant(peer: Direct) -> set[int]:
        return {number for number, labels in identities.items() if means(peer, labels)}

    for step in story:
        before = {peer: cache.select(peer) for peer in [*used, service]}
        changed = None
        match step:
            case ("came", (int(number), LabelSet() as labels)) if number not in identities:
                identities[number] = labels
                changed = cache.identity_came(number, labels)
            case ("went", int(number)) if number in identities:
                del identities[number]
                changed = cache.identity_went(number)
            case ("add", (Selector() | Cidr()) as peer):
                used.append(peer)
                cache.add(peer)
            case ("remove", (Selector() | Cidr()) as peer) if peer in used:
                used.remove(peer)
                cache.remove(peer)
            case ("members", list(members)):
                cache.set_members(service, members)
        if changed is not None:
            differ = {peer for peer, found in before.items() if cache.select(peer) != found}
            assert differ <= changed
        for peer in {*used, *asked}:
            assert cache.select(peer) == meant(peer)
        members = cache.members(service)
        assert cache.select(service) == set().union(*map(meant, members))
        everything = frozenset([*used, service])
        assert cache.union(everything) == tuple(sorted(set().union(*map(cache.select, everything))))
    needed = {
        p
        for c in {*used, *cache.members(service)}
        if isinstance(c, Cidr)
        for p in (c.prefix, *c.excepts)
    }
    assert {prefix for prefix in PREFIXES if cache.needs(prefix)} == needed
    for peer in used:
        cache.remove(peer)
    cache.remove(service)
    assert not cache.peers()
    assert not cache._asking
    assert not cache._broad
    assert not cache._unions
    assert not cache._unions_of
