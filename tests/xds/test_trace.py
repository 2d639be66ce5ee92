"""The trace: what it says of rules, and that its verdict is what the data path does.

The property test sends real bytes through the parser: random policies, random requests,
both ends' policies; the trace must foretell every one of them, and agree with itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import parsers.http
import parsers.kafka
import parsers.memcache
import parsers.r2d2  # noqa: F401 - all register their parsers
from proxylib.connection import Connection
from proxylib.hosts import compile_hosts
from proxylib.logstream import no_log
from proxylib.ops import PASS
from proxylib.policy import PolicyMap, compile_policies
from proxylib.registry import get_parser_factory
from tests.xds.conftest import example
from xds.engine import Change, Engine
from xds.labels import label_set, parse_label
from xds.reading import Reader, Source
from xds.trace import End, Question, Trace, TraceError, trace
from xds.trace_request import Request, parse_fields, parse_http

ENDPOINTS = """
endpoints:
- {address: 10.0.0.1, labels: {app: memcached}}
- {address: 10.0.0.2, labels: {function: fleet-monitoring}}
- {address: 10.0.0.3, labels: {role: jedi}}
"""


def engine_of(policies: str, endpoints: str = ENDPOINTS) -> Engine:
    sources = [Source("policy.yaml", lambda: policies)] if policies else []
    read = Reader().read(sources, [Source("endpoints.yaml", lambda: endpoints)])
    engine = Engine()
    engine.change(
        Change(
            policies=read.policies,
            endpoints=dict(enumerate(read.endpoints, 1)),
            services=read.services.resolve,
        )
    )
    return engine


def ask(
    engine: Engine,
    source: str,
    destination: str,
    port: int = 11211,
    request: Request | None = None,
    **more: Any,
) -> Trace:
    return trace(engine, Question(end(source), end(destination), port, request=request, **more))


def end(text: str) -> End:
    if text.isdigit():
        return End(identity=int(text))
    if text[0].isdigit():
        return End(address=text)
    return End(labels=label_set(map(parse_label, text.split(","))))


REBELS = engine_of(example("secure-rebel-alliance-memcache"))


def test_every_rule_is_told_with_its_place_and_its_reason() -> None:
    found = ask(REBELS, "10.0.0.2", "app=memcached", request=parse_fields("command=set key=x"))
    assert (found.verdict, found.agrees) == ("denied", True)
    assert (found.source.endpoint, found.destination.endpoint) == (2, 1)
    egress, ingress = found.directions
    assert (egress.verdict, egress.enforced, egress.not_selecting) == ("allowed", False, 1)
    assert (ingress.l4, ingress.enforced) == ("redirect", True)
    assert ingress.parser in ("memcache", "test.xds")
    assert [(step.matched, step.reason.split(":")[0]) for step in ingress.steps] == [
        (False, "the source is not function=fleet-maintanence"),
        (False, f"the request matches none of {ingress.parser}"),
        (False, "the source is not role=jedi"),
    ]
    assert ingress.steps[1].place == "policy.yaml:25:7: specs[0].ingress[1]"


def test_the_rule_that_decides() -> None:
    request = parse_fields("command=get key=alliance/fleet/x")
    found = ask(REBELS, "10.0.0.2", "10.0.0.1", request=request)
    assert found.verdict == "allowed"
    (decides,) = [step for step in found.directions[1].steps if step.matched]
    assert decides.effect == "allow"
    assert "policy.yaml:35:13" in decides.reason
    depends = ask(REBELS, "10.0.0.3", "10.0.0.1")
    assert depends.verdict == "depends"
    (judges,) = [step for step in depends.directions[1].steps if step.matched]
    assert judges.effect == "parser"


@pytest.mark.parametrize("whose", ["endpoint", "document"])
def test_what_passes_by_audit_mode_only(whose: str) -> None:
    """A request, and a connection."""
    policy, endpoints = example("secure-rebel-alliance-memcache"), ENDPOINTS
    if whose == "endpoint":
        endpoints = endpoints.replace("memcached}}", "memcached}, audit: true}")
    else:
        audited = "metadata:\n  annotations: {proxylib.io/audit: 'true'}"
        policy = policy.replace("metadata:", audited)
    engine = engine_of(policy, endpoints)
    for text, told in (
        ("command=set key=x", "matches none of"),
        ("command=get key=alliance/fleet/x", "matches"),
    ):
        found = ask(engine, "10.0.0.2", "app=memcached", request=parse_fields(text))
        ingress = found.directions[-1]
        assert (found.verdict, found.agrees, ingress.audit) == ("allowed", True, told != "matches")
        assert ingress.reason == f"L7: the request {told} the rules"
    found = ask(engine, "10.0.0.3", "app=memcached", port=80)
    assert (found.verdict, found.directions[-1].audit) == ("allowed", True)


def test_labels_that_nobody_has() -> None:
    found = ask(REBELS, "function=fleet-maintanence,x=y", "app=memcached", request=SET)
    assert found.verdict == "allowed"
    assert found.source.hypothetical
    assert found.destination.endpoint == 1
    assert ask(REBELS, "role=sith", "app=memcached", request=SET).verdict == "denied"
    assert ask(REBELS, "role=jedi", "app=memcached,x=y", request=SET).verdict == "allowed"
    assert ask(REBELS, "a=b", "a=b", port=1).verdict == "allowed"
    # Nothing of what was tried stays.
    assert set(REBELS.endpoints) == {1, 2, 3}


SET = parse_fields("command=set key=alliance/fleet/x")


DNS = """
kind: CiliumNetworkPolicy
metadata: {name: dns}
spec:
  endpointSelector: {matchLabels: {role: jedi}}
  egress:
  - toEntities: [world]
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules: {dns: [{matchName: cilium.io}]}
  - toFQDNs: [{matchName: cilium.io}]
"""


@pytest.mark.parametrize(
    ("protocol", "port", "verdict"),
    [("UDP", 53, "depends"), ("TCP", 53, "denied"), ("SCTP", 53, "depends"), ("UDP", 54, "denied")],
)
def test_what_has_no_parser(protocol: str, port: int, verdict: str) -> None:
    found = ask(engine_of(DNS), "role=jedi", "8.8.8.8", port, protocol=protocol)
    assert (found.verdict, found.agrees) == (verdict, True)


def test_names_and_prefixes() -> None:
    engine = engine_of(DNS)
    assert ask(engine, "role=jedi", "93.184.216.34", 443).verdict == "denied"
    engine.change(Change(names={"cilium.io": [ip_address("93.184.216.34")]}))
    for source in ("role=jedi", "10.0.0.3"):
        found = ask(engine, source, "93.184.216.34", 443)
        assert (found.verdict, found.agrees) == ("allowed", True)
    # Where nobody has the labels, names mean the same.
    assert ask(engine, "role=jedi,x=y", "93.184.216.34", 443).verdict == "allowed"


def test_a_source_may_be_left_out() -> None:
    engine = engine_of(
        "", "endpoints: [{address: 10.0.0.1, labels: ['k8s:app=a', 'container:b=c']}]"
    )
    assert ask(engine, "app=a,b=c", "8.8.8.8").source.endpoint == 1
    assert ask(engine, "k8s:app=a,b=c", "8.8.8.8").source.endpoint == 1
    for others in ("container:app=a,b=c", "app=a", "app=a,b=d", "app=a,b=c,d=e"):
        assert ask(engine, others, "8.8.8.8").source.hypothetical


def test_outside() -> None:
    world = ask(REBELS, "8.8.8.8", "10.0.0.1")
    assert world.source.identity == 2
    assert not world.directions[0].judged
    assert world.verdict == "denied"
    assert ask(REBELS, "2", "10.0.0.1").source.labels == ("reserved:world",)
    assert ask(REBELS, "10.0.0.1", "8.8.8.8", port=443).verdict == "allowed"


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"source": End(identity=4711)}, "no identity 4711"),
        ({"source": End(address="10.0.0.256")}, "does not appear to be"),
        ({"source": End()}, "needs an address"),
        ({"port": 0}, "from 1 to 65535"),
        ({"protocol": "ICMP"}, "none of TCP"),
        ({"request": SET, "protocol": "UDP"}, "on TCP only"),
        ({"request": parse_http("GET /")}, "the request is for http"),
        ({"request": parse_fields("colour=red")}, "no property 'colour'"),
        ({"source": End(labels=label_set([parse_label("reserved:nobody")]))}, "nothing is known"),
    ],
)
def test_questions_that_make_no_sense(question: Mapping[str, Any], message: str) -> None:
    whole = {"source": end("10.0.0.3"), "destination": end("10.0.0.1"), "port": 11211}
    with pytest.raises(TraceError, match=message):
        trace(REBELS, Question(**{**whole, **question}))


HTTP = """
kind: CiliumNetworkPolicy
metadata: {name: web}
spec:
  endpointSelector: {matchLabels: {app: memcached}}
  ingress:
  - fromEndpoints: [{}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules:
        http:
        - {method: GET, path: "/public/.*"}
        - {host: "admin[.]local"}
        - {method: PUT, headers: ["X-Droid: r2d2", "X-Any"]}
"""


@pytest.mark.parametrize(
    ("text", "headers", "verdict"),
    [
        ("GET /public/x", (), "allowed"),
        ("GET /public/../secret", (), "denied"),
        ("POST /public/x", (), "denied"),
        ("POST http://admin.local/x", (), "allowed"),
        ("POST /x", ("Host: admin.local",), "allowed"),
        ("PUT /x", ("X-Droid: r2d2", "x-any: 1"), "allowed"),
        ("PUT /x", ("X-Droid: c3po", "x-any: 1"), "denied"),
    ],
)
def test_http(text: str, headers: tuple[str, ...], verdict: str) -> None:
    found = ask(engine_of(HTTP), "10.0.0.2", "10.0.0.1", 80, parse_http(text, headers))
    assert (found.verdict, found.agrees) == (verdict, True)


KAFKA = """
kind: CiliumNetworkPolicy
metadata: {name: kafka}
spec:
  endpointSelector: {matchLabels: {app: memcached}}
  ingress:
  - toPorts:
    - ports: [{port: "9092", protocol: TCP}]
      rules: {kafka: [{role: produce, topic: deathstar-plans}]}
"""


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("api_key=produce topic=deathstar-plans", "allowed"),
        ("api_key=0 topics=deathstar-plans topics=other", "denied"),
        ("apiKey=fetch topic=deathstar-plans", "denied"),
        ("api_key=apiversions", "allowed"),
    ],
)
def test_kafka(text: str, verdict: str) -> None:
    request = parse_fields(text, "kafka")
    found = ask(engine_of(KAFKA), "10.0.0.2", "10.0.0.1", 9092, request)
    assert (found.verdict, found.agrees) == (verdict, True)


# The property.

APPS = ("a", "b", "c")
OUTSIDE = "172.16.5.5"
ADDRESSES = {f"10.1.0.{n}": app for n, app in enumerate(APPS, 1)}
WORLD = json.dumps(
    {
        "endpoints": [
            {"address": ip, "labels": {"app": app}, "ports": {"droid": 80 + n}}
            for n, (ip, app) in enumerate(ADDRESSES.items())
        ]
    }
)
PORTS = (79, 80, 81)
LINES = ("HALT", "READ x", "READ y")

selectors = st.sampled_from(
    [
        {},
        *({"matchLabels": {"app": app}} for app in (*APPS, "none")),
        {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]},
    ]
)
ports = st.sampled_from(
    [
        {"port": 0, "protocol": "TCP"},
        {"port": 80, "protocol": "TCP"},
        {"port": 80, "endPort": 81, "protocol": "TCP"},
        {"port": "droid", "protocol": "TCP"},
        {"port": 80, "protocol": "ANY"},
        {"port": 80, "protocol": "UDP"},
    ]
)
l7 = st.lists(
    st.sampled_from([{"cmd": "HALT"}, {"cmd": "READ", "file": "^x"}, {"file": "y$"}, {}]),
    min_size=1,
    max_size=2,
)


@st.composite
def rules(draw: st.DrawFn, ingress: bool, deny: bool) -> dict[str, Any]:
    way = "from" if ingress else "to"
    rule: dict[str, Any] = {}
    match draw(st.sampled_from(["", "Endpoints", "Entities", "CIDRSet"])):
        case "Endpoints":
            rule[f"{way}Endpoints"] = draw(st.lists(selectors, max_size=2))
        case "Entities":
            entities = st.sampled_from(["all", "world", "cluster", "host", "none"])
            rule[f"{way}Entities"] = [draw(entities)]
        case "CIDRSet":
            ranges = [
                {"cidr": "172.16.0.0/12"},
                {"cidr": "0.0.0.0/0", "except": ["172.16.0.0/16"]},
                {"cidr": "10.0.0.0/8"},
            ]
            rule[f"{way}CIDRSet"] = [draw(st.sampled_from(ranges))]
    if draw(st.booleans()):
        entry: dict[str, Any] = {"ports": draw(st.lists(ports, min_size=1, max_size=2))}
        plain = all(port["port"] and port["protocol"] == "TCP" for port in entry["ports"])
        if not deny and plain and draw(st.booleans()):
            entry["rules"] = {"l7proto": "r2d2", "l7": draw(l7)}
        rule["toPorts"] = [entry]
    if draw(st.integers(0, 7)) == 0:
        rule[f"{way}Requires"] = [draw(selectors)]
    return rule


def specs() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "endpointSelector": selectors,
            "ingress": st.lists(rules(ingress=True, deny=False), min_size=1, max_size=2),
        },
        optional={
            "ingressDeny": st.lists(rules(ingress=True, deny=True), max_size=1),
            "egress": st.lists(rules(ingress=False, deny=False), max_size=2),
            "egressDeny": st.lists(rules(ingress=False, deny=True), max_size=1),
            "enableDefaultDeny": st.fixed_dictionaries(
                {"ingress": st.booleans(), "egress": st.booleans()}
            ),
        },
    )


documents = st.lists(
    st.tuples(specs(), st.integers(0, 4).map(lambda n: n == 0)), min_size=1, max_size=3
)


def text_of(policies: list[tuple[dict[str, Any], bool]]) -> str:
    annotations = {True: {"proxylib.io/audit": "true"}, False: {}}
    return "\n---\n".join(
        json.dumps(
            {
                "kind": "CiliumNetworkPolicy",
                "metadata": {"name": f"p{number}", "annotations": annotations[audit]},
                "spec": spec,
            }
        )
        for number, (spec, audit) in enumerate(policies)
    )


class Instance:
    """What a connection needs of the library: the policy in force."""

    def __init__(self, policy: PolicyMap) -> None:
        self.policy = policy


class DataPath:
    """The library's own view of an engine's resources, and the r2d2 parser on top."""

    def __init__(self, engine: Engine) -> None:
        numbers = sorted(engine.endpoints)
        self.instance = Instance(
            compile_policies([engine.resource(n) for n in numbers], get_parser_factory)
        )
        known = (engine.hosts(number) for number in sorted(engine.known_identities()))
        self.hosts = compile_hosts([hosts for hosts in known if hosts is not None], version="1")

    def passes(self, client: str, server: str, port: int, line: str) -> bool:
        """Whether a request line gets through the policies of both ends."""
        return all(
            subject not in ADDRESSES or self._judged(subject, ingress, client, server, port, line)
            for subject, ingress in ((client, False), (server, True))
        )

    def _judged(
        self, subject: str, ingress: bool, client: str, server: str, port: int, line: str
    ) -> bool:
        connection = Connection(
            self.instance,
            "r2d2",
            ingress=ingress,
            src_id=self.hosts.identity(client),
            dst_id=self.hosts.identity(server),
            src_addr=f"{client}:1",
            dst_addr=f"{server}:{port}",
            port=port,
            policy_name=subject,
            log=no_log,
        )
        factory = get_parser_factory("r2d2")
        assert factory is not None
        parser = factory.create(connection)
        assert parser is not None
        connection.attach(parser)
        ops: list[int] = []
        connection.on_data(False, False, [f"{line}\r\n".encode()], ops)
        return ops[0] == PASS


@settings(max_examples=120)
@given(documents)
def test_the_trace_foretells_the_data_path(policies: list[tuple[dict[str, Any], bool]]) -> None:
    engine = engine_of(text_of(policies), WORLD)
    data_path = DataPath(engine)
    for client in (*ADDRESSES, OUTSIDE):
        for server in ADDRESSES:
            for port in PORTS:
                for line in LINES:
                    cmd, _, file = line.partition(" ")
                    fields = {"cmd": (cmd,), "file": (file,)}
                    found = ask(engine, client, server, port, Request("r2d2", fields))
                    expected = data_path.passes(client, server, port, line)
                    where = (client, server, port, line, found)
                    assert found.agrees, where
                    assert (found.verdict == "allowed") is expected, where
