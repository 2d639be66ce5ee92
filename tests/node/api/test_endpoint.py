"""Endpoints, identities and addresses over the API."""

from __future__ import annotations

import threading

import pytest

from tests.node.agents import Agent, r2d2


def test_an_endpoint_reads_like_a_cilium_endpoint(agent: Agent) -> None:
    external = {"container-id": "c0ffee", "k8s-namespace": "default", "k8s-pod-name": "nginx-0"}
    added = agent.add_endpoint(
        "172.27.2.23", "k8s:app=nginx", **{"external-identifiers": external, "id": 2318}
    )
    assert added.status_code == 201
    assert added.headers["location"] == "/v1/endpoint/2318"
    endpoint = agent.get("/endpoint/2318")
    assert endpoint == added.json()
    identity = endpoint["identity"]["id"]
    assert identity >= 256
    assert endpoint == {
        "id": 2318,
        "state": "ready",
        "identity": {"id": identity, "labels": ["k8s:app=nginx"]},
        "networking": {"addressing": [{"ipv4": "172.27.2.23"}], "node": "127.0.0.1"},
        "external-identifiers": external,
        "encryption": {},
        "policy": {"ingress": False, "egress": False},
    }


def test_found_by_what_the_cni_plugin_calls_it(agent: Agent) -> None:
    for number in (1, 2):
        name = {"cni-attachment-id": f"pods:c{number}:eth0", "container-id": f"c{number}"}
        agent.add_endpoint(f"10.0.0.{number}", **{"external-identifiers": name})
    (found,) = agent.get("/endpoint", **{"cni-attachment-id": "pods:c2:eth0"})
    assert found["id"] == 2
    assert found["external-identifiers"]["cni-attachment-id"] == "pods:c2:eth0"
    assert agent.get("/endpoint", **{"cni-attachment-id": "pods:c3:eth0"}) == []
    assert len(agent.get("/endpoint")) == 2


def test_same_labels_same_identity(agent: Agent) -> None:
    for number in range(3):
        agent.add_endpoint(f"10.0.0.{number}", "k8s:app=nginx", "container:tier=back")
    agent.add_endpoint("10.0.1.1", "k8s:app=alpine")
    endpoints = agent.get("/endpoint")
    assert [e["id"] for e in endpoints] == [1, 2, 3, 4]
    first, *others = [e["identity"]["id"] for e in endpoints]
    assert others[:2] == [first, first]
    assert others[2] != first
    users = {i["id"]: i["endpoints"] for i in agent.get("/identity")}
    assert users[first] == 3
    assert users[1] == 0
    assert agent.get(f"/identity/{first}")["labels"] == [
        "container:tier=back",
        "k8s:app=nginx",
    ] or (agent.get(f"/identity/{first}")["labels"] == ["k8s:app=nginx", "container:tier=back"])
    assert [e["id"] for e in agent.get("/endpoint", label=["app=alpine"])] == [4]
    assert {e["cidr"]: e["identity"] for e in agent.get("/ip")}["10.0.0.2/32"] == first
    assert agent.http.get("/identity/4711").status_code == 404


def test_enforcement_follows_policies_and_labels(agent: Agent) -> None:
    agent.add_endpoint("10.0.0.1", "app=r2d2")
    assert agent.get("/endpoint/1")["policy"] == {"ingress": False, "egress": False}
    agent.put_policy(r2d2())
    assert agent.get("/endpoint/1")["policy"] == {"ingress": True, "egress": False}
    assert agent.get("/redirects")[0]["parser"] == "r2d2"
    before = agent.get("/endpoint/1")["identity"]["id"]
    changed = agent.http.patch("/endpoint/1/labels", json={"add": ["x=y"], "remove": ["app=r2d2"]})
    assert changed.json()["identity"]["labels"] == ["unspec:x=y"]
    assert changed.json()["identity"]["id"] != before
    assert changed.json()["policy"]["ingress"] is False
    put = agent.http.put("/endpoint/1/labels", json={"labels": ["app=r2d2"]})
    assert put.json()["identity"]["id"] == before
    assert agent.http.delete("/endpoint/1").status_code == 204
    assert agent.http.get("/endpoint/1").status_code == 404
    assert agent.get("/ip") == []


@pytest.mark.parametrize(
    "request_",
    [
        {"addresses": []},
        {"addresses": ["10.0.0.256"]},
        {"addresses": ["10.0.0.1", "10.0.0.2"]},
        {"addresses": ["fe80::1%eth0"]},
        {"addresses": ["::ffff:10.0.0.1"]},
        {"addresses": ["0.0.0.0"]},
        {"addresses": ["10.0.0.1", "::"]},
        {"addresses": ["224.0.0.1"]},
        {"addresses": ["ff02::1"]},
        {"addresses": ["255.255.255.255"]},
        {"addresses": ["169.254.1.1"]},
        {"addresses": ["fe80::1"]},
        {"addresses": ["10.0.0.1"], "labels": ["a b"]},
        {"addresses": ["10.0.0.1"], "labels": ["a=1", "a=2"]},
        {"addresses": ["10.0.0.1"], "labels": ["reserved:world", "a=2"]},
        {"addresses": ["10.0.0.1"], "labels": ["reserved:nobody"]},
        {"addresses": ["10.0.0.1"], "labels": ["cidr:10.0.0.0/8"]},
        {"addresses": ["10.0.0.1"], "labels": ["cidr:anything"]},
        {"addresses": ["10.0.0.1"], "labels": ["fqdn:example.com"]},
        {"addresses": ["10.0.0.1"], "labels": ["x" * 2000]},
        {"addresses": ["10.0.0.1"], "labels": ["a\u0000b"]},
        {"addresses": ["10.0.0.1"], "id": 0},
        {"addresses": ["10.0.0.1"], "id": 65536},
        {"addresses": ["10.0.0.1"], "unknown": 1},
        {"addresses": "10.0.0.1"},
        [],
    ],
)
def test_what_is_no_endpoint(agent: Agent, request_: object) -> None:
    answer = agent.http.post("/endpoint", json=request_)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"]
    assert agent.get("/endpoint") == []
    # Nor has anybody been numbered for it.
    assert {identity["id"] for identity in agent.get("/identity")} == set(range(7))


def test_plain_listeners_have_endpoints_of_the_node(agent: Agent) -> None:
    """They are on loopback: the policy of an endpoint there is what judges (datapath: none)."""
    assert agent.add_endpoint("127.0.0.1", "app=r2d2").status_code == 201


def test_a_key_has_one_label(agent: Agent) -> None:
    agent.add_endpoint("10.0.0.1", "k8s:app=r2d2", "k8s:x=y")
    twice = agent.cli("endpoint", "labels", 1, "--add", "k8s:app=other")
    assert twice.exit_code == 2
    assert "endpoint 1 has k8s:app=r2d2 already" in twice.stderr
    assert "--delete k8s:app=r2d2 --add" in twice.stderr
    assert "--set" in twice.stderr
    options = ("--delete", "k8s:app=r2d2", "--add", "k8s:app=other")
    assert agent.cli("endpoint", "labels", 1, *options).stdout == "k8s:app=other\nk8s:x=y\n"


def test_an_address_belongs_to_one(agent: Agent) -> None:
    assert agent.add_endpoint("fd00::1").status_code == 201
    taken = agent.add_endpoint("fd00:0::0001")
    assert taken.status_code == 409
    assert "endpoint 1" in taken.json()["detail"]
    assert agent.add_endpoint("10.0.0.1", id=1).status_code == 409
    assert agent.http.patch("/endpoint/1/labels", json={"remove": ["a=b"]}).status_code == 422
    assert agent.http.delete("/endpoint/2").status_code == 404


def test_numbers_are_not_given_again_at_once(agent: Agent) -> None:
    agent.add_endpoint("10.0.0.1")
    agent.http.delete("/endpoint/1")
    assert agent.add_endpoint("10.0.0.1").json()["id"] == 2


def test_concurrent_writers_of_endpoints(agent: Agent) -> None:
    answers: list[int] = []

    def add(number: int) -> None:
        # Two ask for each address: one gets it.
        answers.append(agent.add_endpoint(f"10.0.0.{number // 2}", f"n={number}").status_code)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [201] * 8 + [409] * 8
    endpoints = agent.get("/endpoint")
    assert [e["id"] for e in endpoints] == list(range(1, 9))
    assert agent.get("/policy")["revision"] == 8


def test_enforcement_and_audit_of_one_endpoint(agent: Agent) -> None:
    agent.put_policy(r2d2())
    agent.add_endpoint("10.0.0.1", "app=r2d2")
    agent.add_endpoint("10.0.0.2", "app=other", enforcement="always")
    assert agent.get("/endpoint/2")["policy"] == {"ingress": True, "egress": True, "mode": "always"}
    shown = "enforcement=default\naudit=false\nsidecar=false\nsockmap=false\n"
    assert agent.cli("endpoint", "config", 1).stdout == shown
    changed = agent.cli("endpoint", "config", 1, "--audit").stdout
    assert changed == shown.replace("audit=false", "audit=true")
    assert "Disabled (Audit)" in agent.cli("endpoint", "list").stdout
    changed = agent.http.patch("/endpoint/1", json={"enforcement": "never", "audit": False})
    assert changed.json()["policy"] == {"ingress": False, "egress": False, "mode": "never"}
    assert agent.http.patch("/endpoint/1", json={"enforcement": "maybe"}).status_code == 422
    assert agent.http.patch("/endpoint/9", json={}).status_code == 404


def test_ports_by_name(agent: Agent) -> None:
    agent.put_policy(r2d2().replace('"4040"', "droid"))
    added = agent.cli("endpoint", "add", "--address", "10.0.0.1", "--label", "app=r2d2",
                      "--port", "droid=4141")  # fmt: skip
    assert added.stdout == "1\n"
    agent.add_endpoint("10.0.0.2", "role=jedi")
    assert [r["port"] for r in agent.get("/redirects")] == [4141]
    twice = [{"name": "a", "port": 1}, {"name": "a", "port": 2}]
    assert agent.add_endpoint("10.0.0.3", ports=twice).status_code == 422
    wrong = agent.cli("endpoint", "add", "--address", "10.0.0.4", "--port", "80")
    assert wrong.exit_code == 2


def test_a_prefix_has_an_identity_to_be_asked_for(agent: Agent) -> None:
    agent.add_endpoint("10.0.0.1", "k8s:app=r2d2")
    text = (
        "kind: CiliumNetworkPolicy\nmetadata: {name: outside}\n"
        "spec: {endpointSelector: {}, ingress: [{fromCIDR: [192.0.2.0/24]}]}"
    )
    assert agent.http.put("/policy", content=text).status_code == 200
    (number,) = (e["identity"] for e in agent.get("/ip") if e["cidr"] == "192.0.2.0/24")
    assert number > 1 << 24
    assert agent.get(f"/identity/{number}")["labels"] == ["cidr:192.0.2.0/24", "reserved:world"]
    assert agent.http.get(f"/identity/{1 << 25}").status_code == 422


def test_sockmap_without_an_interface_is_refused_before_anything_is_touched(agent: Agent) -> None:
    number = agent.add_endpoint("10.9.9.9", "app=alone").json()["id"]
    refused = agent.http.patch(f"/endpoint/{number}", json={"sockmap": True})
    # Where there is no data path, one that needs it would be told that, with 503.
    assert refused.status_code == 422
    assert "has no interface" in refused.json()["detail"]
    assert agent.http.patch("/endpoint/64000", json={"sockmap": True}).status_code == 404
