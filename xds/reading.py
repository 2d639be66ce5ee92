"""Texts to policies, endpoints and services; a text that did not change is not read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from xds.documents import load_document
from xds.endpoints import Endpoint, load_endpoints, load_services
from xds.policy import Policy
from xds.services import ServiceTable
from xds.source import Document, DocumentError, Place, Problem, building, read_documents

T = TypeVar("T")

NO_DOCUMENT = (
    "holds no document (it is empty, or has only comments); write one, or do not name the file"
)


class Source(NamedTuple):
    """A document's name in messages, and how to get its text."""

    name: str
    text: Callable[[], str]


class Read(NamedTuple):
    """What some sources say; the policies by source."""

    policies: Mapping[str, tuple[Policy, ...]]
    endpoints: Sequence[Endpoint]
    services: ServiceTable


@dataclass
class Reader:
    """Reads sources, and remembers what it made of their texts."""

    _policies: dict[str, tuple[str, list[tuple[Document, list[Policy]]]]] = field(
        default_factory=dict
    )
    _others: dict[str, tuple[str, list[Document]]] = field(default_factory=dict)
    _loaded: tuple[list[list[Document]], list[Endpoint], ServiceTable] | None = None

    def read(self, policies: Iterable[Source], endpoints: Iterable[Source]) -> Read:
        """What the sources say. Raises DocumentError with the problems of all of them."""
        problems: list[Problem] = []
        found = _gather(self._policies, policies, _load, problems)
        others = _gather(self._others, endpoints, lambda documents: documents, problems)
        problems += _names_twice(found.values())
        try:
            everybody = self._load_others(list(others.values()))
        except DocumentError as error:
            problems += error.problems
        if problems:
            raise DocumentError(problems)
        by_source = {
            name: tuple(policy for _, loaded in documents for policy in loaded)
            for name, documents in found.items()
        }
        return Read(by_source, *everybody)

    def _load_others(self, groups: list[list[Document]]) -> tuple[Sequence[Endpoint], ServiceTable]:
        known = self._loaded
        if known is None or [*map(id, known[0])] != [*map(id, groups)]:
            documents = [document for group in groups for document in group]
            known = (groups, load_endpoints(documents), load_services(documents))
            self._loaded = known
        return known[1], known[2]


def _gather(
    remembered: dict[str, tuple[str, T]],
    sources: Iterable[Source],
    load: Callable[[list[Document]], T],
    problems: list[Problem],
) -> dict[str, T]:
    """What `load` makes of each source; what is wrong goes to `problems`.

    Only what is good is remembered, and only until the next reading.
    """
    found: dict[str, tuple[str, T]] = {}
    for source in sources:
        try:
            text = source.text()
            known = remembered.get(source.name)
            if known is None or known[0] != text:
                documents = read_documents(source.name, text)
                if not documents:
                    # An editor may empty a file for a moment. That must not open everything.
                    raise DocumentError([Problem(Place(source.name), NO_DOCUMENT)])
                known = (text, load(documents))
            found[source.name] = known
        except DocumentError as error:
            problems += error.problems
    if not problems:
        remembered.clear()
        remembered.update(found)
    return {name: loaded for name, (_, loaded) in found.items()}


def _load(documents: list[Document]) -> list[tuple[Document, list[Policy]]]:
    problems: list[Problem] = []
    loaded = []
    with building():
        for document in documents:
            try:
                loaded.append((document, load_document(document)))
            except DocumentError as error:
                problems += error.problems
    if problems:
        raise DocumentError(problems)
    return loaded


def _names_twice(found: Iterable[list[tuple[Document, list[Policy]]]]) -> Iterable[Problem]:
    names: dict[tuple[str, str, str], Document] = {}
    for group in found:
        for document, (policy, *_) in group:
            first = names.setdefault((policy.kind, policy.namespace, policy.name), document)
            if first is not document:
                place = first.place(("metadata", "name"))
                message = f"{policy.name!r} is the name of another policy: {place}"
                yield document.problem(("metadata", "name"), message)
