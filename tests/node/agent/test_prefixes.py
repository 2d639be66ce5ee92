"""Which identity each prefix has, and what of that has to be written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.agent.prefixes import HOST, Prefixes
from xds.identity import LOCAL_SCOPE

POD, OTHER, CIDR, WIDER = 256, 257, LOCAL_SCOPE + 1, LOCAL_SCOPE + 2


def test_only_what_is_another_is_written() -> None:
    prefixes = Prefixes({"10.0.0.1/32": POD, "10.0.0.2/32": POD, "10.9.0.0/16": CIDR})
    prefixes.set_all({"10.0.0.1": POD, "10.0.0.2": OTHER})
    delta = prefixes.delta()
    assert delta == {"10.0.0.2/32": OTHER, "10.9.0.0/16": None}
    # What could not be written is told again; what was is not.
    assert prefixes.delta() == delta
    prefixes.written({"10.9.0.0/16": None})
    assert prefixes.delta() == {"10.0.0.2/32": OTHER}
    prefixes.written({"10.0.0.2/32": OTHER})
    assert prefixes.delta() == {}


def test_an_address_goes_from_one_identity_to_another() -> None:
    prefixes = Prefixes()
    prefixes.set_all({"10.0.0.1": POD, "fd00::1": POD})
    prefixes.written(prefixes.delta())
    for order in ((POD, OTHER), (OTHER, POD)):
        told = {POD: ["fd00::1"], OTHER: ["10.0.0.1"]}
        for identity in order:
            prefixes.set(identity, told[identity])
        expected = {"10.0.0.1/32": OTHER}
        assert prefixes.delta() == expected
        prefixes.set(OTHER, [])
        prefixes.set(POD, ["10.0.0.1", "fd00::1"])
        assert prefixes.delta() == {}


def test_the_node_s_addresses_are_the_host_s_unless_an_endpoint_has_them() -> None:
    prefixes = Prefixes()
    prefixes.set_own(["192.0.2.1", "192.0.2.2", "fe80::1"])
    prefixes.set_all({"192.0.2.1": POD, "192.0.2.2/32": CIDR, "192.0.2.0/24": WIDER})
    delta = prefixes.delta()
    assert delta == {
        "192.0.2.1/32": POD,
        "192.0.2.2/32": HOST,
        "fe80::1/128": HOST,
        "192.0.2.0/24": WIDER,
    }
    prefixes.written(delta)
    prefixes.set_own(["192.0.2.1"])
    prefixes.set(POD, [])
    assert prefixes.delta() == {"192.0.2.1/32": HOST, "192.0.2.2/32": CIDR, "fe80::1/128": None}


def test_endpoints_tell_no_prefixes_apart() -> None:
    prefixes = Prefixes({"10.0.0.1/32": POD, "10.9.0.0/16": CIDR})
    assert not prefixes.tells_apart({"10.0.0.1/32": OTHER, "10.0.0.2/32": None})
    assert prefixes.tells_apart({"10.9.0.0/16": None})
    assert prefixes.tells_apart({"10.10.0.0/16": WIDER})


ADDRESSES = [f"10.0.0.{n}" for n in range(4)]
STEPS = st.lists(
    st.tuples(st.sampled_from((POD, OTHER, CIDR)), st.sets(st.sampled_from(ADDRESSES)))
    | st.tuples(st.just(HOST), st.sets(st.sampled_from(ADDRESSES))),
    max_size=12,
)


@given(STEPS)
def test_what_is_written_ends_as_what_is_said(steps: list[tuple[int, set[str]]]) -> None:
    prefixes, held = Prefixes(), dict[str, int]()
    said: dict[int, set[str]] = {}
    for identity, addresses in steps:
        if identity == HOST:
            prefixes.set_own(addresses)
        else:
            # An address has one identity: the engine takes it from the one before.
            for other, theirs in list(said.items()):
                if other not in (identity, HOST) and theirs & addresses:
                    said[other] = theirs - addresses
                    prefixes.set(other, said[other])
            prefixes.set(identity, addresses)
        said[identity] = addresses
        delta = prefixes.delta()
        prefixes.written(delta)
        for prefix, number in delta.items():
            if number is None:
                del held[prefix]
            else:
                held[prefix] = number
        expected = {
            f"{address}/32": number
            for number in (CIDR, HOST, OTHER, POD)
            for address in said.get(number, ())
        }
        assert held == expected
