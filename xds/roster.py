"""Who is on this node: endpoints, their addresses, modes and port names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from proxylib.errors import ConfigError
from xds.compilation import Enforcement, NamedPorts
from xds.endpoints import Endpoint


@dataclass(frozen=True, slots=True)
class Mode:
    """How an endpoint's policies are enforced. audit: nothing is denied, only logged."""

    enforcement: Enforcement = "default"
    audit: bool = False


@dataclass(frozen=True, slots=True)
class SubjectKey:
    """What endpoints have in common that share a policy."""

    identity: int
    mode: Mode
    ports: frozenset[tuple[str, frozenset[tuple[str, int]]]] = frozenset()


class Roster:
    """Endpoints by number. mode: of those that have none of their own."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.endpoints: dict[int, Endpoint] = {}
        self.identities: dict[int, int] = {}
        self.modes: dict[int, Mode] = {}
        self.ports: dict[int, NamedPorts] = {}
        self._addresses: dict[int, set[str]] = defaultdict(set)
        self._owners: dict[str, int] = {}
        self._named: dict[str, dict[tuple[str, int], Counter[int]]] = defaultdict(dict)

    def check(self, endpoints: Mapping[int, Endpoint | None]) -> None:
        """Raise ConfigError if two endpoints would have one address."""
        taken: dict[str, int] = {}
        for number, endpoint in endpoints.items():
            for address in endpoint.addresses if endpoint is not None else ():
                owner = self._owners.get(address, number)
                if endpoints.get(owner, self.endpoints.get(owner)) is None or owner in endpoints:
                    owner = number
                owner = taken.setdefault(address, owner)
                if owner != number:
                    raise ConfigError(
                        f"endpoint {number}: {address} is the address of endpoint {owner}"
                    )

    def put(self, number: int, endpoint: Endpoint, identity: int) -> None:
        """Take up an endpoint that is not there yet."""
        self.endpoints[number] = endpoint
        self.identities[number] = identity
        self._addresses[identity].update(endpoint.addresses)
        self._owners.update(dict.fromkeys(endpoint.addresses, number))
        self._count_ports(number, 1)

    def pop(self, number: int) -> Endpoint:
        """Forget an endpoint; its mode and port names are kept apart from it."""
        self._count_ports(number, -1)
        endpoint = self.endpoints.pop(number)
        identity = self.identities.pop(number)
        self._addresses[identity].difference_update(endpoint.addresses)
        for address in endpoint.addresses:
            del self._owners[address]
        if not self._addresses[identity]:
            del self._addresses[identity]
        return endpoint

    def set_ports(self, number: int, ports: NamedPorts) -> set[str]:
        """Name ports of an endpoint, there or not; the names that mean others now."""
        before = self.ports.pop(number, {})
        if number in self.endpoints:
            self._count_ports_of(self.identities[number], before, -1)
            self._count_ports_of(self.identities[number], ports, 1)
        if ports:
            self.ports[number] = ports
        return {name for name in {*before, *ports} if before.get(name) != ports.get(name)}

    def key(self, number: int) -> SubjectKey:
        """What decides which policy an endpoint has."""
        ports = frozenset(self.ports.get(number, {}).items())
        return SubjectKey(self.identities[number], self.modes.get(number, self.mode), ports)

    def addresses(self, identity: int) -> frozenset[str]:
        """The addresses of the endpoints that have `identity`."""
        return frozenset(self._addresses.get(identity, ()))

    def peer_ports(self) -> NamedPorts:
        """The ports that each name stands for, whoever it is that names them so."""
        return {name: frozenset(numbers) for name, numbers in self._named.items()}

    def holders(self, name: str, protocol: str, port: int) -> Mapping[int, int]:
        """The identities of endpoints that call this port `name`, and how many they are."""
        return self._named.get(name, {}).get((protocol, port), {})

    def names(self, number: int) -> set[str]:
        """The port names that an endpoint has."""
        return set(self.ports.get(number, ()))

    def _count_ports(self, number: int, uses: int) -> None:
        self._count_ports_of(self.identities[number], self.ports.get(number, {}), uses)

    def _count_ports_of(self, identity: int, ports: NamedPorts, uses: int) -> None:
        for name, numbers in ports.items():
            for number in numbers:
                counter = self._named[name].setdefault(number, Counter())
                counter[identity] += uses
                if not counter[identity]:
                    del counter[identity]
                if not counter:
                    del self._named[name][number]
            if not self._named[name]:
                del self._named[name]
