"""The OpenAPI document is true: schemathesis asks what it says, and worse, of a real agent."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from prometheus_client import CollectorRegistry
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.errors import SchemathesisError
from schemathesis.specs.openapi.checks import positive_data_acceptance

from node.api.app import make_app
from tests.node.agents import Agent, r2d2, running

EXAMPLES = 25
"""Requests per operation, good ones and as many bad ones."""

BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_the_document_is_served(agent: Agent) -> None:
    document = agent.http.get("http://agent/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert {path.removeprefix("/v1") for path in document["paths"]} == {
        *("/policy", "/policy/files", "/policy/{name}", "/policy/validate", "/policy/selectors"),
        *("/policy/resolve", "/policy/revisions/{revision}"),
        *("/endpoint", "/endpoint/{number}", "/endpoint/{number}/labels"),
        *("/identity", "/identity/{number}", "/ip"),
        *("/fqdn", "/fqdn/{name}", "/service", "/service/{name}"),
        *("/healthz", "/config", "/xds", "/redirects", "/metrics", "/monitor"),
        "/envoy/reload",
    }


@pytest.mark.timeout(280)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_operation_keeps_its_word(mode: GenerationMode) -> None:
    asked = 0
    with tempfile.TemporaryDirectory(prefix="api") as path, running(Path(path)) as agent:
        agent.put_policy(r2d2())
        agent.add_endpoint("10.0.0.1", "app=r2d2")
        assert agent.node is not None
        app = make_app(agent.node, CollectorRegistry())
        schema = schemathesis.openapi.from_asgi("/openapi.json", app)
        for result in schema.get_all_operations():
            strategy = result.ok().as_strategy(generation_mode=mode)
            # An operation without anything to get wrong has no wrong requests.
            with suppress(SchemathesisError, Unsatisfiable):
                ask(strategy)
                asked += 1
        assert agent.get("/healthz")["state"] in ("Ok", "Warning")
    assert asked >= 10


# What labels, addresses and documents may be is more than a schema can say: those that
# only look right are answered 422.


def ask(strategy: Any) -> None:
    @BOUNDED
    @given(strategy)
    def one(case: Any) -> None:
        # A stream without a time ends never.
        endless = case.path.endswith("/monitor") and "timeout" not in (case.query or {})
        if endless or _is_number((case.query or {}).get("timeout")):
            case.query = {**(case.query or {}), "timeout": 0}
        excluded = [positive_data_acceptance]
        if case.method == "POST" and case.path.endswith("/endpoint"):
            # 503, documented: this agent has no data path for an endpoint with an interface.
            excluded.append(not_a_server_error)
        case.call_and_validate(excluded_checks=excluded)

    one()


def _is_number(value: object) -> bool:
    try:
        return 0 <= float(str(value)) <= 86400
    except ValueError:
        return False
