"""From one state of the agent to the next: what that is to the engine, and what it may not be."""

from __future__ import annotations

from ipaddress import ip_address

from node.agent.documents import PolicyDocument
from node.agent.state import State, differences
from xds.engine import Change
from xds.services import ServiceTable
from xds.source import DocumentError, Problem


def change_of(before: State, after: State) -> Change:
    """What the engine is to be told."""
    documents, gone = differences(before.by_key(), after.by_key())
    endpoints, left = differences(before.endpoints, after.endpoints)
    names, forgotten = differences(before.names, after.names)
    moved = before.services is not after.services
    return Change(
        services=ServiceTable(after.services.values()).resolve if moved else None,
        names={name: [*map(ip_address, held)] for name, held in names.items()}
        | dict.fromkeys(forgotten, ()),
        policies={key: document.policies for key, document in documents.items()}
        | dict.fromkeys(gone, ()),
        endpoints={number: endpoint.for_engine() for number, endpoint in endpoints.items()}
        | dict.fromkeys(left),
    )


def refuse_twice(before: State, after: State) -> None:
    """Raise DocumentError if two places would have a document of one name."""
    known = set(map(id, before.policies()))
    found: dict[str, PolicyDocument] = {}
    problems = []
    for document in after.policies():
        other = found.setdefault(document.key, document)
        if other is not document:
            new, old = (other, document) if id(document) in known else (document, other)
            problems.append(
                Problem(
                    new.policies[0].origin.place,
                    f"{new.key} comes from {old.file or 'the API'}; change it there",
                )
            )
    if problems:
        raise DocumentError(problems)
