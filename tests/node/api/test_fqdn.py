"""DNS names over the API, and what policies make of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.node.agents import Agent, running

POLICY = """
kind: CiliumNetworkPolicy
metadata: {name: out}
spec:
  endpointSelector: {matchLabels: {app: a}}
  egress:
  - toFQDNs: [{matchPattern: "*.cilium.io"}]
"""


def verdict(agent: Agent, address: str) -> int:
    trace = ("policy", "trace", "--src", "app=a", "--dst", address, "--dport", "443", "--egress")
    return agent.cli(*trace).exit_code


def test_names_open_what_they_stand_for(short_path: Path) -> None:
    with running(short_path) as agent:
        agent.put_policy(POLICY)
        agent.add_endpoint("10.0.0.1", "app=a")
        assert verdict(agent, "93.184.216.34") == 1
        told = agent.cli("fqdn", "set", "Docs.Cilium.io.", "93.184.216.34", "2001:db8::1")
        assert told.stdout == "Revision: 3\n"
        assert verdict(agent, "93.184.216.34") == 0
        assert verdict(agent, "2001:db8::1") == 0
        assert verdict(agent, "93.184.216.35") == 1
        assert "93.184.216.34/32" in {entry["cidr"] for entry in agent.get("/ip")}
    with running(short_path) as agent:
        assert agent.get("/fqdn") == [
            {"name": "docs.cilium.io", "addresses": ["93.184.216.34", "2001:db8::1"]}
        ]
        assert verdict(agent, "93.184.216.34") == 0
        assert agent.cli("fqdn", "list").stdout.splitlines()[1].split()[0] == "docs.cilium.io"
        assert agent.cli("fqdn", "delete", "docs.cilium.io").stdout == "Revision: 4\n"
        assert verdict(agent, "93.184.216.34") == 1
        assert agent.cli("fqdn", "delete", "docs.cilium.io").exit_code == 1


@pytest.mark.parametrize(
    ("name", "addresses"),
    [("a..b", ["1.2.3.4"]), ("*.x", ["1.2.3.4"]), ("x", ["1.2.3"]), ("x", []), ("x y", ["::1"])],
)
def test_what_is_no_name_or_address(agent: Agent, name: str, addresses: list[str]) -> None:
    answer = agent.http.put(f"/fqdn/{name}", json={"addresses": addresses})
    assert answer.status_code == 422
    assert agent.get("/fqdn") == []
