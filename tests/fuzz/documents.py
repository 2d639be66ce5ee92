"""What must hold whatever a policy document is: it is refused with a reason, or has a meaning."""

from __future__ import annotations

from functools import cache

from jsonschema import Draft202012Validator

import parsers.r2d2  # noqa: F401 - registers r2d2, which the corpus names
from proxylib.errors import ConfigError
from xds.documents import load_closed, load_policies
from xds.endpoints import load_endpoints, load_services
from xds.engine import Change, Engine
from xds.labels import Selector
from xds.lint import lint
from xds.policy import Policy
from xds.schema import document_schema
from xds.source import Document, DocumentError, read_documents
from xds.yamltext import MAX_PROBLEMS

ENDPOINTS = """
endpoints:
- {address: 10.0.0.1, labels: {app: a}, ports: {http: 80}}
- {address: 10.0.0.2, namespace: default, labels: {"k8s:app": b}}
- {address: 10.0.0.3, labels: ["reserved:host", "k8s:type=node"]}
services: [{name: s, namespace: default, selector: {app: a}, addresses: [192.0.2.1]}]
"""


def policy(data: bytes) -> None:
    """Documents are read, judged alone and together, compiled, and looked at by the linter."""
    text = data[:8192].decode("utf-8", "replace")
    try:
        documents = read_documents("fuzz.yaml", text)
    except DocumentError as error:
        _explained(error)
        return
    _others(documents)
    try:
        policies = load_policies(documents)
    except DocumentError as error:
        _explained(error)
        _closed(documents)
        return
    closed = load_closed(documents)
    assert (closed.quarantined, closed.left_out) == ([], [])
    for document in documents:
        assert _validator().is_valid(document.value), document.value
    _in_force(policies)


def _others(documents: list[Document]) -> None:
    """The same documents as endpoints and services, which they hardly are."""
    for load in (load_endpoints, load_services):
        try:
            load(documents)
        except DocumentError as error:
            _explained(error)


def _explained(error: DocumentError) -> None:
    assert 0 < len(error.problems) <= MAX_PROBLEMS
    for problem in error.problems:
        assert problem.message
        assert problem.place.line > 0


def _closed(documents: list[Document]) -> None:
    """What is bad fails closed, by itself, and no rule of it allows anybody."""
    closed = load_closed(documents)
    assert closed.quarantined or closed.left_out
    endpoints = load_endpoints(read_documents("e.yaml", ENDPOINTS))
    for each in closed.policies:
        for rule in (*each.ingress, *each.egress):
            if rule.quarantined is None or rule.deny:
                continue
            assert rule.peers is not None
            for peer in rule.peers:
                assert isinstance(peer, Selector)
                assert not any(peer.matches(endpoint.labels) for endpoint in endpoints)
    _in_force(closed.policies)


def _in_force(policies: list[Policy]) -> None:
    documents = read_documents("e.yaml", ENDPOINTS)
    endpoints, services = load_endpoints(documents), load_services(documents)
    assert len(lint(policies, endpoints, services)) <= MAX_PROBLEMS
    engine = Engine()
    change = Change(
        policies={"fuzz": policies},
        endpoints=dict(enumerate(endpoints, 1)),
        services=services.resolve,
    )
    try:
        engine.change(change)
    except (DocumentError, ConfigError):
        return
    for number in engine.endpoints:
        engine.map_state(number)


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(document_schema())
