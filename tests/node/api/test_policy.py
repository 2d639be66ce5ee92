"""Policies over the API."""

from __future__ import annotations

import threading
from http import HTTPStatus
from pathlib import Path

import pytest

from node.api.app import MAX_BODY
from proxylib.npds import HOSTS_TYPE, POLICY_TYPE
from tests.node.agents import Agent, r2d2
from tests.xds.client import Subscriber

UNANCHORED = r2d2().replace("cmd: READ", "file: secret")


def test_put_get_delete(agent: Agent) -> None:
    put = agent.put_policy(r2d2() + "---\n" + r2d2("other", team="b"))
    assert put.status_code == 200
    assert put.json()["revision"] == 1
    assert put.json()["policies"] == [
        "CiliumNetworkPolicy/droids",
        "CiliumNetworkPolicy/other",
    ]
    found = agent.get("/policy")
    assert [p["name"] for p in found["policies"]] == ["droids", "other"]
    assert found["policies"][0]["document"]["spec"]["labels"] == [{"key": "team", "value": "a"}]
    assert [p["name"] for p in agent.get("/policy", label=["team=b"])["policies"]] == ["other"]
    assert [p["name"] for p in agent.get("/policy", name="droids")["policies"]] == ["droids"]
    gone = agent.http.delete("/policy/droids")
    assert gone.json()["revision"] == 2
    assert agent.http.delete("/policy", params={"label": "team=b"}).json()["revision"] == 3
    assert agent.get("/policy") == {"revision": 3, "policies": [], "problems": []}


def test_json_is_a_document_too(agent: Agent) -> None:
    agent.put_policy(r2d2())
    document = agent.get("/policy")["policies"][0]["document"]
    again = agent.http.put("/policy", json=document)
    assert again.status_code == 200
    assert agent.get("/policy")["policies"][0]["revision"] == 2


def test_problems_have_places(agent: Agent) -> None:
    text = (
        r2d2() + "---\n" + r2d2("bad", cmd="JUMP") + "---\n" + r2d2("worse").replace("spec", "spc")
    )
    answer = agent.put_policy(text, file="mine.yaml")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["title"] == HTTPStatus(422).phrase
    places = {(e["file"], e["line"], e["path"]) for e in problem["errors"]}
    assert ("mine.yaml", 23, "spec.ingress[0].toPorts[0].rules.l7[0].cmd") in places
    assert any(line == 28 for _, line, _ in places)
    assert agent.get("/policy")["revision"] == 0


def test_validate_changes_nothing(agent: Agent) -> None:
    def validate(text: str) -> dict[str, object]:
        headers = {"Content-Type": "application/yaml"}
        found = agent.http.post("/policy/validate", content=text, headers=headers).json()
        assert isinstance(found, dict)
        return found

    assert validate(r2d2(cmd="JUMP"))["valid"] is False
    good = validate(UNANCHORED)
    assert good["valid"] is True
    assert any("anywhere" in str(w) for w in good["warnings"])  # type: ignore[attr-defined]
    assert agent.get("/policy")["revision"] == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"\xff\xfe", 422),
        (b"a: [", 422),
        (b"&a [*a]", 422),
        (b"!!python/object/apply:os.system [id]", 422),
        (b"kind: Nobody\nmetadata: {name: x}", 422),
        (b"[" * 10_000, 422),
        (b"x" * (MAX_BODY + 1), 413),
    ],
)
def test_hostile_bodies(agent: Agent, body: bytes, status: int) -> None:
    headers = {"Content-Type": "application/yaml"}
    answer = agent.http.put("/policy", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert agent.get("/policy")["revision"] == 0


def test_deleting_what_is_not_there(agent: Agent) -> None:
    assert agent.http.delete("/policy/nobody").status_code == 404
    assert agent.http.delete("/policy", params={"label": "a=b"}).status_code == 404
    assert agent.http.delete("/policy").status_code == 422
    assert agent.http.delete("/policy", params={"all": "true"}).status_code == 404
    assert agent.http.delete("/policy", params={"label": "a b"}).status_code == 422


def test_one_rule_of_a_document_goes_by_its_label(agent: Agent) -> None:
    two = """
kind: CiliumNetworkPolicy
metadata: {name: two}
specs:
- endpointSelector: {matchLabels: {app: x}}
  labels: [{key: first}]
  ingress: [{fromEndpoints: [{matchLabels: {role: a}}]}]
- endpointSelector: {matchLabels: {app: x}}
  labels: [{key: second}]
  ingress: [{fromEndpoints: [{matchLabels: {role: b}}]}]
"""
    assert agent.put_policy(two).status_code == 200
    assert agent.http.delete("/policy", params={"label": "first"}).status_code == 200
    (policy,) = agent.get("/policy")["policies"]
    (rule,) = policy["rules"]
    assert "unspec:second" in rule


def test_selectors(agent: Agent) -> None:
    agent.put_policy(r2d2())
    agent.add_endpoint("10.0.0.1", "app=r2d2")
    found = {item["selector"]: item for item in agent.get("/policy/selectors")}
    (identity,) = found["app=r2d2"]["identities"]
    assert identity >= 256
    assert found["role=jedi"] == {"selector": "role=jedi", "users": 1, "identities": []}


def test_concurrent_writers_get_a_revision_each(agent: Agent) -> None:
    revisions: list[int] = []

    def write(who: int) -> None:
        for _ in range(4):
            answer = agent.put_policy(r2d2(f"p{who}", role=f"r{who}"))
            assert answer.status_code == 200
            revisions.append(answer.json()["revision"])

    threads = [threading.Thread(target=write, args=(who,)) for who in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(revisions) == list(range(1, 25))
    found = agent.get("/policy")
    assert found["revision"] == 24
    assert {p["name"] for p in found["policies"]} == {f"p{who}" for who in range(6)}


def test_waiting_for_a_revision(agent: Agent) -> None:
    agent.add_endpoint("10.0.0.1", "app=r2d2")
    path: Path = agent.config.xds_path
    with Subscriber(path, POLICY_TYPE) as policies, Subscriber(path, HOSTS_TYPE) as hosts:
        policies.ack(policies.subscribe())
        hosts.ack(hosts.subscribe())
        assert agent.get("/policy/revisions/1", timeout=10, nodes=1)["reached"]
        revision = agent.put_policy(r2d2()).json()["revision"]
        response = policies.receive()
        waiting = agent.get(f"/policy/revisions/{revision}", timeout=0.1)
        assert waiting["reached"] is False
        assert waiting["waiting"] == {"n1": "has not answered yet"}
        policies.send(response.nonce, "1", error="the droid says no")
        waiting = agent.get(f"/policy/revisions/{revision}", timeout=0.2)
        assert waiting["waiting"] == {"n1": "the droid says no"}
        (nacked,) = [s for s in agent.get("/xds")["streams"] if s["nacked"]]
        assert nacked["reason"] == "the droid says no"
        agent.add_endpoint("10.0.0.2", "role=jedi")
        hosts.ack(hosts.receive())
        revision = agent.get("/policy")["revision"]
        response = policies.receive()
        threading.Timer(0.1, lambda: policies.ack(response)).start()
        assert agent.get(f"/policy/revisions/{revision}", timeout=20)["reached"]
        assert not agent.get(f"/policy/revisions/{revision}", nodes=2)["reached"]
        assert not agent.get(f"/policy/revisions/{revision + 1}")["reached"]
