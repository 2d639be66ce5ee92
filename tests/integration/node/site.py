"""A lab, the agent of its node, and what tests do with the two."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from demos.namespaces import Endpoint, Lab
from demos.node.agent import NodeAgent
from tests.native.services import wait_for
from tests.node.agents import http_client

PATIENCE = 45.0
"""Seconds until something is in force, on a busy machine."""

WEB = 80


@dataclass
class Site:
    """A node with its agent, spoken to over the REST API."""

    lab: Lab
    agent: NodeAgent
    http: httpx.Client
    numbers: dict[str, int] = field(default_factory=dict)
    """Of the endpoints, by name."""

    def add(self, name: str, *labels: str, **more: Any) -> int:
        """Make a namespace of the lab an endpoint, ``k8s:app=NAME`` and `labels`; its number."""
        body = {"netns": self.lab[name].netns, "labels": [f"k8s:app={name}", *labels], **more}
        response = self.http.post("/endpoint", json=body)
        assert response.status_code == 201, response.text
        self.numbers[name] = response.json()["id"]
        return self.numbers[name]

    def endpoint(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/endpoint/{self.numbers[name]}")
        return found

    def get(self, path: str, **params: Any) -> Any:
        response = self.http.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    def policies(self, *documents: dict[str, Any], ready: bool = True) -> None:
        """These are all policies there are; ready: and they are in force."""
        self.http.delete("/policy", params={"all": "true"})
        if documents:
            self.put(*documents)
        if ready:
            self.wait_ready()

    def put(self, *documents: dict[str, Any]) -> int:
        """Put policies in force, beside others or in place of those of their name."""
        text = "\n---\n".join(map(json.dumps, documents))
        headers = {"Content-Type": "application/yaml"}
        response = self.http.put("/policy", content=text, headers=headers)
        assert response.status_code == 200, response.text
        revision: int = response.json()["revision"]
        return revision

    def wait_ready(self) -> None:
        """Wait until every endpoint is judged as the policies say, by whom they say."""
        revision = self.get("/policy")["revision"]
        path = f"/policy/revisions/{revision}"
        # An Envoy that has lost its agent more than once asks again after half a minute at most.
        wait_for(lambda: self.get(path, timeout=5)["reached"], "policies in force", PATIENCE)
        wait_for(self._is_ready, "endpoints that are ready", PATIENCE)

    def _is_ready(self) -> bool:
        return all(
            endpoint["state"] == "ready" and not endpoint.get("closed")
            for endpoint in self.get("/endpoint")
        )

    def relabel(self, name: str, *labels: str) -> None:
        path = f"/endpoint/{self.numbers[name]}/labels"
        response = self.http.put(path, json={"labels": list(labels)})
        assert response.status_code == 200, response.text

    def cli(self, *words: object, **options: Any) -> str:
        return self.agent.proxylib(*words, **options)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cli("status", "--json"))
        return found


@contextmanager
def site(lab: Lab, *flags: object, endpoints: bool = True, mode: str = "node") -> Iterator[Site]:
    """The agent of a lab's node; endpoints: all that the lab has are its endpoints.

    mode: which Envoy judges them, "node" or "sidecar".
    """
    with NodeAgent(lab, *flags) as agent, http_client(agent.socket) as http:
        made = Site(lab, agent, http)
        if endpoints:
            for endpoint in lab:
                made.add(endpoint.name, mode=mode)
        yield made


def policy(
    name: str,
    app: str,
    *,
    ingress: list[Any] | None = None,
    egress: list[Any] | None = None,
    ingress_deny: list[Any] | None = None,
    egress_deny: list[Any] | None = None,
) -> dict[str, Any]:
    """A document about the endpoints with ``app=APP``; what is None is not said."""
    sides = {
        "ingress": ingress,
        "egress": egress,
        "ingressDeny": ingress_deny,
        "egressDeny": egress_deny,
    }
    spec = {"endpointSelector": {"matchLabels": {"app": app}}}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name},
        "spec": {**spec, **{key: value for key, value in sides.items() if value is not None}},
    }


def apps(key: str, *names: str) -> dict[str, Any]:
    """``fromEndpoints``, ``toEndpoints``: those with one of these ``app`` labels."""
    return {key: [{"matchLabels": {"app": name}} for name in names]}


def ports(*numbers: int, protocol: str = "TCP", **rules: Any) -> dict[str, Any]:
    """``toPorts``, with L7 rules or without."""
    listed = [{"port": str(number), "protocol": protocol} for number in numbers]
    return {"toPorts": [{"ports": listed, **({"rules": rules} if rules else {})}]}


def http(*paths: str, method: str = "GET") -> list[dict[str, str]]:
    """HTTP rules: these paths (regular expressions)."""
    return [{"method": method, "path": path} for path in paths]


def eventually(act: Callable[[], Any], wanted: Any, patience: float = PATIENCE) -> None:
    """Do it again until it comes out as wanted; what it came to last is told."""
    deadline = time.monotonic() + patience
    while (last := act()) != wanted:
        assert time.monotonic() < deadline, f"still {last!r}, not {wanted!r}"
        time.sleep(0.05)


__all__ = ["WEB", "Endpoint", "Site", "apps", "eventually", "http", "policy", "ports", "site"]
