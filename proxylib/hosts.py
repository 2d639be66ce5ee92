"""Which numeric identity an address has: NPHDS resources, compiled for look-up.

An address that no resource names belongs to identity `WORLD`.  Ranges (CIDRs)
are looked up by longest prefix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from proxylib.errors import PolicyError
from proxylib.proto import npds_pb2 as npds

UNKNOWN = 0
WORLD = 2

_MAX_CACHED = 1 << 16
"""Remembered answers for addresses that only a range or nothing covers."""


@dataclass(eq=False)
class HostMap:
    """Address to identity at one version. Immutable but for its cache."""

    version: str = ""
    addresses: dict[str, int] = field(default_factory=dict)
    ranges: dict[int, dict[int, dict[int, int]]] = field(default_factory=dict)
    """IP version -> prefix length -> network as a number -> identity."""

    def identity(self, address: str) -> int:
        """The identity of `address` (an IP without a port).

        UNKNOWN before the first response, WORLD for an address in none of them.
        """
        known = self.addresses.get(address)
        if known is None:
            if not self.version:
                return UNKNOWN
            known = self._search(address)
            if len(self.addresses) < _MAX_CACHED:
                self.addresses[address] = known
        return known

    def _search(self, text: str) -> int:
        try:
            address = ip_address(text)
        except ValueError:
            return UNKNOWN
        bits = address.max_prefixlen
        known = self.addresses.get(str(address))
        if known is not None:
            return known
        by_length = self.ranges.get(address.version, {})
        for length in sorted(by_length, reverse=True):
            identity = by_length[length].get(int(address) >> (bits - length))
            if identity is not None:
                return identity
        return WORLD


def compile_hosts(resources: Iterable[bytes], *, version: str) -> HostMap:
    """A HostMap from serialized cilium.NetworkPolicyHosts `resources`.

    Raises PolicyError for an undecodable resource, a bad address, or an address
    that two identities claim.
    """
    addresses: dict[str, int] = {}
    ranges: dict[int, dict[int, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    for resource in resources:
        hosts = npds.NetworkPolicyHosts()
        try:
            hosts.ParseFromString(resource)
        except Exception as error:
            raise PolicyError(f"not a cilium.NetworkPolicyHosts: {error}") from error
        for text in hosts.host_addresses:
            network = _network(text, hosts.policy)
            if network.prefixlen == network.max_prefixlen:
                table: dict[str, int] | dict[int, int] = addresses
                key: str | int = str(network.network_address)
            else:
                table = ranges[network.version][network.prefixlen]
                key = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
            if table.setdefault(key, hosts.policy) != hosts.policy:  # type: ignore[arg-type]
                raise PolicyError(f"identity {hosts.policy}: {text} has an identity already")
    return HostMap(version, addresses, {v: dict(lengths) for v, lengths in ranges.items()})


def _network(text: str, identity: int) -> IPv4Network | IPv6Network:
    if identity >= 1 << 32:
        raise PolicyError(f"identity {identity} does not fit 32 bits")
    try:
        return ip_network(text)
    except ValueError as error:
        raise PolicyError(f"identity {identity}: {error}") from error
