"""Identities of addresses: exact ones, ranges by longest prefix, and what is refused."""

from __future__ import annotations

import pytest

from proxylib.errors import PolicyError
from proxylib.hosts import UNKNOWN, WORLD, HostMap, compile_hosts
from proxylib.proto import npds_pb2 as npds


def hosts(**identities: list[str]) -> list[bytes]:
    return [
        npds.NetworkPolicyHosts(policy=int(name[1:]), host_addresses=given).SerializeToString()
        for name, given in identities.items()
    ]


def test_identity() -> None:
    given = hosts(
        i100=["10.0.0.1", "fd00::1"],
        i200=["10.0.0.0/24", "10.0.0.9/32"],
        i300=["10.0.0.128/25", "fd00::/64"],
        i400=["0.0.0.0/1"],
    )
    table = compile_hosts(given, version="1")
    expected = {
        "10.0.0.1": 100,
        "fd00::1": 100,
        "fd00:0:0::1": 100,
        "10.0.0.2": 200,
        "10.0.0.9": 200,
        "10.0.0.200": 300,
        "fd00::2": 300,
        "11.0.0.1": 400,
        "200.0.0.1": WORLD,
        "::1": WORLD,
        "not an address": UNKNOWN,
    }
    for _ in range(2):
        assert {address: table.identity(address) for address in expected} == expected


def test_nothing_is_known_before_the_first_response() -> None:
    assert HostMap().identity("10.0.0.1") == UNKNOWN


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([b"\xff\xff"], "not a cilium.NetworkPolicyHosts"),
        (hosts(i1=["10.0.0.300"]), "identity 1: .*10.0.0.300"),
        (hosts(i1=["10.0.0.1/24"]), "identity 1: .*host bits"),
        (hosts(i1=["10.0.0.1"], i2=["10.0.0.1"]), "identity 2: 10.0.0.1 has an identity already"),
        (hosts(i1=["10.0.0.0/8"], i2=["10.0.0.0/8"]), "identity 2: 10.0.0.0/8 has an identity"),
        (hosts(i4294967296=["10.0.0.1"]), "does not fit 32 bits"),
    ],
)
def test_refused(given: list[bytes], reason: str) -> None:
    with pytest.raises(PolicyError, match=reason):
        compile_hosts(given, version="1")
