"""Who is on this node: endpoints, their addresses, modes and port names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from proxylib.errors import ConfigError
from xds.compilation import PortNames
from xds.endpoints import Endpoint, Enforcement, NamedPort


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
    ports: frozenset[NamedPort] = frozenset()


class Roster:
    """Endpoints by number. mode: what holds where an endpoint asks for nothing else."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.endpoints: dict[int, Endpoint] = {}
        self.identities: dict[int, int] = {}
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
        self._count_ports(endpoint, identity, 1)

    def pop(self, number: int) -> Endpoint:
        """Forget an endpoint."""
        endpoint = self.endpoints.pop(number)
        identity = self.identities.pop(number)
        self._count_ports(endpoint, identity, -1)
        self._addresses[identity].difference_update(endpoint.addresses)
        for address in endpoint.addresses:
            del self._owners[address]
        if not self._addresses[identity]:
            del self._addresses[identity]
        return endpoint

    def key(self, number: int) -> SubjectKey:
        """What decides which policy an endpoint has."""
        endpoint = self.endpoints[number]
        enforcement = endpoint.enforcement
        if enforcement == "default":
            enforcement = self.mode.enforcement
        mode = Mode(enforcement, endpoint.audit or self.mode.audit)
        return SubjectKey(self.identities[number], mode, frozenset(endpoint.ports))

    def owner(self, address: str) -> int:
        """The number of the endpoint that has an address; 0 if none has."""
        return self._owners.get(address, 0)

    def addresses(self, identity: int) -> frozenset[str]:
        """The addresses of the endpoints that have `identity`."""
        return frozenset(self._addresses.get(identity, ()))

    def peer_ports(self) -> PortNames:
        """The ports that each name stands for, whoever it is that names them so."""
        return {name: frozenset(numbers) for name, numbers in self._named.items()}

    def holders(self, name: str, protocol: str, port: int) -> Mapping[int, int]:
        """The identities of endpoints that call this port `name`, and how many they are."""
        return self._named.get(name, {}).get((protocol, port), {})

    def _count_ports(self, endpoint: Endpoint, identity: int, uses: int) -> None:
        for port in endpoint.ports:
            held = self._named[port.name].setdefault((port.protocol, port.port), Counter())
            held[identity] += uses
            if not held[identity]:
                del held[identity]
            if not held:
                del self._named[port.name][port.protocol, port.port]
            if not self._named[port.name]:
                del self._named[port.name]


def port_names(ports: Iterable[NamedPort]) -> PortNames:
    """The (protocol, number) of each name."""
    found: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for port in ports:
        found[port.name].add((port.protocol, port.port))
    return {name: frozenset(numbers) for name, numbers in found.items()}
