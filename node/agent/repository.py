"""What is in force on this node, and how it changes.

`State` is everything that the agent was told: documents (by REST or from files),
endpoints, DNS names and services.  A change makes the next state of it, has the control
server check and publish that, and is on the disk before it is answered; or nothing has
changed and the error says why.  One change is made at a time, in the order of their
revisions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bpf.errors import BpfError
from node.agent.datapath import NoDatapath
from node.agent.documents import PolicyDocument, load_all, load_documents, parse_labels
from node.agent.endpoints import (
    MAX_ENDPOINT_ID,
    AddressTaken,
    EndpointError,
    NodeEndpoint,
    Placement,
    UnknownEndpoint,
    make_endpoint,
    normal_labels,
    refuse_addresses,
)
from node.agent.links import NodeLinks
from node.agent.redirects import NodeRedirects
from node.agent.state import PolicyFile, State, changed_items, load_state
from node.agent.store import Store
from node.agent.transition import change_of, refuse_twice
from proxylib.errors import ConfigError
from xds.changes import Change
from xds.control import ControlServer
from xds.endpoints import Enforcement, NamedPort
from xds.fqdn import match_name
from xds.labels import parse_label
from xds.lint import lint
from xds.services import ServiceEntry, ServiceTable, normal_address
from xds.source import Problem

if TYPE_CHECKING:
    from node.links.discovery import Attachment

MAX_DOCUMENTS = 20_000
"""Most documents by REST, and most files. A policy has a handful of rules."""

MAX_SERVICES = 10_000
"""Most services: what a cluster is built for (Kubernetes, "Considerations for large clusters")."""


class UnknownPolicy(LookupError):
    """There is no such policy."""


class UnknownName(LookupError):
    """The DNS name is not known."""


class UnknownService(LookupError):
    """There is no such service."""


class NotOurs(Exception):
    """The policy comes from a file, and goes with it."""


class Full(ConfigError):
    """There is no room for more."""


@dataclass(frozen=True, slots=True)
class Changed:
    """A change that is in force here. `warnings` are about what it brought."""

    revision: int
    names: Sequence[str] = ()
    warnings: Sequence[Problem] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a revision has got: the subscribers by node id, and what is missing."""

    reached: bool
    nodes: Sequence[str]
    waiting: Mapping[str, str]


class Repository:
    """The state of one node, in `store`, served by `control` at `redirects`, as `links` have it.

    watched: whether files still come from a directory; if not, those of an earlier one
    stay in force, and each becomes the API's when that changes or deletes what is in it.
    own: the addresses that are the node's, and no endpoint's; None: its own may be (it raises
    BpfError).
    Raises ConfigError or DocumentError if what is on the disk cannot be put in force.
    """

    def __init__(
        self,
        store: Store,
        control: ControlServer,
        redirects: NodeRedirects,
        links: NodeLinks,
        *,
        watched: bool,
        own: Callable[[], Collection[str] | None] = lambda: None,
    ) -> None:
        self._store = store
        self._own = own
        self._watched = watched
        self._control = control
        self._redirects = redirects
        self._links = links
        self._changing = threading.Lock()
        self._state = State()
        state = load_state(store.read())
        self._enforce(self._state, state, state.revision)
        self._state = state

    @property
    def state(self) -> State:
        """What is in force now."""
        return self._state

    def import_texts(self, texts: Sequence[tuple[str, str]]) -> Changed:
        """Put the documents of `texts` in force, in place of those of the same name.

        All of them, or nothing. texts: each with what messages call it. Raises
        DocumentError with all that is wrong.
        """
        documents, warnings = self._read(texts)

        def change(state: State) -> State:
            found = {d.key: replace(d, revision=state.revision + 1) for d in documents}
            state = self._adopted(state, found)
            after = {**state.documents, **found}
            if len(after) > MAX_DOCUMENTS:
                raise Full(f"there are {MAX_DOCUMENTS} policies already")
            following = replace(state, documents=after)
            refuse_twice(state, following)
            return following

        revision = self._change(change)
        return Changed(revision, [document.key for document in documents], warnings)

    def validate_text(self, name: str, text: str) -> Sequence[Problem]:
        """The warnings about the documents of `text`. Raises DocumentError."""
        return self._read([(name, text)])[1]

    def delete(self, name: str, *, namespace: str = "", kind: str = "") -> Changed:
        """Delete the policies of this name (namespace and kind empty: of any).

        Raises UnknownPolicy if there is none, NotOurs if one is a file's.
        """

        def chosen(document: PolicyDocument) -> bool:
            return (
                document.name == name
                and namespace in ("", document.namespace)
                and kind in ("", document.kind)
            )

        what = "/".join(part for part in (kind, namespace, name) if part)
        return self._delete(lambda d: None if chosen(d) else d, f"there is no policy {what!r}")

    def delete_labels(self, labels: Sequence[str]) -> Changed:
        """Delete the rules that have all of `labels`; none at all: every rule of the API's.

        Raises ValueError for what is no label, UnknownPolicy and NotOurs as `delete`.
        """
        wanted = parse_labels(labels)
        what = f"no policy has the labels {', '.join(labels)}" if labels else "there is no policy"
        return self._delete(
            lambda d: d.without(wanted) if wanted or not (d.file and self._watched) else d, what
        )

    def put_files(self, files: Mapping[str, str | None]) -> Changed:
        """Put files of the watched directory in force; text None: the file has gone.

        Raises DocumentError with all that is wrong with any of them.
        """
        parsed = {
            path: None if text is None else self._parse_file(path, text)
            for path, text in files.items()
        }

        def change(state: State) -> State:
            after = dict(state.files)
            for path, file in parsed.items():
                if file is None:
                    after.pop(path, None)
                    continue
                documents = tuple(replace(d, revision=state.revision + 1) for d in file.documents)
                after[path] = replace(file, documents=documents)
            if len(after) > MAX_DOCUMENTS:
                raise Full(f"there are {MAX_DOCUMENTS} policy files already")
            following = replace(state, files=after)
            refuse_twice(state, following)
            return following

        return Changed(self._change(change), list(files))

    def add_endpoint(
        self,
        addresses: Sequence[str],
        labels: Sequence[str],
        external: Mapping[str, str],
        number: int | None = None,
        *,
        ports: Sequence[NamedPort] = (),
        enforcement: Enforcement = "default",
        audit: bool = False,
        attachment: Attachment | None = None,
        mode: Placement = "node",
        sockmap: bool = False,
    ) -> NodeEndpoint:
        """A new endpoint; without a number it gets one.

        Raises EndpointError, and NoDatapath if it is not known which addresses the node has.
        """
        made: list[NodeEndpoint] = []
        try:
            own = self._own()
        except BpfError as error:
            raise NoDatapath(str(error)) from error

        def change(state: State) -> State:
            wanted = number if number is not None else _free_number(state)
            endpoint = make_endpoint(
                wanted,
                addresses,
                labels,
                external,
                ports,
                enforcement,
                audit,
                attachment=attachment,
                mode=mode,
                sockmap=sockmap,
            )
            refuse_addresses(endpoint, own)
            if wanted in state.endpoints:
                raise AddressTaken(f"there is an endpoint {wanted} already")
            for other in state.endpoints.values():
                twice = [address for address in endpoint.addresses if address in other.addresses]
                if twice:
                    raise AddressTaken(
                        f"{twice[0]} is the address of endpoint {other.id} already"
                        + self._how_to_free(other)
                    )
                if other.attachment is not None and _same_link(other.attachment, attachment):
                    raise AddressTaken(
                        f"interface {other.attachment.interface} is that of endpoint {other.id} "
                        "already"
                    )
            made.append(endpoint)
            following = wanted % MAX_ENDPOINT_ID + 1 if number is None else state.next_endpoint
            return replace(
                state,
                endpoints={**state.endpoints, wanted: endpoint},
                next_endpoint=following,
            )

        self._change(change)
        return made[-1]

    def _how_to_free(self, endpoint: NodeEndpoint) -> str:
        if self._links.datapath.health(endpoint.id).state != "disconnected":
            return ""
        return (
            ", which is disconnected: its interface is gone, and it keeps the address until it is "
            f"deleted (proxylib endpoint delete {endpoint.id})"
        )

    def set_labels(self, number: int, labels: Sequence[str]) -> NodeEndpoint:
        """Give an endpoint other labels. Raises UnknownEndpoint, EndpointError."""
        return self._edit(number, lambda before: replace(before, labels=normal_labels(labels)))

    def change_labels(self, number: int, add: Sequence[str], remove: Sequence[str]) -> NodeEndpoint:
        """Add labels to an endpoint's, and take others away.

        Raises UnknownEndpoint, and EndpointError also for a label that it does not have.
        """

        def edit(before: NodeEndpoint) -> NodeEndpoint:
            gone = normal_labels(remove)
            missing = set(gone) - set(before.labels)
            if missing:
                raise EndpointError(f"endpoint {number} has no label {', '.join(sorted(missing))}")
            kept = [label for label in before.labels if label not in gone]
            added = normal_labels(add)
            keys = {parse_label(label).key for label in added}
            twice = [label for label in kept if parse_label(label).key in keys]
            if twice:
                raise EndpointError(
                    f"endpoint {number} has {', '.join(twice)} already, and a key has one label: "
                    f"delete it in the same change (--delete {twice[0]} --add ...), or --set all"
                )
            return replace(before, labels=normal_labels([*kept, *added]))

        return self._edit(number, edit)

    def set_mode(
        self,
        number: int,
        *,
        enforcement: Enforcement | None = None,
        audit: bool | None = None,
        sockmap: bool | None = None,
    ) -> NodeEndpoint:
        """Change how an endpoint's policies are enforced; None: as it is.

        Raises UnknownEndpoint, and EndpointError for sockmap without an interface.
        """
        given = {"enforcement": enforcement, "audit": audit, "sockmap": sockmap}
        wanted: dict[str, Any] = {name: v for name, v in given.items() if v is not None}

        def edit(before: NodeEndpoint) -> NodeEndpoint:
            if sockmap and before.attachment is None:
                raise EndpointError(f"endpoint {number} has no interface: sockmap needs one")
            return replace(before, **wanted)

        return self._edit(number, edit)

    def set_attachment(self, number: int, attachment: Attachment) -> None:
        """An endpoint's link is called otherwise now. Raises UnknownEndpoint."""
        self._edit(number, lambda before: replace(before, attachment=attachment))

    def _edit(self, number: int, edit: Callable[[NodeEndpoint], NodeEndpoint]) -> NodeEndpoint:
        made: list[NodeEndpoint] = []

        def change(state: State) -> State:
            made.append(edit(_endpoint(state, number)))
            return replace(state, endpoints={**state.endpoints, number: made[-1]})

        self._change(change)
        return made[-1]

    def delete_endpoint(self, number: int) -> None:
        """Raises UnknownEndpoint."""

        def change(state: State) -> State:
            _endpoint(state, number)
            return replace(
                state, endpoints={n: e for n, e in state.endpoints.items() if n != number}
            )

        self._change(change)

    def end_endpoint(self, endpoint: NodeEndpoint) -> None:
        """Delete an endpoint that has come to its end, unless it is another's number by now."""

        def change(state: State) -> State:
            now = _endpoint(state, endpoint.id)
            if now.attachment != endpoint.attachment:
                raise UnknownEndpoint(f"endpoint {endpoint.id} is another one now")
            return replace(
                state, endpoints={n: e for n, e in state.endpoints.items() if e is not now}
            )

        with suppress(UnknownEndpoint):
            self._change(change)

    def set_name(self, text: str, addresses: Sequence[str]) -> int:
        """Say which addresses a DNS name has now; none: it is forgotten. The revision.

        Raises ValueError for what is no DNS name or no address, UnknownName for one to
        be forgotten that nobody knows.
        """
        name = match_name(text).text
        normal = tuple(dict.fromkeys(map(normal_address, addresses)))

        def change(state: State) -> State:
            if not normal and name not in state.names:
                raise UnknownName(f"nothing is known of {name!r}")
            names = {key: held for key, held in state.names.items() if key != name}
            return replace(state, names=names | ({name: normal} if normal else {}))

        return self._change(change)

    def put_service(self, entry: ServiceEntry) -> int:
        """Have a service, in place of the one of its namespace and name. The revision."""

        def change(state: State) -> State:
            services = {**state.services, (entry.namespace or "", entry.name): entry}
            if len(services) > MAX_SERVICES:
                raise Full(f"there are {MAX_SERVICES} services already")
            return replace(state, services=services)

        return self._change(change)

    def service(self, name: str, namespace: str = "") -> ServiceEntry:
        """One service; namespace empty: the one without. Raises UnknownService."""
        return _service(self._state, name, namespace)

    def delete_service(self, name: str, namespace: str = "") -> int:
        """Forget a service: toServices selects nobody by it then. The revision.

        namespace: empty for the one without. Raises UnknownService.
        """

        def change(state: State) -> State:
            gone = _service(state, name, namespace)
            kept = {key: entry for key, entry in state.services.items() if entry is not gone}
            return replace(state, services=kept)

        return self._change(change)

    def set_own_addresses(self, own: frozenset[str]) -> None:
        """Say which addresses are the host's. No change of the state: it has the same revision."""
        with self._changing:
            self._control.change(Change(own=own), revision=self._state.revision)

    def resolve_redirects(self) -> None:
        """Move redirects whose proxy port somebody else has. Raises ConfigError."""
        with self._changing:
            before = self._redirects.ports(), self._redirects.problems()
            self._redirects.resolve()
            if (self._redirects.ports(), self._redirects.problems()) != before:
                self._links.sync()

    def progress(self, revision: int) -> Progress:
        """Who has all of `revision`, or of a later one, in force: subscribers and endpoints."""
        streams = [stream for stream in self._control.server.streams() if stream.connected]
        nodes = sorted({stream.node_id for stream in streams})
        if revision > self._state.revision:
            missing = f"revision {revision} does not exist yet"
            return Progress(False, nodes, dict.fromkeys(nodes, missing) or {"": missing})
        waiting = {
            stream.node_id: stream.reason or "has not answered yet"
            for stream in streams
            if stream.revision < revision
        }
        waiting |= self._links.pending(streams)
        return Progress(not waiting, nodes, waiting)

    def _read(
        self, texts: Sequence[tuple[str, str]]
    ) -> tuple[list[PolicyDocument], Sequence[Problem]]:
        documents = load_all(texts)
        policies = [policy for document in documents for policy in document.policies]
        services = ServiceTable(self._state.services.values())
        return documents, lint(policies, list(self._control.engine.endpoints.values()), services)

    def _parse_file(self, path: str, text: str) -> PolicyFile:
        return PolicyFile(text, tuple(load_documents(path, text, 0, path)))

    def _delete(
        self, keep: Callable[[PolicyDocument], PolicyDocument | None], unknown: str
    ) -> Changed:
        names: list[str] = []

        def change(state: State) -> State:
            touched = [d for d in state.policies() if keep(d) is not d]
            files = sorted({d.file for d in touched if d.file})
            if files and self._watched:
                raise NotOurs(f"{', '.join(files)} has such a policy; remove it there")
            if not touched:
                raise UnknownPolicy(unknown)
            names[:] = [document.key for document in touched]
            state = self._adopted(state, names)
            after = {
                key: kept if kept is document else replace(kept, revision=state.revision + 1)
                for key, document in state.documents.items()
                if (kept := keep(document)) is not None
            }
            return replace(state, documents=after)

        return Changed(self._change(change), names)

    def _adopted(self, state: State, keys: Collection[str]) -> State:
        """`state`, with files that nobody watches and that have a document of `keys` the API's."""
        gone = {
            path: file
            for path, file in state.files.items()
            if not self._watched and any(d.key in keys for d in file.documents)
        }
        ours = {d.key: replace(d, file="") for file in gone.values() for d in file.documents}
        kept = {path: file for path, file in state.files.items() if path not in gone}
        return replace(state, documents={**state.documents, **ours}, files=kept)

    def _enforce(self, before: State, after: State, revision: int) -> None:
        self._control.change(
            change_of(before, after),
            revision=revision,
            also=lambda changes: self._redirects.update(self._control.engine, changes),
        )
        self._links.sync(endpoints=after.endpoints)

    def _change(self, change: Callable[[State], State]) -> int:
        """Make a change; its revision. Raises what `change` or the control server does."""
        with self._changing:
            before = self._state
            after = replace(change(before), revision=before.revision + 1)
            known = self._control.engine.revision
            try:
                with self._store.change(*changed_items(before, after)):
                    self._enforce(before, after, after.revision)
            except ConfigError:
                if self._control.engine.revision != known:
                    # In force and not on the disk, or without a proxy port: take it back.
                    self._enforce(after, before, after.revision)
                    self._state = replace(before, revision=after.revision)
                raise
            self._state = after
            return after.revision


def _endpoint(state: State, number: int) -> NodeEndpoint:
    if number not in state.endpoints:
        raise UnknownEndpoint(f"there is no endpoint {number}")
    return state.endpoints[number]


def _same_link(one: Attachment, other: Attachment | None) -> bool:
    return other is not None and (one.boot, one.ifindex) == (other.boot, other.ifindex)


def _service(state: State, name: str, namespace: str) -> ServiceEntry:
    found = state.services.get((namespace, name))
    if found is None:
        where = f"in namespace {namespace!r}" if namespace else "without a namespace"
        raise UnknownService(f"there is no service {name!r} {where}")
    return found


def _free_number(state: State) -> int:
    """The next number that is free; those of endpoints that are gone rest for a while."""
    for step in range(MAX_ENDPOINT_ID):
        number = (state.next_endpoint - 1 + step) % MAX_ENDPOINT_ID + 1
        if number not in state.endpoints:
            return number
    raise Full(f"there are {MAX_ENDPOINT_ID} endpoints already")
