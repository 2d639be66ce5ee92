"""The incremental engine against the naive evaluator, and what a change costs it.

Random documents, endpoints and names come and go in random order; after each change
the NetworkPolicy resources, as the data path reads them, and the L4 map state say
for every request what tests/xds/naive.py says from the documents.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxylib.errors import ConfigError
from proxylib.hosts import compile_hosts
from proxylib.policy import PolicyMap, compile_policies
from proxylib.registry import get_parser_factory
from tests.xds.naive import Document, Request, World
from xds.documents import load_policies
from xds.endpoints import Endpoint, load_endpoints, load_services
from xds.engine import Change, Changes, Engine
from xds.identity import LOCAL_SCOPE, Identities, MemoryStore
from xds.labels import label_set, parse_label
from xds.mapstate import PROTOCOL_NUMBERS
from xds.roster import Mode
from xds.source import DocumentError, read_documents

ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
OUTSIDE = ("192.0.2.1", "192.0.2.66", "198.51.100.7", "2001:db8::1")
PORTS = (80, 81, 90)
COMMANDS = ("HALT", "RESET")
NAMES = ("a.example.com", "b.example.com", "example.org")

selectors = st.sampled_from(
    [
        {},
        *({"matchLabels": {"app": app}} for app in ("a", "b", "none")),
        {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]},
        {"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]},
        {"matchLabels": {"env": "prod"}},
    ]
)
cidrs = st.sampled_from(
    [
        {"cidr": "192.0.2.0/24"},
        {"cidr": "192.0.2.0/24", "except": ["192.0.2.64/26"]},
        {"cidr": "192.0.2.64/26"},
        {"cidr": "0.0.0.0/0"},
        {"cidr": "2001:db8::/32"},
        {"cidr": "10.0.0.0/8"},
    ]
)
fqdns = st.sampled_from(
    [{"matchName": "a.example.com"}, {"matchPattern": "*.example.com"}, {"matchPattern": "*"}]
)
ports = st.sampled_from(
    [
        {"port": 0, "protocol": "TCP"},
        {"port": 0},
        {"port": 80, "protocol": "TCP"},
        {"port": 80, "endPort": 81, "protocol": "TCP"},
        {"port": 90, "protocol": "ANY"},
        {"port": 80, "protocol": "UDP"},
        {"port": "web", "protocol": "TCP"},
    ]
)
l7 = st.lists(st.sampled_from([{"cmd": "HALT"}, {"cmd": "RESET"}, {}]), min_size=1, max_size=2)


@st.composite
def rules(draw: st.DrawFn, ingress: bool, deny: bool) -> Document:
    prefix = "from" if ingress else "to"
    rule: Document = {}
    peers = draw(
        st.sampled_from(["", "", "Endpoints", "Endpoints", "CIDRSet", "Entities", "FQDNs"])
    )
    if peers == "Endpoints":
        rule[f"{prefix}Endpoints"] = draw(st.lists(selectors, max_size=2))
    elif peers == "CIDRSet":
        rule[f"{prefix}CIDRSet"] = draw(st.lists(cidrs, min_size=1, max_size=2))
    elif peers == "Entities":
        rule[f"{prefix}Entities"] = [
            draw(st.sampled_from(["all", "world", "world-ipv4", "world-ipv6"]))
        ]
    elif peers == "FQDNs" and not ingress and not deny:
        rule["toFQDNs"] = draw(st.lists(fqdns, min_size=1, max_size=2))
    if draw(st.integers(0, 4)) == 0:
        rule[f"{prefix}Requires"] = [draw(selectors)]
    if draw(st.booleans()):
        entry: Document = {"ports": draw(st.lists(ports, min_size=1, max_size=2))}
        plain = all(port["port"] and port.get("protocol") == "TCP" for port in entry["ports"])
        if not deny and plain and draw(st.booleans()):
            entry["rules"] = {"l7proto": "r2d2", "l7": draw(l7)}
        rule["toPorts"] = [entry]
    return rule


specs = st.fixed_dictionaries(
    {"endpointSelector": selectors},
    optional={
        "ingress": st.lists(rules(True, False), min_size=1, max_size=3),
        "egress": st.lists(rules(False, False), min_size=1, max_size=2),
        "ingressDeny": st.lists(rules(True, True), min_size=1, max_size=1),
        "egressDeny": st.lists(rules(False, True), min_size=1, max_size=1),
        "enableDefaultDeny": st.fixed_dictionaries({}, optional={"ingress": st.booleans()}),
    },
).filter(lambda spec: spec.keys() & {"ingress", "egress", "ingressDeny", "egressDeny"})
endpoints = st.fixed_dictionaries(
    {
        "labels": st.sampled_from(
            [{}, {"app": "a"}, {"app": "b"}, {"app": "a", "env": "prod"}, {"env": "prod"}]
        )
    },
    optional={
        "ports": st.sampled_from([{"web": 80}, {"web": 90}]),
        "enforcement": st.sampled_from(["always", "never"]),
        "audit": st.booleans(),
    },
)
steps = st.one_of(
    st.tuples(st.just("document"), st.sampled_from("pqr"), st.none() | specs, st.booleans()),
    st.tuples(st.just("endpoint"), st.sampled_from(ADDRESSES), st.none() | endpoints),
    st.tuples(
        st.just("name"), st.sampled_from(NAMES), st.lists(st.sampled_from(OUTSIDE), max_size=2)
    ),
    st.tuples(st.just("mode"), st.sampled_from(["default", "default", "always"])),
)


class Pair:
    """The engine and the naive evaluator, told the same."""

    def __init__(self) -> None:
        self.world = World()
        self.engine = Engine(Identities(delay=0))
        self.policies: dict[int, bytes] = {}
        self.hosts: dict[int, bytes] = {}

    def step(self, step: tuple[Any, ...]) -> None:
        world = self.world
        match step:
            case ("document", name, spec, audit):
                world.documents.pop(name, None)
                if spec is not None:
                    annotations = {"annotations": {"proxylib.io/audit": "true"}} if audit else {}
                    metadata = {"name": name, **annotations}
                    document = {"kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}
                    world.documents[name] = document
                    loaded = load_policies(read_documents(name, json.dumps(document)))
                self.follow(Change(policies={name: () if spec is None else loaded}))
            case ("endpoint", address, None):
                world.endpoints.pop(address, None)
                self.follow(Change(endpoints={ADDRESSES.index(address): None}))
            case ("endpoint", address, endpoint):
                world.endpoints[address] = endpoint
                self.follow(
                    Change(endpoints={ADDRESSES.index(address): loaded_endpoint(address, endpoint)})
                )
            case ("name", name, addresses):
                world.names[name] = addresses
                self.follow(Change(names={name: [ip_address(text) for text in addresses]}))
            case ("mode", mode):
                world.mode = mode
                self.follow(Change(mode=Mode(mode)))

    def follow(self, change: Change) -> Changes:
        """What a subscriber has that is sent only what `Changes` names."""
        changes = self.engine.change(change)
        for number in changes.removed:
            del self.policies[number]
        for number in changes.endpoints:
            self.policies[number] = self.engine.resource(number)
        for identity in changes.hosts:
            resource = self.engine.hosts(identity)
            self.hosts.pop(identity, None)
            if resource is not None:
                self.hosts[identity] = resource
        return changes

    def check(self) -> None:
        policy = compile_policies(self.policies.values(), get_parser_factory)
        hosts = compile_hosts(self.hosts.values(), version="1")
        for request in self.requests():
            number = ADDRESSES.index(request.endpoint)
            remote = hosts.identity(request.remote)
            entry = self.engine.map_state(number).lookup(
                remote,
                ingress=request.ingress,
                protocol=PROTOCOL_NUMBERS[request.protocol],
                port=request.port,
            )
            answers = [self.world.judge(r) for r in every_command(request)]
            assert entry.passes is any(passes for passes, _ in answers), (request, entry)
            if entry.passes and not entry.redirect:
                assert {passes for passes, _ in answers} == {True}, request
                assert {would for _, would in answers} == {not entry.audit}, request
            if request.protocol == "TCP":
                check_data_path(policy, remote, request, self.world.judge(request))

    def requests(self) -> Iterator[Request]:
        for endpoint in self.world.endpoints:
            for remote in (*self.world.endpoints, *OUTSIDE):
                for ingress in (True, False):
                    for port in PORTS:
                        yield Request(endpoint, ingress, remote, "UDP", port, COMMANDS[0])
                        for cmd in COMMANDS:
                            yield Request(endpoint, ingress, remote, "TCP", port, cmd)


def loaded_endpoint(address: str, endpoint: Document) -> Endpoint:
    text = json.dumps({"endpoints": [{"address": address, **endpoint}]})
    (found,) = load_endpoints(read_documents("e", text))
    return found


def every_command(request: Request) -> Iterator[Request]:
    """The request, and what might be said in its place; one command is in no rule."""
    for cmd in (*COMMANDS, "READ"):
        yield replace(request, cmd=cmd)


def check_data_path(
    policy: PolicyMap, remote: int, request: Request, expected: tuple[bool, bool]
) -> None:
    decision = policy.decide(
        request.endpoint,
        ingress=request.ingress,
        port=request.port,
        remote=remote,
        parser="r2d2",
    )
    message = {"cmd": request.cmd.encode(), "file": b""}
    passes = decision.matcher(message)
    would = passes if decision.would is None else decision.would(message)
    assert passes is expected[0], request
    if passes:
        assert would is expected[1], request


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=1, max_size=10))
def test_every_change_leaves_what_the_documents_say(story: list[tuple[Any, ...]]) -> None:
    pair = Pair()
    for step in story:
        pair.step(step)
        pair.check()


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, min_size=1, max_size=8), st.randoms())
def test_the_order_of_changes_leaves_no_trace(story: list[tuple[Any, ...]], random: Any) -> None:
    last = {step[:2] if step[0] != "mode" else "mode": step for step in story}
    one, other = Pair(), Pair()
    for step in story:
        one.step(step)
    shuffled = list(last.values())
    random.shuffle(shuffled)
    for step in shuffled:
        other.step(step)
    one.engine.expire()
    assert {n: tables_of(one, n) for n in one.policies} == {
        n: tables_of(other, n) for n in other.policies
    }
    assert one.engine.addresses().keys() == other.engine.addresses().keys()


def tables_of(pair: Pair, number: int) -> object:
    """An endpoint's map state with labels in place of numbers, which depend on the order."""
    labels = pair.engine.known_identities()
    return {
        str(labels[identity]): dict(table)
        for identity, table in pair.engine.map_state(number).tables.items()
    }


def test_maps_are_another_also_where_the_resource_is_not() -> None:
    """A NetworkPolicy has no word for ICMP; the L4 tables have."""
    engine = Engine()
    engine.change(endpoint(1, "app=a"))

    def change(kind: int) -> Changes:
        ingress = [{"icmps": [{"fields": [{"family": "IPv4", "type": kind}]}]}]
        spec = {"endpointSelector": {}, "ingress": ingress}
        text = json.dumps({"kind": "CiliumNetworkPolicy", "metadata": {"name": "p"}, "spec": spec})
        return engine.change(Change(policies={"p": load_policies(read_documents("p", text))}))

    change(8)
    changes = change(0)
    assert changes.endpoints == frozenset()
    assert changes.maps == {1}
    assert engine.map_state(1).lookup(2, ingress=True, protocol=1, port=0).passes
    assert engine.change(endpoint(2, "app=b")).maps >= {2}


# What changes cost, counted and not timed.


def document(name: str, subject: str, *peers: str, cmd: str = "HALT") -> Change:
    """A policy of endpoints with the label app=SUBJECT about those of `peers`."""
    spec = {
        "endpointSelector": {"matchLabels": {"app": subject}},
        "ingress": [
            {
                "fromEndpoints": [{"matchLabels": {"app": peer}}],
                "toPorts": [
                    {
                        "ports": [{"port": 80, "protocol": "TCP"}],
                        "rules": {"l7proto": "r2d2", "l7": [{"cmd": cmd}]},
                    }
                ],
            }
            for peer in peers
        ],
    }
    text = json.dumps({"kind": "CiliumNetworkPolicy", "metadata": {"name": name}, "spec": spec})
    return Change(policies={name: load_policies(read_documents(name, text))})


def endpoint(number: int, *labels: str, **more: Any) -> Change:
    found = label_set(map(parse_label, labels))
    address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    return Change(endpoints={number: Endpoint((address,), found, **more)})


def crowd(size: int) -> Engine:
    """An engine with `size` endpoints, each with a policy of its own about its neighbour."""
    engine = Engine(Identities(delay=0))
    for n in range(size):
        engine.change(endpoint(n, f"app=a{n}"))
        engine.change(document(f"p{n}", f"a{n}", f"a{(n + 1) % size}"))
    return engine


def cost(engine: Engine, change: Change) -> dict[str, int]:
    before = engine.work.copy()
    engine.change(change)
    return dict(engine.work - before)


@pytest.mark.parametrize(
    "change",
    [
        document("p3", "a3", "a5"),
        document("new", "a3", "a4"),
        Change(policies={"p3": ()}),
        endpoint(3, "app=a9"),
        endpoint(1 << 16, "app=a3"),
        endpoint(1 << 16, "app=a3", "env=prod"),
        endpoint(1 << 16, "app=new"),
        Change(endpoints={3: None}),
        Change(identities={9999: label_set([parse_label("app=a3")])}),
        Change(names={"a.example.com": [ip_address("192.0.2.1")]}),
    ],
)
def test_a_change_costs_the_same_in_a_crowd(change: Change) -> None:
    few, many = cost(crowd(12), change), cost(crowd(120), change)
    assert few == many
    assert sum(many.values()) < 20


def test_one_rule_of_many_is_written_again_and_no_other() -> None:
    engine = Engine()
    engine.change(endpoint(1, "app=server"))
    peers = [f"c{n}" for n in range(50)]
    for n, peer in enumerate(peers):
        engine.change(endpoint(n + 2, f"app={peer}"))
    engine.change(document("p", "server", *peers))
    came = cost(engine, endpoint(100, "app=c7", "env=prod"))
    # Its own policy, open in two directions; and the one line of the server's about it.
    assert came == {
        "subjects compiled": 1,
        "subjects written": 2,
        "lines written": 3,
        "selectors tried": 1,
    }


def test_endpoints_of_one_identity_share_one_policy() -> None:
    engine = crowd(3)
    work = cost(engine, endpoint(9, "app=a1"))
    assert "subjects compiled" not in work
    assert engine.map_state(9) is engine.map_state(1)
    assert engine.policy(9).tables is engine.policy(1).tables
    engine.change(endpoint(9, "app=a1", audit=True))
    assert engine.map_state(9) is not engine.map_state(1), "another mode, another policy"


# All or nothing.


def state(engine: Engine) -> object:
    return (
        engine.revision,
        {n: (engine.policy(n), engine.map_state(n)) for n in engine.endpoints},
        engine.policies.copy(),  # type: ignore[attr-defined]
        engine.peers(),
        engine.addresses(),
        engine.mode,
    )


def test_a_change_that_contradicts_itself_changes_nothing() -> None:
    engine = crowd(4)
    text = json.dumps(
        {
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "other"},
            "spec": {
                "endpointSelector": {},
                "ingress": [
                    {
                        "fromCIDR": ["192.0.2.0/24"],
                        "toPorts": [
                            {
                                "ports": [{"port": 80, "protocol": "TCP"}],
                                "rules": {"l7proto": "test.xds", "l7": [{}]},
                            }
                        ],
                    }
                ],
            },
        }
    )
    other = load_policies(read_documents("other", text))
    before = state(engine)
    with pytest.raises(DocumentError, match="one port of an endpoint can have one parser"):
        engine.change(
            Change(
                policies={"other": other, "p1": ()},
                endpoints={2: None, 77: endpoint(77, "app=x").endpoints[77]},
                names={"a.example.com": [ip_address("192.0.2.1")]},
                identities={9999: label_set([parse_label("app=far")])},
                mode=Mode("always", audit=True),
            )
        )
    assert state(engine) == before
    assert not engine.select(next(iter(other)).ingress[0].peers[0]), "no identity was left behind"  # type: ignore[index]
    engine.change(Change(policies={"p3": ()}))


def test_the_host_has_the_addresses_that_are_told() -> None:
    engine = Engine()
    assert engine.hosts(1) is None
    changes = engine.change(Change(own=("fd00::1", "10.0.0.9")))
    assert changes.hosts == {1}
    assert engine.own_addresses == {"10.0.0.9", "fd00::1"}
    told = engine.hosts(1)
    assert told is not None
    assert compile_hosts([told], version="1").identity("10.0.0.9") == 1
    assert engine.change(Change(own=())).hosts == {1}
    assert engine.hosts(1) is None


def test_an_address_has_one_endpoint() -> None:
    engine = crowd(3)
    before = state(engine)
    stolen = endpoint(1, "app=x").endpoints[1]
    with pytest.raises(ConfigError, match=r"endpoint 7: 10\.0\.0\.1 is the address of endpoint 1"):
        engine.change(Change(endpoints={7: stolen}))
    assert state(engine) == before
    engine.change(Change(endpoints={1: None, 7: stolen}))
    two = {8: endpoint(8, "app=x").endpoints[8], 9: endpoint(8, "app=y").endpoints[8]}
    with pytest.raises(ConfigError, match="is the address of endpoint 8"):
        engine.change(Change(endpoints=two))


def test_a_store_that_fails_changes_nothing() -> None:
    class Failing(MemoryStore):
        fails = False

        def numbers(self, *arguments: Any) -> Mapping[str, int]:
            if self.fails:
                raise ConfigError("the disk is full")
            return super().numbers(*arguments)

    store = Failing()
    engine = Engine(Identities(store))
    engine.change(endpoint(1, "app=a"))
    text = json.dumps(
        {
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "p"},
            "spec": {"endpointSelector": {}, "ingress": [{"fromCIDR": ["192.0.2.0/24"]}]},
        }
    )
    change = Change(policies={"p": load_policies(read_documents("p", text))})
    before = state(engine)
    store.fails = True
    for failing in (change, endpoint(2, "app=b")):
        with pytest.raises(ConfigError, match="the disk is full"):
            engine.change(failing)
        assert state(engine) == before
    store.fails = False
    engine.change(change)
    assert [n for n in engine.known_identities() if n & LOCAL_SCOPE] == [LOCAL_SCOPE + 1]
    assert engine.hosts(LOCAL_SCOPE + 1) is not None


# Requirements, as Cilium has them.


def ruled(*documents: Document) -> Engine:
    engine = Engine()
    for number, labels in enumerate((["app=a"], ["app=a", "env=prod"], ["env=prod"]), 1):
        engine.change(endpoint(number, *labels))
    for n, spec in enumerate(documents):
        text = {"kind": "CiliumNetworkPolicy", "metadata": {"name": f"d{n}"}, "spec": spec}
        engine.change(
            Change(policies={f"d{n}": load_policies(read_documents("d", json.dumps(text)))})
        )
    return engine


def let_in(engine: Engine, number: int = 3) -> set[int]:
    """The endpoints that may connect to endpoint `number`, and 0 for the world."""
    found = engine.map_state(number)
    identities = {n: engine.policy(n).identity for n in engine.endpoints} | {0: 2}
    return {
        n
        for n, i in identities.items()
        if found.lookup(i, ingress=True, protocol=6, port=80).passes
    }


def test_requirements_hold_for_every_rule_with_endpoints_and_allow_nothing() -> None:
    everybody: Document = {"endpointSelector": {}}
    a = {"matchLabels": {"app": "a"}}
    prod = {"matchLabels": {"env": "prod"}}
    requires = {**everybody, "ingress": [{"fromRequires": [prod]}]}
    assert let_in(ruled({**everybody, "ingress": [{"fromEndpoints": [a]}]})) == {1, 2}
    assert let_in(ruled(requires)) == set()
    assert let_in(ruled(requires, {**everybody, "ingress": [{"fromEndpoints": [a]}]})) == {2}
    assert let_in(ruled(requires, {**everybody, "ingress": [{"fromEntities": ["world"]}]})) == {0}
    deny = {**everybody, "ingressDeny": [{"fromEndpoints": [a], "fromRequires": [prod]}]}
    allow = {**everybody, "ingress": [{"fromEntities": ["all"]}]}
    assert let_in(ruled(allow, deny)) == {0, 1, 3}


# Peers that change by themselves.


def test_services_are_asked_again() -> None:
    def table(text: str) -> Change:
        return Change(services=load_services(read_documents("s", text)).resolve)

    to_db = {"toServices": [{"k8sService": {"serviceName": "db", "namespace": "default"}}]}
    engine = ruled({"endpointSelector": {"matchLabels": {"env": "prod"}}, "egress": [to_db]})

    def reached() -> set[str]:
        found = engine.map_state(3)
        return {
            str(labels)
            for number, labels in engine.known_identities().items()
            if found.lookup(number, ingress=False, protocol=6, port=80).passes
        }

    assert reached() == set(), "a service that nobody knows is nobody"
    engine.change(table("services: [{name: db, namespace: default, addresses: [192.0.2.7]}]"))
    assert reached() == {"cidr:192.0.2.7/32= reserved:world="}
    assert engine.addresses()["192.0.2.7/32"] == LOCAL_SCOPE + 1
    engine.change(table("services: [{name: db, namespace: other, addresses: [192.0.2.7]}]"))
    assert reached() == set()
    assert "192.0.2.7/32" not in engine.addresses()


def test_the_host_is_one_identity_whatever_labels_it_has() -> None:
    node_policy = {
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "n"},
        "spec": {
            "nodeSelector": {"matchLabels": {"k8s:zone": "a"}},
            "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "a"}}]}],
        },
    }
    engine = Engine()
    text = json.dumps(node_policy)
    engine.change(Change(policies={"n": load_policies(read_documents("n", text))}))
    engine.change(endpoint(1, "app=a"))
    engine.change(endpoint(9, "reserved:host", "k8s:zone=a"))
    assert engine.policy(9).identity == 1
    assert engine.policy(9).ingress_enforced
    assert let_in(engine, 9) == {1}
    engine.change(endpoint(9, "reserved:host", "k8s:zone=b"))
    assert not engine.policy(9).ingress_enforced
    assert engine.policy(9).identity == 1


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xds.peers.MAX_NAMES", 2)
    monkeypatch.setattr("xds.peers.MAX_ADDRESSES", 1)
    engine = Engine()
    one = [ip_address("192.0.2.1")]
    engine.change(Change(names={"a.": one, "b": one}))
    with pytest.raises(ConfigError, match="more than 2 DNS names"):
        engine.change(Change(names={"c": one}))
    engine.change(Change(names={"A": (), "c": one}))
    with pytest.raises(ConfigError, match="c: more than 1 addresses"):
        engine.change(Change(names={"c": [*one, ip_address("192.0.2.2")]}))


def test_prefixes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes the bound changes nothing; what takes others' place is no more than before."""
    monkeypatch.setattr("xds.peers.MAX_PREFIXES", 3)
    engine = Engine()
    engine.change(endpoint(1, "app=a"))

    def allow(*prefixes: str) -> Change:
        text = (
            "kind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec:\n"
            f"  endpointSelector: {{}}\n  ingress: [{{fromCIDR: [{', '.join(prefixes)}]}}]\n"
        )
        return Change(policies={"p": load_policies(read_documents("p.yaml", text))})

    engine.change(allow("10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"))
    held = engine.addresses()
    with pytest.raises(ConfigError, match="more than 3 prefixes"):
        engine.change(allow("10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16"))
    assert engine.addresses() == held
    assert {n for n, _, _ in engine.map_state(1).entries() if n} == set(held.values()) - {256}
    engine.change(allow("10.4.0.0/16", "10.5.0.0/16", "10.6.0.0/16"))
    assert len(engine.addresses()) == 4


def test_an_identity_that_is_unused_goes_after_the_delay() -> None:
    now = [0.0]
    engine = Engine(Identities(delay=10, clock=lambda: now[0]))
    engine.change(endpoint(1, "app=a"))
    engine.change(Change(endpoints={1: None}))
    assert 256 in engine.known_identities()
    now[0] = 11
    assert engine.expire().gone == {256}
    assert 256 not in engine.known_identities()


def test_changes_and_questions_from_many_threads() -> None:
    engine, size = Engine(), 24
    done = threading.Event()

    def change(n: int) -> None:
        for turn in range(4):
            engine.change(endpoint(n, f"app=a{n}"))
            engine.change(
                document(f"p{n}", f"a{n}", f"a{(n + 1) % size}", cmd=("HALT", "RESET")[turn % 2])
            )
            if turn < 3:
                engine.change(Change(endpoints={n: None}))

    def ask() -> int:
        asked = 0
        while not done.is_set():
            for number in engine.endpoints:
                with suppress(KeyError):
                    engine.map_state(number)
                    assert engine.policy(number).resource.startswith(b"\n")
                    asked += 1
            engine.addresses()
        return asked

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        for changing in [pool.submit(change, n) for n in range(size)]:
            changing.result()
        done.set()
        assert sum(question.result() for question in asking)
    expected = crowd(size)
    for n in range(size):
        expected.change(document(f"p{n}", f"a{n}", f"a{(n + 1) % size}", cmd="RESET"))
    assert engine.revision == size * 11
    for n in range(size):
        ours, theirs = (e.known_identities()[e.policy(n).identity] for e in (engine, expected))
        assert ours == theirs
        assert len(engine.map_state(n)) == len(expected.map_state(n))
