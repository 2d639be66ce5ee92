"""Policy documents to policies: which kinds there are, and what they may not be together.

`KINDS` is the table of document kinds; each has a function that makes policies
of a document or raises DocumentError with everything that is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from proxylib.regex import spending
from xds import cilium, kubernetes, model
from xds.policy import Policy
from xds.quarantine import load_quarantined
from xds.shape import Shape
from xds.source import Document, DocumentError, Problem, building

KINDS: dict[str, Callable[[Document], list[Policy]]] = {
    "CiliumNetworkPolicy": cilium.network_policy,
    "CiliumClusterwideNetworkPolicy": cilium.clusterwide_policy,
    "NetworkPolicy": kubernetes.network_policy,
}
"""How to load each kind of document."""

SHAPES: dict[str, type[Shape]] = {
    "CiliumNetworkPolicy": model.CiliumNetworkPolicy,
    "CiliumClusterwideNetworkPolicy": model.CiliumClusterwideNetworkPolicy,
    "NetworkPolicy": kubernetes.NetworkPolicy,
}
"""What a document of each kind looks like."""


class Loaded(NamedTuple):
    """What `load_closed` makes of documents.

    quarantined: what is wrong with the rules that are closed now.
    left_out: what is wrong with documents that are not among `policies` at all.
    """

    policies: list[Policy]
    quarantined: list[Problem]
    left_out: list[Problem]


def load_policies(documents: Iterable[Document]) -> list[Policy]:
    """The policies of `documents`.

    Raises DocumentError with the problems of all of them, a name used twice
    (in one kind and namespace) included.
    """
    with building():
        policies, problems = _load_all(documents, load_document)
    if problems:
        raise DocumentError(problems)
    return policies


def load_closed(documents: Iterable[Document]) -> Loaded:
    """The policies of documents that were good once: what is bad now fails closed, by itself.

    For documents that are in force already (after a restart, without a parser that
    was there); a change is to be loaded with `load_policies`.
    """
    policies, left_out = _load_all(documents, lambda d: load_quarantined(d, load_document))
    rules = (rule for policy in policies for rule in (*policy.ingress, *policy.egress))
    return Loaded(policies, [r.quarantined for r in rules if r.quarantined], left_out)


def _load_all(
    documents: Iterable[Document], load: Callable[[Document], list[Policy]]
) -> tuple[list[Policy], list[Problem]]:
    policies: list[Policy] = []
    problems: list[Problem] = []
    names: dict[tuple[str, str, str], Document] = {}
    for document in documents:
        try:
            found = load(document)
        except DocumentError as error:
            problems += error.problems
            continue
        name = found[0].name
        first = names.setdefault((found[0].kind, found[0].namespace, name), document)
        if first is not document:
            place = first.place(("metadata", "name"))
            message = f"{name!r} is the name of another policy: {place}"
            problems.append(document.problem(("metadata", "name"), message))
            continue
        policies += found
    return policies, problems


def load_document(document: Document) -> list[Policy]:
    """The policies of one document, at least one. Raises DocumentError."""
    if not isinstance(document.value, dict):
        raise DocumentError([document.problem((), "a policy document must be a mapping")])
    kind = document.value.get("kind")
    load = KINDS.get(kind) if isinstance(kind, str) else None
    if load is None:
        known = f"known: {', '.join(KINDS)}"
        message = f"unknown kind {kind!r} ({known})" if kind else f"'kind' is required ({known})"
        raise DocumentError([document.problem(("kind",), message)])
    with spending(document.budget):
        return load(document)
