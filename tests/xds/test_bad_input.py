"""Hostile documents: a clear error, in bounded work, and nothing of them in force."""

from __future__ import annotations

import json

import pytest

import parsers.r2d2  # noqa: F401 - registers r2d2
from xds.documents import load_closed, load_policies
from xds.endpoints import load_endpoints, load_services
from xds.lint import lint
from xds.schema import document_schema
from xds.source import DocumentError, read_documents
from xds.yamltext import MAX_PROBLEMS

HEAD = "kind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec:\n  endpointSelector: {}\n"


def problems(text: str) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        load_policies(read_documents("bad.yaml", text))
    found = [str(problem) for problem in caught.value.problems]
    assert len(found) <= MAX_PROBLEMS
    assert all(len(problem) < 2000 for problem in found)
    return found


def ports(count: int, **more: object) -> str:
    listed = [{"port": n, **more} for n in range(1, count + 1)]
    return json.dumps(listed)


def l7(rules: str) -> str:
    listed = "{port: 1, protocol: TCP}"
    return HEAD + f"  ingress: [{{toPorts: [{{ports: [{listed}], rules: {rules}}}]}}]\n"


def test_ten_thousand_ports() -> None:
    text = HEAD + f"  ingress: [{{toPorts: [{{ports: {ports(10_000)}}}]}}]\n"
    (found,) = problems(text)
    assert found == "bad.yaml:5:25: spec.ingress[0].toPorts[0].ports: has more than 40 items"


def test_ten_thousand_ports_in_as_many_rules() -> None:
    rules = ", ".join(f"{{toPorts: [{{ports: [{{port: {n}}}]}}]}}" for n in range(1, 10_001))
    policies = load_policies(read_documents("p.yaml", f"{HEAD}  ingress: [{rules}]\n"))
    assert len(policies[0].ingress) == 10_000
    assert lint(policies, []) == []


def test_a_list_that_is_longer_than_any_policy_needs() -> None:
    (found,) = problems(f"{HEAD}  ingress: [{', '.join(['x'] * 20_001)}]\n")
    assert found.endswith("spec.ingress: has more than 20000 items")


def test_ten_thousand_mistakes_are_a_hundred_problems() -> None:
    rules = ", ".join("{fromEndpoint: []}" for _ in range(10_000))
    assert len(problems(f"{HEAD}  ingress: [{rules}]\n")) == MAX_PROBLEMS


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"\pL{1,300}", "pattern too large"),
        ("((a{100}){100}){100}", "invalid repetition size"),
        ("a" * 70_000, "longer than 65536 characters"),
        ("(?<=a)b", "not a valid RE2 regex"),
    ],
)
def test_catastrophic_regexes(pattern: str, message: str) -> None:
    (found,) = problems(l7(f"{{l7proto: r2d2, l7: [{{file: {json.dumps(pattern)}}}]}}"))
    assert "spec.ingress[0].toPorts[0].rules.l7[0].file" in found
    assert message in found


def test_many_regexes_that_are_legal_one_by_one() -> None:
    rules = ", ".join(f"{{file: '\\pL{{30}}{n}'}}" for n in range(200))
    found = problems(l7(f"{{l7proto: r2d2, l7: [{rules}]}}"))
    assert all("the regexes of this file are too large together" in each for each in found)
    found = problems(l7(f"{{http: [{rules.replace('file', 'path')}]}}"))
    assert all("the regexes of this file are too large together" in each for each in found)
    few = ", ".join(f"{{file: '\\pL{{30}}{n}'}}" for n in range(10))
    assert load_policies(read_documents("p.yaml", l7(f"{{l7proto: r2d2, l7: [{few}]}}")))


def test_the_budget_of_regexes_is_that_of_the_file() -> None:
    def document(number: int) -> str:
        rules = ", ".join(f"{{file: '\\pL{{31}}{number}x{n}'}}" for n in range(40))
        text = l7(f"{{l7proto: r2d2, l7: [{rules}]}}")
        return text.replace("name: p", f"name: p{number}")

    assert load_policies(read_documents("p.yaml", document(1)))
    text = "---\n".join(document(number) for number in range(2, 6))
    assert any("too large together" in found for found in problems(text))


@pytest.mark.parametrize(
    "text",
    [
        "kind: Pod",
        "kind: {}",
        "kind: CiliumNetworkPolicy",
        "kind: " + "a" * 100_000,
        HEAD + "  ingress: " + "[" * 40 + "]" * 40,
        HEAD + "  ingress: [{toPorts: [{ports: [{port: " + "9" * 5000 + "}]}]}]",
        HEAD + "  ingress: [{fromCIDR: ['" + "1" * 5000 + "']}]",
        HEAD + "  ingress: [{fromEntities: ['" + "a" * 5000 + "']}]",
        HEAD + "  egress: [{toFQDNs: [{matchPattern: '" + "*" * 5000 + "'}]}]",
        HEAD + "  egress: [{toFQDNs: [{matchName: '" + "a." * 5000 + "'}]}]",
        HEAD + "  ingress: [{icmps: [{fields: [{type: " + "9" * 5000 + "}]}]}]",
        HEAD + "  ingress: [{fromEndpoints: [{matchLabels: {" + "k" * 1000 + ": v}}]}]",
        HEAD + "  ingress: [{fromEndpoints: [{matchLabels: {k: '" + "v" * 5000 + "'}}]}]",
        HEAD + "  " + "f" * 1000 + ": []",
        HEAD.replace("name: p", "name: " + "p" * 5000) + "  ingress: [{}]",
        HEAD.replace("name: p", "name: p, annotations: {proxylib.io/" + "p" * 1000 + ": a}"),
        l7("{l7proto: " + "a" * 5000 + ", l7: [{}]}"),
        l7("{l7proto: r2d2, l7: [{" + "a" * 1000 + ": b}]}"),
        l7("{l7proto: r2d2, l7: [{cmd: " + "a" * 5000 + "}]}"),
    ],
    ids=lambda text: f"{text[:20]}…{len(text)}",
)
def test_long_and_deep_and_unknown(text: str) -> None:
    assert problems(text)
    try:
        documents = read_documents("bad.yaml", text)
    except DocumentError:
        return
    loaded = load_closed(documents)
    assert loaded.quarantined or loaded.left_out


def test_the_same_name_ten_thousand_times() -> None:
    one = HEAD + "  egress: [{}]\n"
    with pytest.raises(DocumentError) as caught:
        load_policies(read_documents("bad.yaml", f"{one}---\n" * 10_000))
    found = caught.value.problems
    assert len(found) == MAX_PROBLEMS
    assert "'p' is the name of another policy: bad.yaml:2:12" in str(found[0])


def test_the_same_address_and_service_ten_thousand_times() -> None:
    endpoints = "endpoints: [" + ", ".join(["{address: 10.0.0.1}"] * 10_000) + "]"
    with pytest.raises(DocumentError, match="taken already") as caught:
        load_endpoints(read_documents("e.yaml", endpoints))
    assert len(caught.value.problems) == MAX_PROBLEMS
    services = "services: [" + ", ".join(["{name: a, selector: {a: b}}"] * 10_000) + "]"
    with pytest.raises(DocumentError, match="a service already") as caught:
        load_services(read_documents("e.yaml", services))
    assert len(caught.value.problems) == MAX_PROBLEMS


def test_the_schema_is_no_larger_than_an_editor_takes() -> None:
    assert len(json.dumps(document_schema())) < 200_000
