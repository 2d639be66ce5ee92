"""Which identity each address and prefix is to have, and which the map has (the ipcache).

What is asked of it costs what has changed, not what there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from xds.identity import LOCAL_SCOPE, RESERVED_IDENTITIES

HOST = RESERVED_IDENTITIES["host"]


class Prefixes:
    """What prefixes are to be, and what they are in the map (`held`).

    Addresses of the node itself are the host's, unless an endpoint has them.
    """

    def __init__(self, held: Mapping[str, int] | None = None) -> None:
        self._held = {_normal(prefix): number for prefix, number in (held or {}).items()}
        self._own: frozenset[str] = frozenset()
        self._named: dict[str, int] = {}
        self._of: dict[int, set[str]] = {}
        # Only these may have to be written.
        self._touched = {*self._held}

    def set_all(self, addresses: Mapping[str, int]) -> None:
        """The identity of everything that has one."""
        for prefix, number in addresses.items():
            self._of.setdefault(number, set()).add(_normal(prefix))
        for number, prefixes in list(self._of.items()):
            self.set(number, prefixes)

    def set(self, identity: int, prefixes: Iterable[str]) -> None:
        """All that have `identity` now."""
        now, before = set(map(_normal, prefixes)), self._of.pop(identity, set())
        self._touched |= now | before
        for prefix in before - now:
            if self._named.get(prefix) == identity:
                del self._named[prefix]
        if now:
            self._of[identity] = now
            self._named |= dict.fromkeys(now, identity)

    def set_own(self, addresses: Iterable[str]) -> None:
        """The node's own addresses."""
        own = frozenset(map(_normal, addresses))
        self._touched |= own ^ self._own
        self._own = own

    def delta(self) -> dict[str, int | None]:
        """What is to be written; None takes a prefix away."""
        wanted = {prefix: self._wanted(prefix) for prefix in self._touched}
        changed = {prefix: n for prefix, n in wanted.items() if self._held.get(prefix) != n}
        self._touched = {*changed}
        return changed

    def tells_apart(self, delta: Mapping[str, int | None]) -> bool:
        """Whether prefixes that contain others are among `delta`."""
        numbers = (*delta.values(), *(self._held.get(prefix) for prefix in delta))
        return any(number is not None and number & LOCAL_SCOPE for number in numbers)

    def written(self, delta: Mapping[str, int | None]) -> None:
        """`delta` is in the map."""
        for prefix, number in delta.items():
            if number is None:
                self._held.pop(prefix, None)
            else:
                self._held[prefix] = number
        self._touched -= delta.keys()

    def _wanted(self, prefix: str) -> int | None:
        named = self._named.get(prefix)
        if prefix in self._own and (named is None or named & LOCAL_SCOPE):
            return HOST
        return named


def _normal(prefix: str) -> str:
    return str(ip_network(prefix))
