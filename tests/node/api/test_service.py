"""Services over the API, and what the toServices of policies make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.node.agents import Agent, running

POLICY = """
kind: CiliumNetworkPolicy
metadata: {name: out}
spec:
  endpointSelector: {matchLabels: {app: a}}
  egress:
  - toServices: [{k8sService: {serviceName: db, namespace: prod}}]
  - toServices: [{k8sServiceSelector: {selector: {matchLabels: {tier: cache}}}}]
"""
POD = "k8s:io.kubernetes.pod.namespace=prod"


def verdict(agent: Agent, address: str) -> int:
    trace = ("policy", "trace", "--src", "app=a", "--dst", address, "--dport", "443", "--egress")
    return agent.cli(*trace).exit_code


def test_services_open_what_they_stand_for(short_path: Path) -> None:
    with running(short_path) as agent:
        agent.add_endpoint("10.0.0.1", "app=a")
        warned = agent.put_policy(POLICY).json()["warnings"]
        assert any("there is no" in warning["message"] for warning in warned)
        agent.add_endpoint("10.0.0.2", "k8s:app=db", POD)
        agent.add_endpoint("10.0.0.3", "k8s:app=db")
        assert [verdict(agent, f"10.0.0.{n}") for n in (2, 3)] == [1, 1]
        told = agent.cli("service", "put", "db", "--namespace", "prod", "--selector", "app=db")
        assert told.stdout == "Revision: 5\n", told.output
        assert [verdict(agent, f"10.0.0.{n}") for n in (2, 3)] == [0, 1]
        outside = ("--address", "192.0.2.1", "--label", "k8s:tier=cache")
        assert agent.cli("service", "put", "redis", *outside).exit_code == 0
        assert verdict(agent, "192.0.2.1") == 0
    with running(short_path) as agent:
        assert agent.get("/service") == [
            {"name": "redis", "labels": ["k8s:tier=cache"], "addresses": ["192.0.2.1"]},
            {"name": "db", "namespace": "prod", "selector": {"app": "db"}},
        ]
        assert agent.get("/service/db", namespace="prod")["selector"] == {"app": "db"}
        assert [verdict(agent, a) for a in ("10.0.0.2", "10.0.0.3", "192.0.2.1")] == [0, 1, 0]
        lines = agent.cli("service", "list").stdout.splitlines()
        assert lines[2].split() == ["prod", "db", "app=db"]
        # The same name is another service in another namespace, and in none.
        assert agent.cli("service", "delete", "db").exit_code == 1
        gone = agent.cli("service", "delete", "db", "--namespace", "prod")
        assert gone.stdout == "Revision: 7\n"
        assert verdict(agent, "10.0.0.2") == 1
        assert agent.http.put("/service", json={"name": "redis", "addresses": ["192.0.2.9"]})
        assert verdict(agent, "192.0.2.1") == 1
    with running(short_path) as agent:
        assert [service["addresses"] for service in agent.get("/service")] == [["192.0.2.9"]]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "x"}, "needs a 'selector', 'addresses', or both"),
        ({"name": "x", "selector": {}}, "needs a 'selector'"),
        ({"name": "-", "addresses": ["::1"]}, "is not a name"),
        ({"name": "x", "addresses": ["1.2.3"]}, "1.2.3"),
        ({"name": "x", "addresses": ["::1"], "selectors": {}}, "selectors"),
        (
            {"name": "x", "addresses": ["::1"], "labels": ["a=b", "a=c"]},
            "two labels have the key 'a'",
        ),
        ({"name": "x", "namespace": "a/b", "addresses": ["::1"]}, "is not a name"),
    ],
)
def test_what_is_no_service(agent: Agent, entry: dict[str, Any], message: str) -> None:
    answer = agent.http.put("/service", json=entry)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
    assert agent.get("/service") == []


def test_a_selector_is_key_and_value(agent: Agent) -> None:
    wrong = agent.cli("service", "put", "x", "--selector", "app")
    assert wrong.exit_code == 2
    assert "'app' is no KEY=VALUE" in wrong.output
