"""The incremental engine against the naive evaluator, and what a change costs it.

Random documents, endpoints and names come and go in random order; after each change
the NetworkPolicy resources, as the data path reads them, and the L4 map state say
for every request what tests/xds/naive.py says from the documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxylib.errors import ConfigError
from proxylib.hosts import HostMap, compile_hosts
from proxylib.policy import PolicyMap, compile_policies
from proxylib.registry import get_parser_factory
from tests.xds.naive import Document, Request, World
from xds.documents import load_policies
from xds.endpoints import Endpoint, load_endpoints
from xds.engine import Change, Changes, Engine
from xds.identity import LOCAL_SCOPE, Identities, MemoryStore
from xds.labels import label_set, parse_label
from xds.mapstate import PROTOCOL_NUMBERS, MapState, Verdict
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
        rule[f"{prefix}Entities"] = [draw(st.sampled_from(["all", "world"]))]
    elif peers == "FQDNs" and not ingress and not deny:
        rule["toFQDNs"] = draw(st.lists(fqdns, min_size=1, max_size=2))
    if draw(st.integers(0, 9)) == 0:
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


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=1, max_size=10))
def test_every_change_leaves_what_the_documents_say(story: list[tuple[Any, ...]]) -> None:
    pair = Pair()
    for step in story:
        pair.step(step)
        pair.check()


@settings(max_examples=60, deadline=None)
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
