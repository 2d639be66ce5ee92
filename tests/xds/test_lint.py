"""Warnings about what is legal and probably wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tests.xds.conftest import example
from xds import shadowing
from xds.documents import load_policies
from xds.endpoints import load_endpoints, load_services
from xds.lint import lint, open_ends
from xds.source import read_documents

REBELS = """
endpoints:
- {address: 10.0.0.1, labels: {app: memcached}}
- {address: 10.0.0.2, labels: ["k8s:function=fleet-maintenance"]}
- {address: 10.0.0.3, labels: {function: fleet-monitoring}}
- {address: 10.0.0.4, labels: {role: jedi}}
"""

WEB = """
- {address: 10.0.0.5, labels: ["k8s:app=web"], ports: {http: 80}}
services:
- {name: frontend, selector: {app: web}}
"""


def warnings(policy: str, endpoints: str = REBELS) -> list[str]:
    policies = load_policies(read_documents("p.yaml", policy))
    documents = read_documents("e.yaml", endpoints)
    found = lint(policies, load_endpoints(documents), load_services(documents))
    return [str(warning) for warning in found]


HEAD = "kind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec:\n  endpointSelector: {}\n"


def of(body: str) -> list[str]:
    """Warnings about a policy with `body`, without the place of its file."""
    lines = "".join(f"  {line}\n" for line in body.strip().splitlines())
    return [warning.split(": ", 1)[1] for warning in warnings(HEAD + lines, REBELS + WEB)]


def test_misspelt_label_of_the_example() -> None:
    assert warnings(example("secure-rebel-alliance-memcache")) == [
        "p.yaml:12:9: specs[0].ingress[0].fromEndpoints[0]: selects no endpoint: "
        "function=fleet-maintanence; there is k8s:function=fleet-maintenance, did you mean that?"
    ]


def test_misspelt_key_and_unknown_label() -> None:
    head = "kind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec:\n"
    first, second = warnings(
        head + "  endpointSelector: {matchLabels: {functoin: fleet-monitoring}}\n"
        "  ingress: [{fromEndpoints: [{matchLabels: {app: nothing-like-it}}]}]\n"
    )
    assert "there is a label 'function', did you mean that?" in first
    assert second.endswith("fromEndpoints[0]: selects no endpoint: app=nothing-like-it")


def test_regexes_and_empty_denials() -> None:
    head = "kind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec:\n  endpointSelector: {}\n"
    l7 = "{l7proto: r2d2, l7: [{file: ^a$}, {file: b}, {cmd: HALT}, {file: ^c/}, {file: d$}]}"
    found = warnings(
        f"{head}  ingress:\n  - toPorts: [{{ports: [{{port: 1, protocol: TCP}}], rules: {l7}}}]\n"
        "  ingressDeny: [{}]\n"
    )
    assert [warning.split(": ")[1] for warning in found] == [
        "spec.ingress[0].toPorts[0].rules.l7[1].file",
        "spec.ingress[0].toPorts[0].rules.l7[3].file",
        "spec.ingress[0].toPorts[0].rules.l7[4].file",
        "spec.ingressDeny[0]",
    ]
    whole = " if it is to match the whole"
    assert [warning.partition("file: ")[2] for warning in found[:3]] == [
        f"the regex 'b' matches anywhere in the value; anchor it with ^ and ${whole}",
        f"the regex '^c/' allows any text after its match; end it with ${whole}",
        f"the regex 'd$' allows any text before its match; start it with ^{whole}",
    ]


def test_a_requirement_that_asks_nobody() -> None:
    """As in Cilium, anybody at all is not asked; that is hardly what was meant."""
    ports = 'toPorts: [{ports: [{port: "80", protocol: TCP}]}]'
    selector = "[{matchLabels: {role: jedi}}]"
    for rules, way in (("ingress", "from"), ("egress", "to")):
        assert of(f"{rules}: [{{{way}Requires: {selector}, {ports}}}]") == [
            f"spec.{rules}[0]: allows anybody, whoever meets {way}Requires or not; "
            f"did you mean {way}Endpoints: [{{}}] too?"
        ]
        assert (
            of(f"{rules}: [{{{way}Requires: {selector}, {way}Endpoints: [{{}}], {ports}}}]") == []
        )
        assert of(f"{rules}Deny: [{{{way}Requires: {selector}, {ports}}}]") == []
        assert of(f"{rules}: [{{{way}Requires: {selector}}}]") == []


@pytest.mark.parametrize(
    ("pattern", "start", "end"),
    [
        ("^a$", False, False),
        (r"\Aa\z", False, False),
        (".*a.*", False, False),
        ("^a|b$", True, True),
        ("^a$|^b", False, True),
        ("^a$|^b$", False, False),
        ("^(a|b)$", False, False),
        ("^[|]$", False, False),
        (r"^a\|b$", False, False),
        (r"^[\]|]$", False, False),
        ("a", True, True),
        ("^a", False, True),
        ("a$", True, False),
    ],
)
def test_open_ends(pattern: str, start: bool, end: bool) -> None:
    assert open_ends(pattern) == (start, end)


def test_whom_rules_name_and_nobody_is() -> None:
    (found,) = of("egress: [{toServices: [{k8sService: {serviceName: fronted}}]}]")
    assert found == (
        "spec.egress[0].toServices[0]: is about nobody: there is no service fronted; "
        "did you mean 'frontend'?"
    )
    assert of("egress: [{toServices: [{k8sService: {serviceName: frontend}}]}]") == []
    (found,) = of("ingress: [{toPorts: [{ports: [{port: htp}]}]}]")
    assert found == (
        "spec.ingress[0].toPorts[0].ports[0].port: no endpoint has a port called 'htp'; "
        "did you mean 'http'?"
    )
    (found,) = of("ingress: [{fromCIDR: [10.0.0.0/8, 10.0.0.1]}]")
    assert found == (
        "spec.ingress[0].fromCIDR[1]: is about nobody: 10.0.0.1 is an endpoint's "
        "(unspec:app=memcached); select its labels"
    )
    first, second = of(
        "ingress: [{fromCIDR: [192.0.2.7/24, 192.0.2.7]}, {fromCIDRSet: [{cidr: 'fd00::1/8'}]}]"
    )
    assert first == (
        "spec.ingress[0].fromCIDR[0]: 192.0.2.7/24 has bits set behind its mask; "
        "it is 192.0.2.0/24 here"
    )
    assert second.endswith(
        "fromCIDRSet[0]: fd00::1/8 has bits set behind its mask; it is fd00::/8 here"
    )
    (found,) = of("ingress: [{fromEndpoints: [{matchLabels: {'container:app': web}}]}]")
    assert found == (
        "spec.ingress[0].fromEndpoints[0]: selects no endpoint: container:app=web; "
        "there is k8s:app=web, of another source"
    )
    (found,) = of("ingress: [{fromRequires: [{matchLabels: {app: wob}}]}]")
    assert "spec.ingress[0].fromRequires[0]: selects no endpoint: app=wob" in found
    assert of("ingress: [{fromEntities: [cluster]}, {fromNodes: [{matchLabels: {a: b}}]}]") == []


def test_a_namespace_that_no_endpoint_is_in() -> None:
    head = HEAD.replace("name: p", "name: p, namespace: n")
    (found,) = warnings(head + "  ingress: [{fromEntities: [all]}]\n")
    assert found.endswith(
        "selects no endpoint: k8s:io.kubernetes.pod.namespace=n; "
        "no endpoint has a namespace (namespace: in the endpoints file)"
    )


def test_an_entity_that_nobody_is_yet() -> None:
    (found,) = of("ingressDeny: [{fromEntities: [world, kube-apiserver]}]")
    assert found == (
        "spec.ingressDeny[0].fromEntities[1]: is nobody: "
        "no endpoint has the label reserved:kube-apiserver"
    )


def test_without_endpoints_nobody_knows_whom_a_selector_selects() -> None:
    assert warnings(example("secure-rebel-alliance-memcache"), "endpoints: []") == []


def test_names_that_are_never_learnt() -> None:
    names = "egress:\n- toFQDNs: [{matchName: a.b}]\n"
    (found,) = of(names)
    assert found.startswith("spec.egress[0].toFQDNs: no rule has a DNS proxy look at the answers")
    dns = "- toPorts: [{ports: [{port: 53}], rules: {dns: [{matchPattern: '*'}]}}]"
    assert of(names + dns) == []


FIRST, SECOND = "p.yaml:6:5: spec.ingress[0]", "p.yaml:7:5: spec.ingress[1]"


def web(protocol: str = "TCP", cmd: str = "", peers: str = "matchLabels: {app: web}") -> str:
    rules = f", rules: {{l7proto: r2d2, l7: [{{cmd: {cmd}}}]}}" if cmd else ""
    ports = f"toPorts: [{{ports: [{{port: 80, protocol: {protocol}}}]{rules}}}]"
    return f"{{fromEndpoints: [{{{peers}}}], {ports}}}"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (web(), web(), f"[1]: changes nothing: it is covered by {FIRST}"),
        (
            web(),
            "{fromEndpoints: [{matchLabels: {app: web}}]}",
            f"[0]: changes nothing: it is covered by {SECOND}",
        ),
        (
            web(),
            "{toPorts: [{ports: [{port: 70, endPort: 90}]}]}",
            f"[0]: changes nothing: it is covered by {SECOND}",
        ),
        (
            web(cmd="HALT"),
            web(),
            f"[0]: has L7 rules that decide nothing: all of it is allowed at {SECOND}",
        ),
        (web(cmd="HALT"), web(cmd="HALT"), f"[1]: changes nothing: it is covered by {FIRST}"),
        ("{fromEntities: [all]}", web(), f"[1]: changes nothing: it is covered by {FIRST}"),
        (web(cmd="HALT"), web(cmd="RESET"), ""),
        (web(), web("UDP"), ""),
        (web(), web(peers=""), ""),
        (web(), "{fromRequires: [{}], fromEndpoints: [{matchLabels: {app: web}}]}", ""),
    ],
)
def test_a_rule_that_another_makes_moot(first: str, second: str, expected: str) -> None:
    found = of(f"ingress:\n- {first}\n- {second}\n")
    assert found == ([f"spec.ingress{expected}"] if expected else [])


def test_a_rule_that_is_denied() -> None:
    found = of(
        "ingress:\n- {toPorts: [{ports: [{port: 80, protocol: TCP}]}]}\n- {fromEntities: [host]}\n"
        "ingressDeny:\n- {toPorts: [{ports: [{port: 80}]}]}\n"
        "- {fromEntities: [world], toPorts: [{ports: [{port: 80}]}]}\n"
    )
    assert found == [
        "spec.ingress[0]: never allows anything: it is denied at p.yaml:9:5: spec.ingressDeny[0]",
        "spec.ingressDeny[1]: changes nothing: it is covered by p.yaml:9:5: spec.ingressDeny[0]",
    ]


def test_moot_only_beside_rules_of_the_same_endpoints_and_mode() -> None:
    rule = "  ingress: [{fromEndpoints: [{}]}]\n"
    other = HEAD.replace("name: p", "name: q")
    assert len(warnings(f"{HEAD}{rule}---\n{other}{rule}")) == 1
    audit = other.replace("name: q", "name: q, annotations: {proxylib.io/audit: 'true'}")
    assert warnings(f"{HEAD}{rule}---\n{audit}{rule}") == []
    elsewhere = other.replace("{}", "{matchLabels: {role: jedi}}")
    assert warnings(f"{HEAD}{rule}---\n{elsewhere}{rule}") == []


def test_comparing_rules_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only pairs of rules count, but what each of them has to be compared."""
    compared = 0
    covers = shadowing._port_covers

    def counted(*arguments: Any) -> bool:
        nonlocal compared
        compared += 1
        return covers(*arguments)

    monkeypatch.setattr(shadowing, "_port_covers", counted)
    rule = "- toPorts: [{ports: [%s]}]"
    rules = (
        rule % ", ".join(f"{{port: {n * 40 + i + 1}, protocol: TCP}}" for i in range(40))
        for n in range(250)
    )
    assert of("\n".join(["ingress:", *rules])) == []
    assert compared <= shadowing.MAX_COMPARISONS
    assert of(
        'ingress:\n- toPorts: [{ports: [{port: "80"}]}]\n- toPorts: [{ports: [{port: "80"}]}]'
    )
    assert compared > 0
