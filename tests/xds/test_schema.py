"""The JSON schema: every example fits, and what is misspelt does not."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

import parsers.cassandra
import parsers.kafka
import parsers.memcache
import parsers.r2d2  # noqa: F401 - they register their parsers
from tests.xds.conftest import EXAMPLES
from tests.xds.test_examples import CASES
from xds.schema import document_schema
from xds.source import read_documents

SCHEMA = document_schema()
NAMES = sorted({name for names in CASES for name in names.split(" + ")})


def errors(value: Any) -> list[str]:
    return [error.json_path for error in Draft202012Validator(SCHEMA).iter_errors(value)]


def example(name: str) -> Any:
    path = EXAMPLES / f"{name}.yaml"
    (document,) = read_documents(path.name, path.read_text(encoding="utf-8"))
    return document.value


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", NAMES)
def test_examples_fit(name: str) -> None:
    assert errors(example(name)) == []


def test_kubernetes_documents_fit() -> None:
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p"},
        "spec": {
            "podSelector": {},
            "ingress": [
                {
                    "from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
                    "ports": [{"port": 80}, {"port": "http", "protocol": "UDP"}],
                }
            ],
        },
    }
    assert errors(policy) == []
    policy["spec"]["ingress"][0]["from"][0]["ipBlock"]["exept"] = []  # type: ignore[index]
    assert errors(policy) != []


def test_what_is_misnested_does_not_fit() -> None:
    assert errors(example("misnested-empire-cassandra"))


@pytest.mark.parametrize(
    "spec",
    [
        {"ingres": []},
        {"ingress": {}},
        {"ingress": None},
        {"ingress": [{"fromEntities": ["al"]}]},
        {"ingress": [{"fromEndpoints": None}]},
        {"ingress": [{"toFQDNs": []}]},
        {"ingressDeny": [{"toPorts": [{"ports": [{"port": 1}], "rules": {}}]}]},
        {"egress": [{"toPorts": [{"ports": [{"port": 1, "protocol": "tcp"}]}]}]},
        {"egress": [{"toPorts": [{"ports": []}]}]},
        {"egress": [{"toPorts": [{"ports": [{"port": 1}], "rules": {"kafka": [{"rol": "x"}]}}]}]},
        {"egress": [{"toCIDRSet": [{"except": []}]}]},
    ],
)
def test_what_is_refused_does_not_fit(spec: dict[str, Any]) -> None:
    policy = {
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p"},
        "spec": {"endpointSelector": {}, **spec},
    }
    assert errors(policy) != []


def test_kinds_and_keys_of_parsers() -> None:
    assert errors({"kind": "Pod"})
    assert errors({})
    rules = {"l7proto": "r2d2", "l7": [{"cmd": "READ", "file": "a"}, {"cmd": None}, {}]}
    ports = [{"ports": [{"port": 1, "protocol": "TCP"}], "rules": rules}]
    policy = {
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p"},
        "specs": {"endpointSelector": {}, "ingress": [{"toPorts": ports}]},
    }
    assert errors(policy) == []
    for rule in ({"cmd": "RAED"}, {"comd": "READ"}):
        rules["l7"] = [rule]
        assert errors(policy) != []
