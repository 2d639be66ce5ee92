"""Policy documents to policies: which kinds there are, and what they may not be together.

`KINDS` is the table of document kinds; each has a function that makes policies
of a document or raises DocumentError with everything that is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from xds import cilium, kubernetes
from xds.policy import Policy
from xds.source import Document, DocumentError, Problem

KINDS: dict[str, Callable[[Document], list[Policy]]] = {
    "CiliumNetworkPolicy": cilium.network_policy,
    "CiliumClusterwideNetworkPolicy": cilium.clusterwide_policy,
    "NetworkPolicy": kubernetes.network_policy,
}
"""How to load each kind of document."""


def load_policies(documents: Iterable[Document]) -> list[Policy]:
    """The policies of `documents`.

    Raises DocumentError with the problems of all of them, a name used twice
    (in one kind and namespace) included.
    """
    policies: list[Policy] = []
    problems: list[Problem] = []
    names: dict[tuple[str, str, str], Document] = {}
    for document in documents:
        try:
            found = load_document(document)
        except DocumentError as error:
            problems += error.problems
            continue
        name = found[0].name
        first = names.setdefault((found[0].kind, found[0].namespace, name), document)
        if first is not document:
            place = first.place(("metadata", "name"))
            message = f"{name!r} is the name of another policy: {place}"
            problems.append(document.problem(("metadata", "name"), message))
        policies += found
    if problems:
        raise DocumentError(problems)
    return policies


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
    return load(document)
