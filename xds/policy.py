"""What policies say, free of how documents spell it: the compiler's input.

Whatever kind of document it came from, a policy chooses endpoints and gives them
rules per direction.  A direction with a rule of any sort is a white list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xds.labels import Selector
from xds.source import Origin

Protocol = Literal["TCP", "UDP", "SCTP", "ANY"]

L7Pairs = tuple[tuple[str, str], ...]
"""One L7 rule: its keys and values, in the document's order."""


@dataclass(frozen=True, slots=True)
class Port:
    """A port, a range of them (end_port > 0), or every port (port 0)."""

    port: int
    end_port: int = 0
    protocol: Protocol = "ANY"


@dataclass(frozen=True, slots=True, eq=False)
class L7:
    """Rules for a parser; without any, all that it can parse is allowed."""

    proto: str
    rules: tuple[L7Pairs, ...]
    origin: Origin
    """Where the parser is named."""
    items: Origin
    """Where the list of rules is."""


@dataclass(frozen=True, slots=True, eq=False)
class PortRule:
    """Ports, and what may be said on them (l7 None: anything)."""

    ports: tuple[Port, ...]
    l7: L7 | None


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One item of ingress, egress, ingressDeny or egressDeny.

    peers: whom it is about; None is anybody, an empty tuple nobody.
    ports: None is every port.
    """

    deny: bool
    peers: tuple[Selector, ...] | None
    ports: tuple[PortRule, ...] | None
    origin: Origin

    @property
    def empty(self) -> bool:
        """True for ``- {}``: it makes the white list, and lets nobody in."""
        return self.peers is None and self.ports is None


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """One spec: the endpoints it is about, and their rules."""

    name: str
    subject: Selector
    ingress: tuple[Rule, ...]
    egress: tuple[Rule, ...]
    origin: Origin

    def rules(self, *, ingress: bool) -> tuple[Rule, ...]:
        return self.ingress if ingress else self.egress
