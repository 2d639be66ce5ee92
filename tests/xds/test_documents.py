"""What loads, what it means, and that what is wrong is said: where, what, all of it."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from tests.xds.conftest import EXAMPLES, example
from xds.documents import load_policies
from xds.entities import reserved_selector
from xds.fqdn import Fqdn
from xds.labels import Operator, Selector, label_set, parse_label, requirement
from xds.policy import Cidr, Icmp, Listener, Policy, Port, Service, TLSContext
from xds.source import DocumentError, read_documents

HEAD = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n"


def load(text: str) -> list[Policy]:
    return load_policies(read_documents("p.yaml", text))


def errors(text: str) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        load(text)
    return [str(problem) for problem in caught.value.problems]


def spec(body: str) -> str:
    lines = "".join(f"  {line}\n" for line in body.strip("\n").splitlines())
    return f"{HEAD}spec:\n  endpointSelector: {{}}\n{lines}"


def app(**labels: str) -> Selector:
    return Selector(
        frozenset(requirement(key, Operator.IN, [value]) for key, value in labels.items())
    )


def test_memcache_example_as_it_stands() -> None:
    (policy,) = load(example("secure-rebel-alliance-memcache"))
    assert policy.name == "secure-rebel-alliance-memcache"
    assert policy.subject == app(app="memcached")
    assert [rule.peers for rule in policy.ingress] == [
        (app(function="fleet-maintanence"),),
        (app(function="fleet-monitoring"),),
        (app(role="jedi"),),
    ]
    assert policy.egress == ()
    first, _, last = (rule.ports[0] for rule in policy.ingress if rule.ports)
    assert first.ports == (Port(11211, 0, "TCP"),)
    assert first.l7 is not None
    assert first.l7.rules == (
        (("command", "writeGroup"), ("keyPrefix", "alliance/fleet/")),
        (("command", "get"), ("keyPrefix", "alliance/fleet/")),
    )
    # `- command:` asks nothing of the command.
    assert last.l7 is not None
    assert last.l7.rules == ((("command", ""),),)


def test_specs_as_one_mapping() -> None:
    text = example("secure-empire-cassandra").replace("query_table", "keyRegex")
    text = text.replace("query_action", "command").replace('"select"', '"get"')
    text = text.replace('"insert"', '"set"').replace("cassandra", "test.xds")
    (policy,) = load(text)
    assert policy.subject == app(app="cass-server")
    assert str(policy.ingress[0].origin.place) == "p.yaml:10:5: specs.ingress[0]"


@pytest.mark.parametrize(
    "name",
    [
        "allow-all-from-frontend",
        "allow-all-to-victim",
        "deny-all-egress",
        "l3-egress-rule",
        "l3-rule",
    ],
)
def test_l3_examples_load(name: str) -> None:
    (policy,) = load(example(name))
    assert policy.ingress or policy.egress


def test_misnested_example_says_where_things_belong() -> None:
    text = (EXAMPLES / "misnested-empire-cassandra.yaml").read_text()
    found = errors(text)
    assert len(found) == 5
    assert found[0].startswith("p.yaml:4:1: metadata: is empty")
    assert "p.yaml:5:1: name: does not belong here; it belongs under 'metadata'" in found[1]
    assert found[2].startswith("p.yaml:7:3: specs[0].endpointSelector: is empty")
    assert found[3].startswith("p.yaml:8:3: specs[0].matchLabels: does not belong here")
    assert "p.yaml:10:1: ingress: does not belong here; it belongs under 'spec'" in found[4]


def test_all_fields_of_this_version() -> None:
    (policy,) = load(
        spec(
            """
description: d
labels: [{key: k, value: v, source: k8s}]
ingress:
- fromEndpoints:
  - matchLabels: {"k8s:app": x}
    matchExpressions:
    - {key: tier, operator: In, values: [a, b]}
    - {key: "container:old", operator: DoesNotExist}
  toPorts:
  - ports: [{port: "80", protocol: TCP}, {port: 90, endPort: 95}]
ingressDeny:
- fromEndpoints: []
egress:
- {}
egressDeny:
- toEndpoints: [{}]
  toPorts: [{ports: [{port: 53, protocol: UDP}]}]
"""
        )
    )
    allow, deny = policy.ingress
    assert allow.peers == (
        Selector(
            frozenset(
                {
                    requirement("k8s:app", Operator.IN, ["x"]),
                    requirement("tier", Operator.IN, ["a", "b"]),
                    requirement("container:old", Operator.DOES_NOT_EXIST),
                }
            )
        ),
    )
    assert allow.ports is not None
    assert allow.ports[0].ports == (Port(80, 0, "TCP"), Port(90, 95, "ANY"))
    assert deny.deny
    assert deny.peers == ()
    assert deny.empty
    empty, dns = policy.egress
    assert empty.empty
    assert dns.deny
    assert dns.peers == (Selector(),)


def l7(body: str) -> str:
    return spec(
        f"ingress: [{{toPorts: [{{ports: [{{port: 80, protocol: TCP}}], rules: {body}}}]}}]"
    )


PORT = "spec.ingress[0].toPorts[0].ports[0]"
RULES = "spec.ingress[0].toPorts[0].rules"
ALL = "{l7proto: r2d2, l7: [{}]}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "kind: 'kind' is required (known: CiliumNetworkPolicy,"),
        ("- a", "p.yaml:1:1: a policy document must be a mapping"),
        ("kind: Pod", "p.yaml:1:1: kind: unknown kind 'Pod'"),
        ("kind: [a]", "p.yaml:1:1: kind: unknown kind ['a']"),
        (HEAD.replace("/v2", "/v9") + "spec: {}", "apiVersion: must be 'cilium.io/v2', not"),
        (HEAD, "needs a 'spec' or 'specs'"),
        (HEAD + "specs: []", "needs a 'spec' or 'specs'"),
        (HEAD + "spec: x", "spec: must be a mapping of fields, not 'x'"),
        (HEAD.replace("name: p", "") + "spec: {}", "metadata.name: is required"),
        (HEAD.replace("name: p", 'name: ""') + "spec: {}", "metadata.name: must not be empty"),
        (
            HEAD.replace("CiliumN", "CiliumClusterwideN").replace(
                "name: p", "name: p, namespace: n"
            )
            + "spec: {endpointSelector: {}, ingress: [{}]}",
            "a clusterwide policy has no namespace",
        ),
        (
            HEAD.replace("name: p", "name: p, namespace: n")
            + "spec: {endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: m}}, "
            "ingress: [{}]}",
            "spec.endpointSelector: selects another namespace than the policy's own, 'n': "
            "io.kubernetes.pod.namespace=m",
        ),
        (
            HEAD.replace("name: p", "name: p, annotations: {proxylib.io/audit: yes}"),
            'annotations: proxylib.io/audit must be "true" or "false"',
        ),
        (
            HEAD.replace("name: p", "name: p, annotations: {proxylib.io/adit: 'true'}"),
            "annotations: unknown annotation 'proxylib.io/adit'; known: proxylib.io/audit",
        ),
        (
            HEAD.replace("name: p", 'name: "p\\n"') + "spec: {}",
            "metadata.name: 'p\\n' is not a name",
        ),
        (HEAD.replace("name: p", "name: p/q") + "spec: {}", "metadata.name: 'p/q' is not a name"),
        (spec(""), "spec: needs a rule in ingress, egress"),
        (spec("ingress: []"), "spec: needs a rule in ingress, egress"),
        (spec("ingress:"), "p.yaml:6:3: spec.ingress: is empty"),
        (spec("ingress: {}"), "spec.ingress: must be a list"),
        (spec("ingres: [{}]"), "spec.ingres: unknown field; did you mean 'ingress'?"),
        (spec("foo: [{}]"), "spec.foo: unknown field; known in spec: description, egress"),
        (spec("ingress: [{fromEndpoints: }]"), "fromEndpoints: is empty"),
        (spec("ingress: [{toEndpoints: []}]"), "toEndpoints: does not belong here; it belongs"),
        (spec("ingress: [{fromEntities: [al]}]"), "fromEntities[0]: unknown entity 'al'; known: "),
        (spec("ingress: [{fromEntities: all}]"), "fromEntities: must be a list"),
        (spec("ingress: [{fromGroups: []}]"), "fromGroups: needs a cloud provider's API to look"),
        (spec("ingress: [{fromCIDR: [10.0.0.1/33]}]"), "fromCIDR[0]: '10.0.0.1/33' is not an addr"),
        (
            spec("ingress: [{fromCIDR: [10.0.0.256]}]"),
            "fromCIDR[0]: '10.0.0.256' is not an address",
        ),
        (
            spec("ingress: [{fromCIDR: ['fe80::1%eth0']}]"),
            "fromCIDR[0]: 'fe80::1%eth0': an address",
        ),
        (
            spec("ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/9]}]}]"),
            "fromCIDRSet[0]: except 11.0.0.0/9 is not a part of 10.0.0.0/8",
        ),
        (
            spec("ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: ['::/0']}]}]"),
            "fromCIDRSet[0]: except ::/0 is not a part of 10.0.0.0/8",
        ),
        (spec("ingress: [{fromCIDRSet: [{cidrGroupRef: a}]}]"), "cidrGroupRef: CIDR groups are"),
        (
            spec("ingress: [{fromEndpoints: [{}], fromEntities: [all]}]"),
            "spec.ingress[0]: fromEndpoints and fromEntities cannot stand in one rule",
        ),
        (spec("ingress: [{toFQDNs: []}]"), "toFQDNs: does not belong here; it belongs under 'egr"),
        (
            spec("egress: [{toFQDNs: [{}]}]"),
            "toFQDNs[0]: needs either 'matchName' or 'matchPattern'",
        ),
        (spec("egress: [{toFQDNs: [{matchName: '*.a'}]}]"), "; a '*' belongs into a matchPattern"),
        (
            spec("egress: [{toFQDNs: [{matchPattern: 'a/b'}]}]"),
            "'a/b' is not a pattern of DNS names",
        ),
        (spec("egress: [{toServices: [{}]}]"), "toServices[0]: needs either k8sService or"),
        (
            spec("ingress: [{icmps: [{fields: [{type: Eko}]}]}]"),
            "icmps[0].fields[0]: is no IPv4 ICMP type: a number up to 255, or one of EchoReply",
        ),
        (
            spec("ingress: [{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: 1}]}]}]"),
            "spec.ingress[0]: icmps and toPorts cannot stand in one rule",
        ),
        (
            spec("ingress: [{authentication: {mode: required}}]"),
            "authentication.mode: 'required' cannot be enforced: there is no mutual",
        ),
        (spec("nodeSelector: {}\ningress: [{}]"), "spec: needs either an endpointSelector or a"),
        (
            HEAD + "spec: {nodeSelector: {}, ingress: [{}]}",
            "a nodeSelector needs kind: CiliumClusterwideNetworkPolicy",
        ),
        (spec("enableDefaultDeny: {ingress: false}"), "spec: needs a rule in ingress, egress"),
        (spec("ingress: [{fromEndpoints: [{matchLabels: {a: 1}}]}]"), "must be text, not 1; put"),
        (spec("ingress: [{fromEndpoints: [{matchLabels: {a: yes, b: }}]}]"), "b: is empty"),
        (spec("ingress: [{fromEndpoints: [{matchLabels: {'a b': c}}]}]"), "'a b' has a space"),
        (spec("ingress: [{fromEndpoints: [{matchLabels: }]}]"), "matchLabels: is empty"),
        (
            spec("ingress: [{fromEndpoints: [{matchExpressions: [{key: a, operator: In}]}]}]"),
            "matchExpressions[0]: operator In needs at least one of 'values'",
        ),
        (
            spec(
                "ingress: [{fromEndpoints: [{matchExpressions:"
                " [{key: a, operator: Exists, values: [b]}]}]}]"
            ),
            "matchExpressions[0]: operator Exists takes no 'values'",
        ),
        (
            spec("ingress: [{fromEndpoints: [{matchExpressions: [{key: a, operator: Gt}]}]}]"),
            "operator: must be 'In', 'NotIn', 'Exists' or 'DoesNotExist', not 'Gt'",
        ),
        (spec("ingress: [{toPorts: [{}]}]"), "toPorts[0].ports: is required"),
        (spec("ingress: [{toPorts: [{ports: []}]}]"), "ports: must have at least 1 item"),
        (
            spec(f"ingress: [{{toPorts: [{{ports: [{', '.join(['{port: 1}'] * 41)}]}}]}}]"),
            "ports: has more than 40 items",
        ),
        (spec("ingress: [{toPorts: [{ports: [{}]}]}]"), f"{PORT}.port: is required"),
        (spec("ingress: [{toPorts: [{ports: [{port: -1}]}]}]"), f"{PORT}.port: must be a port"),
        (spec("ingress: [{toPorts: [{ports: [{port: 65536}]}]}]"), "from 0 (any) to 65535"),
        (spec("ingress: [{toPorts: [{ports: [{port: true}]}]}]"), f"{PORT}.port: must be a port"),
        (spec("ingress: [{toPorts: [{ports: [{port: 8.5}]}]}]"), f"{PORT}.port: must be a port"),
        (spec("ingress: [{toPorts: [{ports: [{port: A_B}]}]}]"), "'A_B' is neither a port number"),
        (
            spec("ingress: [{toPorts: [{ports: [{port: http, endPort: 8}]}]}]"),
            "a range goes from a port number, not from a name",
        ),
        (
            spec(
                "egress: [{toPorts: [{ports: [{port: 0}], serverNames: [a.b]}]}]",
            ),
            "toPorts[0]: serverNames need a port; 0 stands for any",
        ),
        (
            spec(
                "egress: [{toPorts: [{ports: [{port: 1, protocol: TCP}], listener: "
                "{envoyConfig: {name: a}, name: b}, rules: {l7proto: r2d2, l7: [{}]}}]}]"
            ),
            "toPorts[0]: listener cannot stand beside rules",
        ),
        (l7("{dns: [{matchPattern: 'a b'}]}"), f"{RULES}.dns[0].matchPattern: 'a b' is not a pat"),
        (l7("{dns: []}"), f"{RULES}.dns: has no rules; to allow"),
        (
            l7("{dns: [{matchName: a}], kafka: [{}]}"),
            f"{RULES}: dns rules cannot stand beside others",
        ),
        (spec("ingress: [{toPorts: [{ports: [{port: 9, endPort: 8}]}]}]"), f"{PORT}: the range"),
        (spec("ingress: [{toPorts: [{ports: [{port: 0, endPort: 8}]}]}]"), f"{PORT}: the range"),
        (spec("ingress: [{toPorts: [{ports: [{port: 1, protocol: tcp}]}]}]"), "must be 'TCP',"),
        (l7("{l7: [{cmd: HALT}]}"), f"{RULES}: l7 needs an l7proto"),
        (l7("{l7proto: r2d2}"), f"{RULES}: l7proto has no l7 rules; to allow (and log) everything"),
        (l7("{l7proto: r2d2}"), "everything write l7: [{}]"),
        (l7("{l7proto: r2d2, l7: }"), f"{RULES}.l7: has no rules; to allow (and log) everything"),
        (l7("{l7proto: r2d2, l7: []}"), f"{RULES}.l7: has no rules; to allow (and log) everything"),
        (l7("{l7: }"), f"{RULES}.l7: has no rules"),
        (
            l7("{kafka: []}"),
            f"{RULES}.kafka: has no rules; to allow (and log) everything write kafka",
        ),
        (
            l7("{http: []}"),
            f"{RULES}.http: has no rules; to allow (and log) everything write http: [{{}}]",
        ),
        (
            l7("{http: [{method: '('}]}"),
            f"{RULES}.http[0].method: '(': not a valid RE2 regex: missing ): (",
        ),
        (l7("{http: [{patch: x}]}"), f"{RULES}.http[0].patch: unknown field; did you mean 'path'?"),
        (
            l7("{http: [{headers: ['a b: c']}]}"),
            f"{RULES}.http[0].headers[0]: 'a b: c': 'a b' cannot be a header's name",
        ),
        (
            l7("{http: [{headers: [a, 'Host: x']}]}"),
            f"{RULES}.http[0].headers[1]: 'Host: x': use host for the Host header",
        ),
        (
            l7("{http: [{headerMatches: [{name: content-length, value: '1', mismatch: ADD}]}]}"),
            f"{RULES}.http[0].headerMatches[0]: 'content-length': "
            "a policy cannot change this header",
        ),
        (
            l7("{http: [{headerMatches: [{name: a, mismatch: PASS}]}]}"),
            f"{RULES}.http[0].headerMatches[0].mismatch: must be '', 'LOG', 'ADD', 'DELETE' or "
            "'REPLACE', not 'PASS'",
        ),
        (
            l7("{http: [{headerMatches: [{name: a, secret: {name: '../x'}}]}]}"),
            f"{RULES}.http[0].headerMatches[0].secret.name: '../x' is not a name",
        ),
        (
            l7("{kafka: [{}], l7proto: r2d2, l7: [{}]}"),
            f"{RULES}: kafka rules cannot stand beside others",
        ),
        (l7("{kafka: }"), f"{RULES}.kafka: has no rules"),
        (l7("{kafka: [{role: read}]}"), f"{RULES}.kafka[0].role: 'read': must be one of produce"),
        (l7("{kafka: [{}, {topics: a}]}"), f"{RULES}.kafka[1].topics: 'a': unknown key"),
        (l7("{kafka: [{apiVersion: 1}]}"), f"{RULES}.kafka[0].apiVersion: must be text, not 1"),
        (l7("{kafka: [{}]}").replace("TCP", "ANY"), "for protocol TCP only, and port 80 has ANY"),
        (l7("{l7proto: nope}"), f"{RULES}.l7proto: no parser is called 'nope' (known: "),
        (l7('{l7proto: ""}'), f"{RULES}.l7proto: must not be empty"),
        (l7("{l7proto: r2d2, l7: [{cmd: READ}, {cmdd: READ}]}"), f"{RULES}.l7[1].cmdd: "),
        (l7("{l7proto: r2d2, l7: [{cmd: RAED}]}"), f"{RULES}.l7[0].cmd: 'RAED': must be one of"),
        (l7("{l7proto: r2d2, l7: [{cmd: HALT, file: a}]}"), f"{RULES}.l7[0].file: 'a': HALT has"),
        (l7("{l7proto: r2d2, l7: [{file: '('}]}"), f"{RULES}.l7[0].file: '(': not a valid RE2"),
        (l7("{l7proto: r2d2, l7: [{cmd: 5}]}"), f"{RULES}.l7[0].cmd: must be text, not 5"),
        (
            l7("{l7proto: memcache, l7: [{keyPrefix: [a, b]}]}"),
            f"{RULES}.l7[0].keyPrefix: must be one value, not a list; write a rule for each",
        ),
        (l7("{l7proto: r2d2, l7: [{cmd: {a: b}}]}"), "cmd: must be one value, not a mapping"),
        (
            spec("ingress: [{fromEndpoints: [{matchLabels: {a: [b, c]}}]}]"),
            "a: must be one value, not a list; use matchExpressions with operator In",
        ),
        (l7("{l7proto: r2d2, l7: [x]}"), f"{RULES}.l7[0]: must be a mapping of fields"),
        (l7(ALL).replace("80,", "0,"), "L7 rules need a port"),
        (l7(ALL).replace("TCP", "ANY"), "for protocol TCP only, and port 80 has ANY"),
        (
            spec("ingressDeny: [{toPorts: [{ports: [{port: 1}], rules: {l7proto: r2d2}}]}]"),
            "rules: a deny rule cannot have L7 rules",
        ),
    ],
)
def test_refused(text: str, message: str) -> None:
    assert any(message in found for found in errors(text)), errors(text)


def test_kafka_example_as_it_stands() -> None:
    (policy,) = load(example("kafka-rule2"))
    (port,) = policy.ingress[0].ports or ()
    assert port.ports == (Port(9092, 0, "TCP"),)
    assert port.l7 is not None
    assert port.l7.proto == "kafka"
    assert port.l7.rules == ((("role", "consume"), ("topic", "msgs")),)


def test_null_l7_value_is_no_condition_and_empty_rule_too() -> None:
    (policy,) = load(l7("{l7proto: r2d2, l7: [{cmd: }, {}, {file: ''}]}"))
    (port,) = policy.ingress[0].ports or ()
    assert port.l7 is not None
    assert port.l7.rules == ((("cmd", ""),), (), (("file", ""),))


def test_shape_and_l7_errors_come_together_in_the_order_of_the_file() -> None:
    text = HEAD + (
        "specs:\n"
        "- endpointSelector: {}\n"
        "  ingress:\n"
        "  - fromGroups: [all]\n"
        "  - toPorts:\n"
        "    - ports: [{port: 1, protocol: TCP}]\n"
        "      rules: {l7proto: r2d2, l7: [{cmd: NO}, {nope: x}]}\n"
        "  bad: 1\n"
    )
    found = errors(text)
    assert [line.split(": ")[1] for line in found] == [
        "specs[0].ingress[0].fromGroups",
        "specs[0].ingress[1].toPorts[0].rules.l7[0].cmd",
        "specs[0].ingress[1].toPorts[0].rules.l7[1].nope",
        "specs[0].bad",
    ]


def test_errors_of_several_documents_come_together() -> None:
    found = errors(spec("a: 1\ningress: [{}]") + "---\n" + spec("b: 1\ningress: [{}]"))
    assert [line.split(":")[1] for line in found] == ["6", "14"]


def test_same_name_twice() -> None:
    (found,) = errors(spec("ingress: [{}]") + "---\n" + spec("ingress: [{}]"))
    assert "p.yaml:10:12: metadata.name: 'p' is the name of another policy: p.yaml:3:12" in found


def test_what_kubectl_adds_is_accepted() -> None:
    metadata: dict[str, Any] = {"uid": "1", "resourceVersion": "2", "generation": 3}
    added = "".join(f", {key}: {value!r}" for key, value in metadata.items())
    text = spec("ingress: [{}]").replace("name: p", f"name: p{added}") + "status: {nodes: {}}\n"
    assert len(load(text)) == 1


def test_a_document_cut_behind_its_parser_does_not_load() -> None:
    """Whatever line a file ends at, it allows no more than it did whole."""
    text = example("secure-rebel-alliance-memcache")
    cut = text[: text.index("l7proto: memcache") + len("l7proto: memcache")]
    for end in ("", "\n", "\n          l7:\n", "\n          l7: []\n"):
        (found,) = errors(cut + end)
        assert "to allow (and log) everything write l7: [{}]" in found
    assert load(cut + "\n          l7: [{}]\n")


def test_peers_of_every_kind() -> None:
    (policy,) = load(
        spec(
            """
ingress:
- fromEntities: [host, remote-node]
- fromEntities: [world, all]
- fromEntities: [none]
- fromCIDR: [192.0.2.1, "2001:db8::/32"]
- fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}]
- fromNodes: [{matchLabels: {type: a}}]
- fromRequires: [{matchLabels: {env: prod}}]
- icmps: [{fields: [{type: EchoRequest}, {type: 128, family: IPv6}]}]
egress:
- toFQDNs: [{matchName: A.b.}, {matchPattern: "*.b"}]
- toServices:
  - k8sService: {serviceName: s, namespace: n}
  - k8sServiceSelector: {selector: {matchLabels: {head: none}}, namespace: n}
"""
        )
    )
    nodes, anybody, nobody, cidrs, parts, by_label, requires, icmp = policy.ingress
    assert nodes.peers == (reserved_selector("host"), reserved_selector("remote-node"))
    assert anybody.peers is None
    assert nobody.peers == ()
    assert cidrs.peers == (Cidr(ip_network("192.0.2.1")), Cidr(ip_network("2001:db8::/32")))
    assert parts.peers == (Cidr(ip_network("10.0.0.0/8"), (ip_network("10.96.0.0/12"),)),)
    node = label_set([parse_label("reserved:remote-node"), parse_label("k8s:type=a")])
    other = label_set([parse_label("reserved:remote-node"), parse_label("k8s:type=b")])
    assert [p.matches(node) for p in by_label.peers or () if isinstance(p, Selector)] == [True]
    assert [p.matches(other) for p in by_label.peers or () if isinstance(p, Selector)] == [False]
    assert requires.requires == (app(env="prod"),)
    assert requires.empty, "a requirement alone admits nobody"
    assert icmp.icmps == (Icmp("IPv4", 8), Icmp("IPv6", 128))
    assert icmp.ports == (), "no port beside"
    assert icmp.peers is None
    names, services = policy.egress
    assert names.peers == (Fqdn("a.b"), Fqdn("*.b", is_pattern=True))
    assert services.peers == (
        Service(name="s", namespace="n"),
        Service(namespace="n", selector=app(head="none")),
    )


def test_ports_with_tls_names_and_dns() -> None:
    (policy,) = load(
        spec(
            """
egress:
- toPorts:
  - ports: [{port: https, protocol: TCP}]
    terminatingTLS: {secret: {namespace: n, name: a}, certificate: c}
    originatingTLS: {secret: {name: b}}
    serverNames: [a.b]
  - ports: [{port: "53"}]
    rules: {dns: [{matchName: A.b}, {matchPattern: "*"}]}
  - ports: [{port: 1, protocol: TCP}]
    listener: {envoyConfig: {kind: CiliumEnvoyConfig, name: e}, name: l}
"""
        )
    )
    tls, dns, listener = policy.egress[0].ports or ()
    assert tls.ports == (Port("https", 0, "TCP"),)
    assert tls.terminating_tls == TLSContext("n", "a", certificate="c")
    assert tls.originating_tls == TLSContext("", "b")
    assert tls.server_names == ("a.b",)
    assert dns.l7 is not None
    assert (dns.l7.proto, dns.l7.rules) == (
        "dns",
        ((("matchName", "a.b"),), (("matchPattern", "*"),)),
    )
    assert listener.listener == Listener("CiliumEnvoyConfig", "e", "l")


def test_default_deny_by_presence_and_by_word() -> None:
    def closes(body: str) -> tuple[bool, bool]:
        (policy,) = load(spec(body))
        return policy.default_deny(ingress=True), policy.default_deny(ingress=False)

    assert closes("ingress: [{}]") == (True, False)
    assert closes("egressDeny: [{}]") == (False, True)
    assert closes("ingress: [{}]\nenableDefaultDeny: {ingress: false}") == (False, False)
    assert closes("ingress: [{}]\nenableDefaultDeny: {egress: true}") == (True, True)
    assert closes("enableDefaultDeny: {egress: true}") == (False, True)


def test_audit_labels_and_namespace() -> None:
    head = HEAD.replace(
        "name: p", "name: p, namespace: n, annotations: {proxylib.io/audit: 'true'}"
    )
    text = head + (
        "spec:\n  endpointSelector: {matchLabels: {app: x}}\n"
        "  labels: [{key: team, value: a}]\n  ingress:\n"
        "  - fromEndpoints:\n    - {matchLabels: {app: y}}\n    - {}\n"
        "    - {matchLabels: {k8s:io.kubernetes.pod.namespace: m}}\n"
        "    - {matchLabels: {io.cilium.k8s.namespace.labels.env: dev}}\n"
        "    - {matchLabels: {'reserved:init': ''}}\n"
    )
    (policy,) = load(text)
    assert policy.audit
    assert (policy.namespace, policy.name) == ("n", "p")
    assert [str(label) for label in policy.labels] == [
        "unspec:team=a",
        "k8s:io.cilium.k8s.policy.derived-from=CiliumNetworkPolicy",
        "k8s:io.cilium.k8s.policy.name=p",
        "k8s:io.cilium.k8s.policy.namespace=n",
    ]
    own = "k8s:io.kubernetes.pod.namespace=n"
    assert str(policy.subject) == f"app=x, {own}"
    assert [str(peer) for peer in policy.ingress[0].peers or ()] == [
        f"app=y, {own}",
        own,
        "k8s:io.kubernetes.pod.namespace=m",
        "io.cilium.k8s.namespace.labels.env=dev, k8s:io.kubernetes.pod.namespace Exists",
        "reserved:init=",
    ]


def test_nodes_are_a_subject() -> None:
    head = HEAD.replace("kind: Cilium", "kind: CiliumClusterwide")
    (policy,) = load(head + "spec: {nodeSelector: {matchLabels: {type: a}}, ingress: [{}]}")
    assert policy.kind == "CiliumClusterwideNetworkPolicy"
    host = label_set([parse_label("reserved:host"), parse_label("k8s:type=a")])
    assert policy.subject.matches(host)
    assert not policy.subject.matches(label_set([parse_label("k8s:type=a")]))


def test_names_are_of_a_kind_and_a_namespace() -> None:
    body = "spec: {endpointSelector: {}, ingress: [{}]}\n---\n"
    other = HEAD.replace("name: p", "name: p, namespace: n")
    wide = HEAD.replace("kind: Cilium", "kind: CiliumClusterwide")
    assert len(load(HEAD + body + other + body + wide + body)) == 3
    assert "'p' is the name of another policy" in errors(other + body + other + body)[0]
