"""What policies are made of: prefixes, and the entities that are selectors."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.entities import ENTITIES
from xds.identity import RESERVED_IDENTITIES, reserved_labels
from xds.labels import Selector, label_set, parse_label
from xds.policy import Cidr

prefixes = st.builds(
    lambda value, length: IPv4Network((value, length), strict=False),
    st.integers(0, 255).map(lambda low: (10 << 24) + low),
    st.integers(22, 32),
)


def test_a_cidr_without_its_parts() -> None:
    cidr = Cidr(ip_network("10.0.0.0/8"), (ip_network("10.96.0.0/12"),))
    assert cidr.selects(ip_network("10.0.0.0/8"))
    assert cidr.selects(ip_network("10.1.0.0/16"))
    assert not cidr.selects(ip_network("10.96.0.0/12"))
    assert not cidr.selects(ip_network("10.97.0.0/16"))
    assert not cidr.selects(ip_network("0.0.0.0/0"))
    assert not cidr.selects(ip_network("2001:db8::/32"))
    assert not Cidr(ip_network("0.0.0.0/0")).selects(ip_network("::/0"))
    assert str(cidr) == "10.0.0.0/8 except 10.96.0.0/12"


@given(prefixes, st.lists(prefixes, max_size=3), st.lists(prefixes, max_size=4))
def test_an_address_is_that_of_its_longest_prefix(
    whole: IPv4Network, parts: list[IPv4Network], others: list[IPv4Network]
) -> None:
    """Whatever other prefixes have identities, an address is in or out as the rule says."""
    cidr = Cidr(whole, tuple(part for part in parts if part.subnet_of(whole)))
    known = {whole, *cidr.excepts, *others}
    for low in range(0, 256, 5):
        address = IPv4Address((10 << 24) + low)
        holders = [prefix for prefix in known if address in prefix]
        longest = max(holders, key=lambda prefix: prefix.prefixlen, default=None)
        said = address in whole and not any(address in part for part in cidr.excepts)
        assert (longest is not None and cidr.selects(longest)) == said


def test_thousands_of_exceptions() -> None:
    """Each has an identity, which is asked about: that must not be every one times every one."""
    parts = list(ip_network("10.0.0.0/8").subnets(new_prefix=23))[:-1]
    cidr = Cidr(ip_network("10.0.0.0/8"), tuple(parts))
    assert not any(map(cidr.selects, parts))
    assert cidr.selects(ip_network("10.255.254.0/23"))
    meant = {Cidr(ip_network("10.0.0.0/8"), tuple(parts)): n for n in range(100)}
    assert meant == {cidr: 99}


@pytest.mark.parametrize(
    ("entity", "reserved"),
    [
        ("none", set()),
        ("world", {"world"}),
        ("host", {"host"}),
        ("remote-node", {"remote-node"}),
        ("health", {"health"}),
        ("init", {"init"}),
        ("unmanaged", {"unmanaged"}),
        ("cluster", {"host", "remote-node", "health", "init", "unmanaged"}),
    ],
)
def test_entities_select_reserved_identities(entity: str, reserved: set[str]) -> None:
    names = {number: name for name, number in RESERVED_IDENTITIES.items()}
    selectors = ENTITIES[entity]
    assert selectors is not None
    found = {
        names[number]
        for number, labels in reserved_labels().items()
        if any(isinstance(s, Selector) and s.matches(labels) for s in selectors)
    }
    assert found == reserved


def test_the_cluster_is_every_endpoint_of_this_one() -> None:
    selectors = ENTITIES["cluster"] or ()

    def selected(*texts: str) -> bool:
        labels = label_set(map(parse_label, texts))
        return any(isinstance(s, Selector) and s.matches(labels) for s in selectors)

    assert selected("app=x")
    assert selected("app=x", "k8s:io.cilium.k8s.policy.cluster=default")
    assert not selected("app=x", "k8s:io.cilium.k8s.policy.cluster=other")
    assert not selected("cidr:10.0.0.0/8", "reserved:world")
    assert selected("reserved:kube-apiserver")
    assert ENTITIES["all"] is None, "anybody at all"
    assert ENTITIES["world-ipv4"] == (Cidr(ip_network("0.0.0.0/0")),)
    assert ENTITIES["world-ipv6"] == (Cidr(ip_network("::/0")),)
