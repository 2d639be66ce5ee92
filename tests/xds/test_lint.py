"""Warnings about what is legal and probably wrong."""

from __future__ import annotations

import pytest

from tests.xds.conftest import example
from xds.documents import load_policies
from xds.endpoints import load_endpoints
from xds.lint import lint, open_ends
from xds.source import read_documents

REBELS = """
endpoints:
- {address: 10.0.0.1, labels: {app: memcached}}
- {address: 10.0.0.2, labels: ["k8s:function=fleet-maintenance"]}
- {address: 10.0.0.3, labels: {function: fleet-monitoring}}
- {address: 10.0.0.4, labels: {role: jedi}}
"""


def warnings(policy: str, endpoints: str = REBELS) -> list[str]:
    policies = load_policies(read_documents("p.yaml", policy))
    return [str(w) for w in lint(policies, load_endpoints(read_documents("e.yaml", endpoints)))]


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
