"""The entries of a policy map say what the engine says, with ports for parsers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from bpf.policies import PolicyEntry
from node.agent.entries import Listening, Translated, translate
from node.agent.redirects import Kind, Wanted, wanted_of
from xds.ads.resources import Direction
from xds.documents import load_policies
from xds.endpoints import Endpoint
from xds.engine import Change, Engine
from xds.labels import label_set, parse_label
from xds.mapstate import MapEntry, Verdict
from xds.policy import TLSContext
from xds.roster import Mode
from xds.source import read_documents

TCP, UDP, ICMP = 6, 17, 1
R2D2_IN = Kind("r2d2", Direction.INGRESS)
R2D2_OUT = Kind("r2d2", Direction.EGRESS)
HTTP_IN = Kind("http", Direction.INGRESS)
PORTS = {
    R2D2_IN: 10001,
    R2D2_OUT: 10002,
    R2D2_IN._replace(direction=Direction.BOTH): 10003,
    HTTP_IN: 10004,
}

POLICIES = """
kind: CiliumNetworkPolicy
metadata: {name: a}
spec:
  endpointSelector: {matchLabels: {app: a}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: b}}]
    toPorts:
    - ports: [{port: "4040", protocol: TCP}]
      rules: {l7proto: r2d2, l7: [{cmd: READ}]}
    - ports: [{port: "80", endPort: 90, protocol: TCP}]
      rules: {http: [{method: GET}]}
  - fromEntities: [host]
  - icmps: [{fields: [{family: IPv4, type: 8}]}]
  ingressDeny:
  - fromEndpoints: [{matchLabels: {app: c}}]
    toPorts: [{ports: [{port: "85", protocol: TCP}]}]
  egress:
  - toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules: {dns: [{matchPattern: "*"}]}
    - ports: [{port: "4040", protocol: TCP}]
      rules: {l7proto: r2d2, l7: [{cmd: READ}]}
  - toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}]
"""


def engine_with(text: str = POLICIES, mode: Mode = Mode()) -> Engine:  # noqa: B008 - frozen
    engine = Engine(mode=mode)
    labels = {1: "app=a", 2: "app=b", 3: "app=c"}
    endpoints: dict[int, Endpoint | None] = {
        n: Endpoint((f"192.0.2.{n}",), label_set([parse_label(label)]))
        for n, label in labels.items()
    }
    documents = read_documents("p", text)
    policies = {str(n): load_policies([document]) for n, document in enumerate(documents)}
    engine.change(Change(policies=policies, endpoints=endpoints))
    return engine


def translated(engine: Engine, number: int = 1, listening: Listening | None = None) -> Translated:
    wanted = sorted(set(wanted_of(engine, number)), key=str)
    found = listening or Listening(PORTS, {})
    return translate(engine.map_state(number), wanted, found)


def covers(entry: PolicyEntry, protocol: int, port: int) -> bool:
    if entry.bits == 0:
        return True
    return entry.protocol == protocol and (entry.port ^ port) >> (24 - entry.bits) == 0


def look_up(
    entries: Sequence[PolicyEntry], identity: int, ingress: bool, protocol: int, port: int
) -> list[PolicyEntry]:
    """The two look-ups of the longest prefix that the programs make."""
    found = []
    for number in {identity, 0}:
        covering = [
            e
            for e in entries
            if (e.identity, e.ingress) == (number, ingress) and covers(e, protocol, port)
        ]
        found += sorted(covering, key=lambda e: e.bits)[-1:]
    return found


def joined(found: Iterable[PolicyEntry]) -> tuple[int, int, int, int]:
    entries = list(found)
    columns = [(e.verdict, e.would, e.proxy_port, e.proxy_port_both) for e in entries]
    verdict, would, port, both = map(max, zip(*columns or [(0, 0, 0, 0)], strict=True))
    return verdict, would, port, both


def questions(engine: Engine) -> Iterable[tuple[int, bool, int, int]]:
    ports = (0, 8, 53, 79, 80, 85, 87, 90, 91, 4040, 65535)
    for identity in sorted(engine.known_identities()):
        for ingress in (True, False):
            for protocol in (ICMP, TCP, UDP, 132):
                for port in ports:
                    yield identity, ingress, protocol, port


@pytest.mark.parametrize("mode", [Mode(), Mode("always"), Mode("never"), Mode("default", True)])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_two_look_ups_give_the_engine_s_verdict(mode: Mode, number: int) -> None:
    engine = engine_with(mode=mode)
    state, entries = engine.map_state(number), translated(engine, number).entries
    redirected = 0
    for identity, ingress, protocol, port in questions(engine):
        said = state.lookup(identity, ingress=ingress, protocol=protocol, port=port)
        verdict, would, proxy, _ = joined(look_up(entries, identity, ingress, protocol, port))
        assert (verdict, would) == (said.verdict, said.would)
        expected = expected_port(said, ingress, protocol)
        if said.verdict is not Verdict.DENY:
            assert proxy == expected, (identity, ingress, protocol, port)
            redirected += expected > 0
    assert (redirected > 0) is (number == 1 and mode.enforcement != "never")


def expected_port(said: MapEntry, ingress: bool, protocol: int) -> int:
    if protocol != TCP or not said.redirect:
        return 0
    direction = Direction.INGRESS if ingress else Direction.EGRESS
    return PORTS.get(Kind(said.redirect, direction), 0)


def test_one_pass_has_a_port_where_both_directions_have() -> None:
    entries = translated(engine_with()).entries
    ports = {(e.proxy_port, e.proxy_port_both) for e in entries}
    # There is no listener for HTTP in the other direction.
    assert ports == {(0, 0), (10001, 10003), (10002, 10003), (10004, 0)}


def test_what_nobody_judges_is_closed_and_said() -> None:
    found = translated(engine_with())
    assert set(found.closed) == {
        f"egress {protocol}/53 (dns): there is no proxy for it"
        for protocol in ("TCP", "UDP", "SCTP")
    }
    redirects = [e for e in found.entries if e.port == 53]
    assert redirects
    assert {(e.verdict, e.proxy_port) for e in redirects} == {(Verdict.REDIRECT, 0)}


def test_a_listener_that_cannot_be_had_closes_its_ports() -> None:
    listening = Listening({}, {R2D2_IN: "no secret", HTTP_IN: "no port"})
    found = translated(engine_with(), listening=listening)
    assert {e.proxy_port for e in found.entries} == {0}
    assert "ingress TCP/4040 (r2d2): no secret" in found.closed
    # The prefixes of one range.
    assert "ingress TCP/80-87 (http): no port" in found.closed
    assert "egress TCP/4040 (r2d2): it has no listener" in found.closed


def test_two_kinds_of_tls_on_one_port_are_closed() -> None:
    tls = R2D2_IN._replace(terminating=TLSContext(secret="web", namespace="prod"))
    wanted = [Wanted(4040, 4040, R2D2_IN), Wanted(4000, 4100, tls)]
    found = translate(engine_with().map_state(1), wanted, Listening({**PORTS, tls: 10009}, {}))
    assert {e.proxy_port for e in found.entries if e.ingress and e.port == 4040} == {0}
    assert "ingress TCP/4040 (r2d2): two rules want different TLS on the same port" in found.closed


def test_a_range_is_not_taken_by_a_listener_of_a_part_of_it() -> None:
    state = engine_with().map_state(1)
    found = translate(state, [Wanted(80, 85, HTTP_IN)], Listening(PORTS, {}))
    assert {e.proxy_port for e in found.entries if e.port == 80 and e.bits < 24} == {0}


def test_enforcement_that_is_off_allows_everything_by_one_entry_each_way() -> None:
    found = translated(engine_with(mode=Mode("never")))
    assert found.closed == ()
    assert {(e.identity, e.ingress, e.bits, e.verdict) for e in found.entries} == {
        (0, True, 0, Verdict.ALLOW),
        (0, False, 0, Verdict.ALLOW),
    }
    assert not found.denying


def test_who_denies_by_identity() -> None:
    engine = engine_with()
    assert translated(engine).denying
    assert not translated(engine, 2).denying


def test_audit_redirects_to_see_and_denies_nothing() -> None:
    """What is only in audit mode goes to the parser, and no port is closed for want of one."""
    engine = engine_with(mode=Mode("default", audit=True))
    found = translated(engine)
    assert {Verdict(e.verdict) for e in found.entries} <= {Verdict.NONE, Verdict.ALLOW}
    assert 10001 in {e.proxy_port for e in found.entries}
    assert found.closed == ()
