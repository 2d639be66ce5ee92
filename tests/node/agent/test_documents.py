"""Documents as the agent keeps them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.agent.documents import PolicyDocument, load_documents, parse_labels
from tests.node.agents import r2d2
from xds.source import DocumentError, read_documents

TWO_RULES = """\
kind: CiliumNetworkPolicy
metadata: {name: two, namespace: space}
specs:
- {endpointSelector: {}, labels: [{key: first}], ingress: [{}]}
- {endpointSelector: {}, labels: [{key: second, value: v, source: user}], ingress: [{}]}
"""


def test_rules_go_by_their_labels() -> None:
    (document,) = load_documents("f", TWO_RULES, 7)
    assert document.key == "CiliumNetworkPolicy/space/two"
    left = document.without(parse_labels(["first"]))
    assert left is not None
    assert left.value["specs"] == [document.value["specs"][1]]
    assert left.key == document.key
    assert document.without(parse_labels(["io.cilium.k8s.policy.name=two"])) is None
    assert document.without(parse_labels(["first", "user:second=v"])) is document
    assert document.without(parse_labels(["other:second=v"])) is document
    assert document.has_labels(parse_labels(["user:second=v"]))
    assert not document.has_labels(parse_labels(["first", "second=v"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no document"),
        ("# nothing\n", "holds no document"),
        ("[]", "must be a mapping"),
        ("kind: 1\nmetadata: {name: x}", "unknown kind"),
        (r2d2() + "---\n" + r2d2(), "twice"),
    ],
)
def test_what_is_no_document(text: str, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        load_documents("f", text, 0)


def test_what_was_good_once_fails_closed() -> None:
    with pytest.raises(DocumentError):
        load_documents("f", r2d2().replace("r2d2, l7", "c3po, l7"), 0)
    (closed,) = load_documents("f", r2d2().replace("r2d2, l7", "c3po, l7"), 0, closed=True)
    (problem,) = closed.problems()
    assert "c3po" in problem.message
    assert closed.policies[0].default_deny_ingress


# What no document that was accepted can have is left out.
TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=20
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_the_text_means_the_same(value: object) -> None:
    document = PolicyDocument({"kind": "K", "x": value}, (), 1)
    (read,) = read_documents("f", document.text)
    assert read.value == document.value == json.loads(document.text)
