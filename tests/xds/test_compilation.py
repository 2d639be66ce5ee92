"""Compiled policies, judged by the data path's own reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from proxylib.hosts import compile_hosts
from proxylib.policy import PolicyMap, compile_policies
from proxylib.proto import npds_pb2 as npds
from proxylib.registry import get_parser_factory
from tests.xds.conftest import example
from xds.compilation import NETWORK_POLICY, NETWORK_POLICY_HOSTS, Resources
from xds.documents import load_policies
from xds.endpoints import load_endpoints
from xds.engine import Change, Engine
from xds.source import DocumentError, read_documents

ENDPOINTS = """
endpoints:
- {address: 10.0.0.1, labels: {app: server}}
- {address: 10.0.0.2, labels: {app: a}}
- {address: 10.0.0.3, labels: {app: b}}
- {addresses: [10.0.0.4, "fd00::4"], labels: {app: server, tier: two}}
- {address: 10.0.0.5}
"""
SERVER, A, B, TWO, BARE = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"
OUTSIDE = "192.0.2.1"


def resources(policies: str, endpoints: str = ENDPOINTS) -> Resources:
    found = load_endpoints(read_documents("e.yaml", endpoints))
    engine = Engine()
    changes = engine.change(
        Change(
            policies={"p.yaml": load_policies(read_documents("p.yaml", policies))},
            endpoints=dict(enumerate(found, 1)),
        )
    )
    hosts = (engine.hosts(identity) for identity in sorted(changes.hosts))
    return {
        NETWORK_POLICY: tuple(engine.resource(number) for number in engine.endpoints),
        NETWORK_POLICY_HOSTS: tuple(resource for resource in hosts if resource is not None),
    }


class World:
    """The data path's view of some documents."""

    def __init__(self, policies: str, endpoints: str = ENDPOINTS) -> None:
        compiled = resources(policies, endpoints)
        self.policy: PolicyMap = compile_policies(compiled[NETWORK_POLICY], get_parser_factory)
        self.hosts = compile_hosts(compiled[NETWORK_POLICY_HOSTS], version="1")

    def allows(
        self,
        client: str,
        server: str = SERVER,
        port: int = 80,
        *,
        parser: str = "r2d2",
        egress: bool = False,
        headers: Sequence[tuple[bytes, bytes]] = (),
        **message: str,
    ) -> bool:
        subject, remote = (client, server) if egress else (server, client)
        decision = self.policy.decide(
            subject,
            ingress=not egress,
            port=port,
            remote=self.hosts.identity(remote),
            parser=parser,
        )
        defaults: Mapping[str, bytes] = {"cmd": b"HALT", "file": b""}
        said: dict[str, Any] = {k: v.encode() for k, v in message.items()}
        return bool(decision.matcher({**defaults, **said, "host": b"h", "headers": headers}))


def spec(body: str, selector: str = "{matchLabels: {app: server}}", name: str = "p") -> str:
    lines = "".join(f"  {line}\n" for line in body.strip("\n").splitlines())
    head = f"---\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\n"
    return f"{head}spec:\n  endpointSelector: {selector}\n{lines}"


FROM_A = "fromEndpoints: [{matchLabels: {app: a}}]"
PORT_80 = "toPorts: [{ports: [{port: 80, protocol: TCP}]}]"


def r2d2(rules: str, port: str = "port: 80, protocol: TCP") -> str:
    return f"toPorts: [{{ports: [{{{port}}}], rules: {{l7proto: r2d2, l7: {rules}}}}}]"


def test_without_policies_everything_is_allowed_to_known_endpoints() -> None:
    world = World("")
    assert world.allows(OUTSIDE)
    assert world.allows(A, egress=True)
    assert world.allows(A, "fd00::4")
    assert not world.allows(A, OUTSIDE), "an endpoint that nobody knows is closed"


def test_first_rule_makes_a_white_list_of_its_direction_alone() -> None:
    world = World(spec(f"ingress: [{{{FROM_A}}}]"))
    assert world.allows(A)
    assert world.allows(A, port=1)
    assert world.allows(A, TWO), "the selector takes both servers"
    assert not world.allows(B)
    assert not world.allows(OUTSIDE)
    assert world.allows(SERVER, OUTSIDE, egress=True)
    assert world.allows(B, A), "an endpoint that nothing selects stays open"


def test_empty_rule_and_empty_selections_allow_nobody() -> None:
    for rule in ("{}", "{fromEndpoints: []}", "{fromEndpoints: [{matchLabels: {app: none}}]}"):
        world = World(spec(f"ingress: [{rule}]"))
        assert not any(world.allows(client) for client in (A, B, SERVER, BARE, OUTSIDE)), rule
    for rule in (
        f"{{fromEndpoints: [], {PORT_80}}}",
        f"{{fromEndpoints: [{{matchLabels: {{app: none}}}}], {r2d2('[{}]')}}}",
    ):
        assert not World(spec(f"ingress: [{rule}]")).allows(A), rule


def test_selecting_nobody_leaves_other_rules_of_the_port_alone() -> None:
    nobody = "fromEndpoints: [{matchLabels: {app: none}}]"
    world = World(spec(f"ingress: [{{{nobody}, {PORT_80}}}, {{{FROM_A}, {PORT_80}}}]"))
    assert world.allows(A)
    assert not world.allows(B)


def test_everybody_is_every_endpoint_but_not_the_world() -> None:
    world = World(spec("ingress: [{fromEndpoints: [{}]}]"))
    assert world.allows(A)
    assert world.allows(BARE)
    assert not world.allows(OUTSIDE)
    anybody = World(spec(f"ingress: [{{{PORT_80}}}]"))
    assert anybody.allows(OUTSIDE)
    assert not anybody.allows(OUTSIDE, port=81)


def test_the_world_by_its_reserved_label() -> None:
    world = World(spec("ingress: [{fromEndpoints: [{matchLabels: {'reserved:world': ''}}]}]"))
    assert world.allows(OUTSIDE)
    assert not world.allows(A)


def test_egress() -> None:
    world = World(
        spec("egress: [{toEndpoints: [{matchLabels: {app: server}}]}]", "{matchLabels: {app: a}}")
    )
    assert world.allows(A, SERVER, egress=True)
    assert not world.allows(A, B, egress=True)
    assert not world.allows(A, OUTSIDE, egress=True)
    assert world.allows(B, A), "its ingress is untouched"


def test_l7_rules_are_per_remote() -> None:
    world = World(
        spec(
            f"""
ingress:
- {FROM_A}
  {r2d2("[{cmd: READ, file: '^x'}, {cmd: HALT}]")}
- fromEndpoints: [{{matchLabels: {{app: b}}}}]
  {r2d2("[{cmd: RESET}]")}
"""
        )
    )
    assert world.allows(A, cmd="READ", file="x1")
    assert not world.allows(A, cmd="READ", file="y")
    assert world.allows(A, cmd="HALT")
    assert not world.allows(A, cmd="RESET")
    assert world.allows(B, cmd="RESET")
    assert not world.allows(B, cmd="HALT")
    assert not world.allows(BARE, cmd="HALT")
    assert not world.allows(A, cmd="HALT", parser="test.xds"), "rules of another parser"


@pytest.mark.parametrize("rules", ["[{}]", "[{cmd: }]"])
def test_l7_rules_that_ask_nothing_allow_all(rules: str) -> None:
    world = World(
        spec(f"ingress: [{{{FROM_A}, {r2d2(rules)}}}, {{{FROM_A}, {r2d2('[{cmd: HALT}]')}}}]")
    )
    assert world.allows(A, cmd="RESET")
    assert not world.allows(B, cmd="RESET")


@pytest.mark.parametrize(
    "l4",
    [
        PORT_80,
        "toPorts: [{ports: [{port: 0}]}]",
        "toPorts: [{ports: [{port: 70, endPort: 90}]}]",
        "",
    ],
)
def test_allow_without_l7_beside_l7_allows_all_to_its_remotes(l4: str) -> None:
    l4_rule = f"{FROM_A}, {l4}" if l4 else FROM_A
    world = World(
        spec(f"ingress: [{{{l4_rule}}}, {{fromEndpoints: [{{}}], {r2d2('[{cmd: HALT}]')}}}]")
    )
    assert world.allows(A, cmd="RESET")
    assert world.allows(B, cmd="HALT")
    assert not world.allows(B, cmd="RESET")


def test_ports_and_protocols() -> None:
    world = World(
        spec(
            """
ingress:
- toPorts:
  - ports: [{port: 80, endPort: 82}, {port: 90, protocol: TCP}]
  - ports: [{port: 100, protocol: UDP}, {port: 101, protocol: SCTP}]
"""
        )
    )
    found = [port for port in range(79, 103) if world.allows(A, port=port)]
    assert found == [80, 81, 82, 90]
    (first, *_) = resources(spec("ingress: [{toPorts: [{ports: [{port: 100, protocol: UDP}]}]}]"))[
        NETWORK_POLICY
    ]
    (entry,) = npds.NetworkPolicy.FromString(first).ingress_per_port_policies
    assert (entry.port, entry.protocol) == (100, npds.UDP)


def test_deny_wins() -> None:
    allow = "ingress: [{fromEndpoints: [{}]}]"
    deny_a = World(spec(f"{allow}\ningressDeny: [{{{FROM_A}}}]"))
    assert not deny_a.allows(A)
    assert deny_a.allows(B)
    deny_port = World(spec(f"{allow}\ningressDeny: [{{{PORT_80}}}]"))
    assert not deny_port.allows(A)
    assert deny_port.allows(A, port=81)
    nobody = World(spec(f"{allow}\ningressDeny: [{{fromEndpoints: []}}]"))
    assert nobody.allows(A)
    only_deny = World(spec(f"ingressDeny: [{{{FROM_A}}}]"))
    assert not only_deny.allows(A)
    assert not only_deny.allows(B), "a deny rule makes the white list too"


def test_documents_merge() -> None:
    world = World(
        spec(f"ingress: [{{{FROM_A}, {r2d2('[{cmd: HALT}]')}}}]", name="one")
        + spec(f"ingress: [{{{FROM_A}, {r2d2('[{cmd: RESET}]')}}}]", "{}", name="two")
    )
    assert world.allows(A, cmd="HALT")
    assert world.allows(A, cmd="RESET")
    assert not world.allows(A, cmd="READ")
    assert not world.allows(A, BARE, cmd="HALT"), "only the second is about it"


def test_two_parsers_on_one_port_are_refused_naming_both_places() -> None:
    other = r2d2("[{}]", "port: 79, endPort: 81, protocol: TCP").replace("r2d2", "test.xds")
    text = spec(f"ingress: [{{{FROM_A}, {r2d2('[{}]')}}}]", name="one") + spec(
        f"ingress:\n- fromEndpoints: []\n  {other}", "{}", name="two"
    )
    with pytest.raises(DocumentError) as caught:
        resources(text)
    (problem,) = caught.value.problems
    columns = [line.index("l7proto") + 1 for line in text.splitlines() if "l7proto" in line]
    path = "spec.ingress[0].toPorts[0].rules.l7proto"
    assert str(problem.place) == f"p.yaml:6:{columns[0]}: {path}"
    assert "port 80 has l7proto 'r2d2' here and 'test.xds' at " in problem.message
    assert f"p.yaml:14:{columns[1]}: {path}" in problem.message


def test_two_parsers_on_different_ports_endpoints_or_directions() -> None:
    other = r2d2("[{}]").replace("r2d2", "test.xds")
    for text in (
        spec(f"ingress: [{{{r2d2('[{}]')}}}, {{{other.replace('80', '81')}}}]"),
        spec(f"ingress: [{{{r2d2('[{}]')}}}]\negress: [{{{other}}}]"),
        spec(f"ingress: [{{{r2d2('[{}]')}}}]", "{matchLabels: {app: a}}", "x")
        + spec(f"ingress: [{{{other}}}]", "{matchLabels: {app: b}}", "y"),
    ):
        assert resources(text)


def test_kafka_example() -> None:
    endpoints = (
        f"endpoints: [{{address: {SERVER}, labels: {{app: kafka}}}},"
        f" {{address: {A}, labels: {{app: alpine}}}}, {{address: {B}, labels: {{app: other}}}}]"
    )
    world = World(example("kafka-rule2"), endpoints)

    def allows(client: str, api: str, topic: str) -> bool:
        return world.allows(
            client, port=9092, parser="kafka", api_key=api, api_version="4", topics=topic
        )

    assert allows(A, "Fetch", "msgs")
    assert not allows(A, "Fetch", "other")
    assert not allows(A, "Produce", "msgs")
    assert not allows(B, "Fetch", "msgs")


_HTTP = {
    # example: (labels of the server, labels of the client, requests and whether they may)
    "http-rule1": (
        "{app: service}",
        "{env: prod}",
        {
            "GET /public": True,
            "GET /public/x": False,
            "GET /": False,
            "POST /public": False,
        },
    ),
    "http-l7-rule": (
        "{app: myService}",
        "{app: any}",
        {
            "GET /path1": True,
            "GET /path1x": False,
            "GET /x/path1": False,
            "PUT /path2": False,
            "PUT /path2 x-my-header=true": True,
            "PUT /path2 x-my-header=false": False,
            "PUT /path1 x-my-header=true": False,
        },
    ),
    "nginx-ingress-l7": (
        "{app: nginx}",
        "{app: alpine}",
        {"GET /welcome": True, "HEAD /welcome": False, "HEAD /": False},
    ),
    "grpc-rule1": (
        "{app: nginx}",
        "{app: alpine}",
        {
            "POST /gmem.UserManager/GetName": True,
            "POST /gmem.UserManager/GetAge": False,
            "GET /gmem.UserManager/GetName": False,
        },
    ),
}


@pytest.mark.parametrize("name", _HTTP)
def test_http_examples(name: str) -> None:
    server, client, requests = _HTTP[name]
    world = World(
        example(name),
        f"endpoints: [{{address: {SERVER}, labels: {server}}}, {{address: {A}, labels: {client}}}]",
    )
    for request, expected in requests.items():
        method, path, *headers = request.split(" ")
        pairs = [tuple(header.encode().split(b"=")) for header in headers]
        said = world.allows(A, parser="http", method=method, path=path, headers=pairs)
        assert said == expected, request


def test_http_rules_on_the_wire() -> None:
    text = spec(
        "ingress: [{toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {http: ["
        "{method: GET, headers: [X-A, 'X-B: [0-9]+'], headerMatches: ["
        "{name: X-C, secret: {name: s}, mismatch: REPLACE},"
        "{name: X-D, value: d, secret: {namespace: n, name: s}}]}]}}]}]"
    )
    (policy,) = [
        policy
        for policy in map(npds.NetworkPolicy.FromString, resources(text)[NETWORK_POLICY])
        if SERVER in policy.endpoint_ips
    ]
    (rule,) = policy.ingress_per_port_policies[0].rules[0].http_rules.http_rules
    assert [matcher.name for matcher in rule.headers] == [":method", "x-a", "x-b"]
    assert rule.headers[0].string_match.safe_regex.regex == "GET"
    assert rule.headers[1].present_match
    assert [(m.name, m.value, m.value_sds_secret) for m in rule.header_matches] == [
        ("x-c", "", "default/s"),
        ("x-d", "d", "n/s"),
    ]
    assert rule.header_matches[0].mismatch_action == npds.HeaderMatch.REPLACE_ON_MISMATCH
    assert rule.header_matches[1].mismatch_action == npds.HeaderMatch.FAIL_ON_MISMATCH


def test_memcache_example() -> None:
    endpoints = (
        "endpoints:\n"
        "- {address: 10.0.0.1, labels: {app: memcached}}\n"
        "- {address: 10.0.0.2, labels: {function: fleet-maintanence}}\n"
        "- {address: 10.0.0.3, labels: {function: fleet-monitoring}}\n"
        "- {address: 10.0.0.4, labels: {role: jedi}}\n"
    )
    compiled = resources(example("secure-rebel-alliance-memcache"), endpoints)
    policy = npds.NetworkPolicy.FromString(compiled[NETWORK_POLICY][0])
    (entry,) = policy.ingress_per_port_policies
    assert (list(policy.endpoint_ips), policy.endpoint_id, entry.port) == (["10.0.0.1"], 1, 11211)
    hosts = compile_hosts(compiled[NETWORK_POLICY_HOSTS], version="1")
    who = {hosts.identity(f"10.0.0.{n}"): n for n in (2, 3, 4)}
    said = {
        who[rule.remote_policies[0]]: [dict(item.rule) for item in rule.l7_rules.l7_allow_rules]
        for rule in entry.rules
    }
    fleet = {"keyPrefix": "alliance/fleet/"}
    assert said == {
        2: [{"command": "writeGroup", **fleet}, {"command": "get", **fleet}],
        3: [{"command": "get", **fleet}],
        4: [{"command": ""}],
    }


def test_same_documents_same_bytes() -> None:
    text = spec(f"ingress: [{{fromEndpoints: [{{}}], {r2d2('[{cmd: READ, file: a}]')}}}]")
    assert resources(text) == resources(text)


def test_endpoints_of_one_identity_share_it() -> None:
    endpoints = "endpoints: [{address: 10.0.0.2}, {address: 10.0.0.1}]"
    hosts = resources("", endpoints)[NETWORK_POLICY_HOSTS]
    (only,) = map(npds.NetworkPolicyHosts.FromString, hosts)
    assert (only.policy, list(only.host_addresses)) == (256, ["10.0.0.1", "10.0.0.2"])
