"""An endpoint's L4 policy as the entries of its policy map.

What the engine has (xds/mapstate.py) names a parser where a connection is redirected; an
entry has the proxy ports of that parser's listeners instead.  0 is "no port": the
programs close what would have to go there.  So a rule that nobody can judge is closed,
and `Translated.closed` says which and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bpf.policies import PolicyEntry
from node.agent.redirects import Kind, Wanted, both_of
from xds.ads.resources import Direction
from xds.mapstate import (
    ANY_IDENTITY,
    PROTOCOL_NUMBERS,
    MapEntry,
    MapState,
    PortPrefix,
    PortTable,
    Verdict,
)

_TCP = PROTOCOL_NUMBERS["TCP"]
_NAMES = {number: name for name, number in PROTOCOL_NUMBERS.items()}
_PORT_PREFIX = 8 + 16
"""Bits of a prefix that is one port."""


class Proxy(NamedTuple):
    """Where connections are redirected to; 0: nowhere, and why.

    both: where those go that the policy of the other end redirects as well.
    """

    port: int
    both: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Listening:
    """What listens on this node: `NodeRedirects.ports` and `.problems`."""

    ports: Mapping[Kind, int]
    problems: Mapping[Kind, str]

    def of(self, kind: Kind) -> Proxy:
        """Where connections of `kind` go."""
        port = self.ports.get(kind, 0)
        problem = "" if port else self.problems.get(kind, "it has no listener")
        return Proxy(port, self.ports.get(both_of(kind), 0) if port else 0, problem)


@dataclass(frozen=True, slots=True)
class Translated:
    """The entries of one endpoint. closed: what nobody can judge, and why, for people.

    denying: whether an identity is denied by itself. Then addresses must not take another
    identity while the entries are in force (see datapath.py).
    """

    entries: Sequence[PolicyEntry]
    closed: Sequence[str]
    denying: bool


def translate(state: MapState, wanted: Sequence[Wanted], listening: Listening) -> Translated:
    """The entries of an endpoint whose policy is `state` and asks for `wanted`."""
    closed: dict[str, None] = {}
    # Identities with equal tables share one, and it is translated once.
    made: dict[int, list[PolicyEntry]] = {}
    entries: list[PolicyEntry] = []
    for identity, table in sorted(state.tables.items()):
        found = made.get(id(table))
        if found is None:
            found = made[id(table)] = list(_table(table, wanted, listening, closed))
        entries += (entry._replace(identity=identity) for entry in found)
    denying = any(e.verdict == Verdict.DENY and e.identity != ANY_IDENTITY for e in entries)
    return Translated(entries, tuple(closed), denying)


def _table(
    table: PortTable, wanted: Sequence[Wanted], listening: Listening, closed: dict[str, None]
) -> list[PolicyEntry]:
    entries = []
    for prefix, entry in sorted(table.items()):
        proxy = Proxy(0)
        if _is_told(entry):
            proxy = _proxy(prefix, entry.parser, wanted, listening)
            if proxy.problem and entry.verdict is Verdict.REDIRECT:
                closed[f"{_show(prefix)} ({entry.parser}): {proxy.problem}"] = None
        entries.append(
            PolicyEntry(
                identity=ANY_IDENTITY,
                ingress=prefix.ingress,
                protocol=prefix.protocol,
                port=prefix.port,
                bits=prefix.bits,
                verdict=entry.verdict,
                would=entry.would,
                proxy_port=proxy.port,
                proxy_port_both=proxy.both,
            )
        )
    return entries


def _is_told(entry: MapEntry) -> bool:
    """Whether a connection may be redirected by it, also beside another entry (audit mode)."""
    return Verdict.REDIRECT in (entry.verdict, entry.would) and entry.verdict < Verdict.DENY


def _proxy(
    prefix: PortPrefix, parser: str, wanted: Sequence[Wanted], listening: Listening
) -> Proxy:
    """The proxy of the one kind that takes all connections of `prefix`."""
    direction = Direction.INGRESS if prefix.ingress else Direction.EGRESS
    last = prefix.port + (1 << (_PORT_PREFIX - prefix.bits)) - 1
    kinds = {
        item.kind
        for item in wanted
        if prefix.protocol == _TCP
        and (item.kind.parser, item.kind.direction) == (parser, direction)
        and item.port <= prefix.port
        and last <= item.end_port
    }
    if not kinds:
        return Proxy(0, problem="there is no proxy for it")
    if len(kinds) > 1:
        return Proxy(0, problem="two rules want different TLS on the same port")
    return listening.of(kinds.pop())


def _show(prefix: PortPrefix) -> str:
    """``egress UDP/53``, ``ingress TCP/8000-8007``."""
    last = prefix.port + (1 << (_PORT_PREFIX - prefix.bits)) - 1
    ports = str(prefix.port) if last == prefix.port else f"{prefix.port}-{last}"
    direction = "ingress" if prefix.ingress else "egress"
    return f"{direction} {_NAMES.get(prefix.protocol, prefix.protocol)}/{ports}"
