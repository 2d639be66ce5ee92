"""Everything that the agent was told, and how that is kept as items of the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from node.agent.documents import PolicyDocument, load_documents
from node.agent.endpoints import NodeEndpoint
from node.agent.store import Items, Key
from proxylib.errors import ConfigError
from xds.services import ServiceEntry
from xds.source import DocumentError

K = TypeVar("K")
V = TypeVar("V")

_REVISION: Key = ("node", "revision")
_NEXT: Key = ("node", "next-endpoint")


@dataclass(frozen=True, slots=True, eq=False)
class PolicyFile:
    """A file of the watched directory, as it was when it was last in order."""

    text: str
    documents: tuple[PolicyDocument, ...]


@dataclass(frozen=True, slots=True)
class State:
    """Everything that the agent was told. Mappings are never changed, only replaced.

    documents: those of the REST API, by key. files: by path. names: the addresses of DNS
    names, as text. services: by namespace (empty for none) and name.
    """

    revision: int = 0
    next_endpoint: int = 1
    documents: Mapping[str, PolicyDocument] = field(default_factory=dict)
    files: Mapping[str, PolicyFile] = field(default_factory=dict)
    endpoints: Mapping[int, NodeEndpoint] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    services: Mapping[tuple[str, str], ServiceEntry] = field(default_factory=dict)

    def by_key(self) -> dict[str, PolicyDocument]:
        """All documents, files' ones included."""
        files = {d.key: d for file in self.files.values() for d in file.documents}
        return {**files, **self.documents}

    def policies(self) -> list[PolicyDocument]:
        """All documents, by kind, namespace and name."""
        files = (document for file in self.files.values() for document in file.documents)
        return sorted(
            (*self.documents.values(), *files), key=lambda d: (d.kind, d.namespace, d.name)
        )


def differences(before: Mapping[K, V], after: Mapping[K, V]) -> tuple[dict[K, V], set[K]]:
    """What is new or another object in `after`, and the keys that are gone."""
    changed = {key: value for key, value in after.items() if before.get(key) is not value}
    return changed, set(before.keys() - after.keys())


def changed_items(before: State, after: State) -> tuple[Items, set[Key]]:
    """What to write to the store, and what to delete there."""
    write: dict[Key, Any] = {_REVISION: after.revision, _NEXT: after.next_endpoint}
    delete: set[Key] = set()
    documents, gone = differences(before.documents, after.documents)
    for key, document in documents.items():
        write["policy", key] = {"revision": document.revision, "document": document.value}
    delete |= {("policy", key) for key in gone}
    files, gone = differences(before.files, after.files)
    for path, file in files.items():
        write["file", path] = {"revision": file.documents[0].revision, "text": file.text}
    delete |= {("file", path) for path in gone}
    endpoints, left = differences(before.endpoints, after.endpoints)
    for number, endpoint in endpoints.items():
        write["endpoint", str(number)] = endpoint.to_json()
    delete |= {("endpoint", str(number)) for number in left}
    names, gone = differences(before.names, after.names)
    for name, addresses in names.items():
        write["name", name] = list(addresses)
    delete |= {("name", name) for name in gone}
    services, ended = differences(before.services, after.services)
    for place, service in services.items():
        write["service", "/".join(place)] = service.model_dump(exclude_none=True)
    delete |= {("service", "/".join(place)) for place in ended}
    return write, delete


def load_state(items: Items) -> State:
    """The state that `items` are; a rule that is bad by now fails closed.

    Raises ConfigError if they are no state, or if a document cannot be put in force.
    """
    documents: dict[str, PolicyDocument] = {}
    files: dict[str, PolicyFile] = {}
    endpoints: dict[int, NodeEndpoint] = {}
    names: dict[str, tuple[str, ...]] = {}
    services: dict[tuple[str, str], ServiceEntry] = {}
    try:
        for (kind, key), value in items.items():
            if kind == "policy":
                draft = PolicyDocument(value["document"], (), value["revision"])
                (document,) = load_documents(key, draft.text, draft.revision, closed=True)
                documents[document.key] = document
            elif kind == "file":
                text = value["text"]
                found = load_documents(key, text, value["revision"], key, closed=True)
                files[key] = PolicyFile(text, tuple(found))
            elif kind == "endpoint":
                endpoints[int(key)] = NodeEndpoint.from_json(int(key), value)
            elif kind == "name":
                names[key] = tuple(value)
            elif kind == "service":
                service = ServiceEntry.model_validate(value)
                services[service.namespace or "", service.name] = service
        return State(
            revision=int(items.get(_REVISION, 0)),
            next_endpoint=int(items.get(_NEXT, 1)),
            documents=documents,
            files=files,
            endpoints=endpoints,
            names=names,
            services=services,
        )
    except DocumentError as error:
        raise ConfigError(
            "a policy that was in force can no longer be enforced; install what is missing, "
            f"or move the state away to start without policies and endpoints:\n{error}"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the state on the disk is not understood: {error!r}") from error
