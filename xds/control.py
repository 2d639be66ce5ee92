"""The control server as others use it: files or texts in, rules in force out.

Everything that can be wrong with a change is found before anything is published:
a change is in force whole, or nothing of it is and the errors say why.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from watchfiles import watch

from proxylib.errors import ConfigError, ProxylibError
from xds.compilation import NETWORK_POLICY, NETWORK_POLICY_HOSTS, Resources
from xds.endpoints import Endpoint, with_extra
from xds.engine import Change, Changes, Engine
from xds.identity import Identities
from xds.labels import LabelSet
from xds.lint import lint
from xds.policy import Policy
from xds.reading import Read, Reader, Source
from xds.roster import Mode
from xds.server import DiscoveryServer
from xds.services import ServiceTable
from xds.source import DocumentError, Place, Problem, read_file
from xds.store import SqliteStore
from xds.subscription import StreamStatus
from xds.world import Resource, resource

_Sources: TypeAlias = tuple[Sequence[Source], Sequence[Source]]
"""Of policies, and of endpoints and services."""

_Stamps: TypeAlias = Mapping[Path, tuple[int, int, int]]

Also: TypeAlias = Callable[[Changes], Mapping[str, Mapping[str, Resource]]]
"""What else is to be published with a change: resources by type URL and name."""

_SUFFIXES = (".yaml", ".yml")

_WATCH_DEBOUNCE_MS = 200
"""Changes that come together (an editor's, a directory copy) are one reload."""

_WATCH_TURN_MS = 1000
"""Longest wait for a change at a time."""

_NO_FILE = f"no file in it ends in {' or '.join(_SUFFIXES)}; add one, or do not name the directory"

_STOP_TIMEOUT = 2.0
"""Seconds that `stop` gives a callback to return."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the control server has, and what its subscribers made of it.

    revision counts the changes that were accepted; `versions` are those of each
    resource type, to compare with what each stream has acknowledged.
    """

    revision: int
    policies: int
    endpoints: int
    identities: Mapping[int, str]
    versions: Mapping[str, int]
    streams: Sequence[StreamStatus]
    warnings: Sequence[Problem]
    last_error: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the control server has read, and what it made of that."""

    policies: Sequence[Policy] = ()
    endpoints: Sequence[Endpoint] = ()
    resources: Resources = field(default_factory=dict)
    warnings: Sequence[Problem] = ()


class ControlServer:
    """Serves policies over NPDS and NPHDS on a Unix socket.

    socket_path: where to listen; socket_mode: the permissions there, socket_group: the
        group that it is given to, a number.
    policies: YAML files, and directories whose .yaml and .yml files count. With
        none, every endpoint may do everything; so a file without a document, or a
        directory without a file, is an error and not "none".
    endpoints: the endpoints file; None means that none is known by labels.
    extra_endpoints: IP addresses that get a policy too, without labels, unless
        the endpoints file names them.
    state_file: keeps identity numbers across restarts (see xds/store.py).
    identities: who numbers label sets, instead of a state_file; the caller's to close.
    mode: how endpoints are enforced that ask for nothing else.
    watch_files: reload when a file changes. on_error and on_change are then called
        after each reload, on the watcher's thread, with the error or the warnings.
    on_changes: called after each change of the engine that `change`, `identities_changed`
        and `renumber` make, before the next one; it raises nothing.
    """

    def __init__(
        self,
        socket_path: Path,
        policies: Sequence[Path] = (),
        endpoints: Path | None = None,
        *,
        extra_endpoints: Iterable[str] = (),
        state_file: Path | None = None,
        identities: Identities | None = None,
        mode: Mode = Mode(),  # noqa: B008 - frozen
        socket_mode: int = 0o600,
        socket_group: int | None = None,
        watch_files: bool = False,
        on_error: Callable[[ProxylibError], None] | None = None,
        on_change: Callable[[Sequence[Problem]], None] | None = None,
        on_changes: Callable[[Changes], None] = lambda changes: None,
    ) -> None:
        self._policy_paths = tuple(policies)
        self._endpoints_path = endpoints
        self._extra = tuple(extra_endpoints)
        self._own = identities is None
        self._identities = identities or Identities(
            None if state_file is None else SqliteStore(state_file)
        )
        self._services = ServiceTable()
        self._engine = Engine(self._identities, mode=mode)
        self._reader = Reader()
        self._endpoint_ids: dict[tuple[str, ...], int] = {}
        self._policies: dict[int, Resource] = {}
        self._hosts: dict[int, Resource] = {}
        self._server = DiscoveryServer(socket_path, mode=socket_mode, group=socket_group)
        self._loaded = Loaded()
        self._revision = 0
        self._last_error = ""
        # One change at a time; and what is in force is read without waiting for it.
        self._changing = threading.Lock()
        self._lock = threading.Lock()
        self._watch_files = watch_files
        self._on_error = on_error
        self._on_change = on_change
        self._on_changes = on_changes
        self._watcher: threading.Thread | None = None
        self._read_stamps: _Stamps = {}
        """The files as they were when they were last read."""
        self._stop_watching = threading.Event()

    def start(self) -> Sequence[Problem]:
        """Load everything and listen; the warnings about the policies.

        Without files, what `set_documents` or `change` has put in force before stays.
        Raises DocumentError for documents that cannot be put in force, and ConfigError
        for a socket, state file or address that cannot be used.
        """
        files = self._policy_paths or self._endpoints_path
        warnings = self.reload() if files or not self._engine.revision else self._loaded.warnings
        self._server.start()
        if self._watch_files and (self._policy_paths or self._endpoints_path):
            self._stop_watching.clear()
            self._watcher = threading.Thread(target=self._watch, name="xds-watch", daemon=True)
            self._watcher.start()
        return warnings

    def stop(self) -> None:
        """Close all streams and remove the socket. Subscribers keep the last policy."""
        self._stop_watching.set()
        if self._watcher is not None:
            # Not for ever: the watcher may be in a callback of our caller's.
            self._watcher.join(_STOP_TIMEOUT)
            self._watcher = None
        self._server.stop()
        if self._own:
            self._identities.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def reload(self) -> Sequence[Problem]:
        """Read the files again and put them in force; the warnings about them.

        Raises DocumentError with everything that is wrong; what was in force stays.
        """
        return self._apply(self._read_files)

    def set_documents(
        self, policies: Mapping[str, str], endpoints: str | None = None
    ) -> Sequence[Problem]:
        """Put these YAML texts in force, instead of the files; the warnings about them.

        policies: text by the name that messages are to call it. Raises as `reload`
        does, which also goes back to the files.
        """

        texts = [Source(name, partial(str, text)) for name, text in policies.items()]
        others = [] if endpoints is None else [Source("endpoints", partial(str, endpoints))]
        return self._apply(lambda: (texts, others))

    def change(
        self, change: Change, *, revision: int | None = None, also: Also | None = None
    ) -> Changes:
        """Change something else than documents: names, identities of other nodes, the mode.

        Or documents and endpoints too, if the caller keeps these (and nobody calls
        `set_documents`). revision: as for `DiscoveryServer.publish`. also: says what
        else is to be published with it. Raises as `Engine.change` and `also` do; after
        the latter the engine has the change, and nothing of it is published.
        """
        with self._changing:
            changes = self._engine.change(change)
            with self._lock:
                self._publish(changes, revision, also)
            self._on_changes(changes)
            return changes

    @property
    def server(self) -> DiscoveryServer:
        """Who serves it: to be asked about subscribers, and given Envoy's resources (xds.ads)."""
        return self._server

    def identities_changed(self, identities: Mapping[int, LabelSet | None]) -> None:
        """Take up identities of other nodes; None: it is gone. For `EtcdStore.start`."""
        self.change(Change(identities=identities))

    def renumber(self, keys: Collection[str]) -> None:
        """Give other numbers to label sets that have lost theirs. For `EtcdStore.start`."""
        with self._changing:
            changes = self._engine.renumber(keys)
            with self._lock:
                self._publish(changes)
            self._on_changes(changes)

    @property
    def engine(self) -> Engine:
        """What is in force, to be asked; `change` and `set_documents` change it."""
        return self._engine

    @property
    def loaded(self) -> Loaded:
        """What is being served: policies, endpoints (extra ones too), resources, warnings."""
        return self._loaded

    def status(self) -> Status:
        """A consistent view of what is loaded and of every subscriber."""
        with self._lock:
            loaded = self._loaded
            identities = {
                self._identities.number(endpoint.labels): str(endpoint.labels)
                for endpoint in loaded.endpoints
            }
            return Status(
                revision=self._revision,
                policies=len(loaded.policies),
                endpoints=len(loaded.endpoints),
                identities=dict(sorted(identities.items())),
                versions=self._server.versions(),
                streams=self._server.streams(),
                warnings=loaded.warnings,
                last_error=self._last_error,
            )

    def wait_acked(
        self, timeout: float, *, streams: Collection[str] = (NETWORK_POLICY, NETWORK_POLICY_HOSTS)
    ) -> bool:
        """Wait until the newest version is in force everywhere; False after `timeout` seconds.

        That is: every connected stream has acknowledged the newest version of its
        type, and there is at least one stream of each type in `streams`.  A
        subscriber that refuses it is not reached; `status` has its reason.
        """

        return self._server.wait(self._server.revision, timeout, types=streams)

    def _apply(self, sources: Callable[[], _Sources]) -> Sequence[Problem]:
        with self._changing:
            try:
                read = self._reader.read(*sources())
                endpoints = self._with_extra(read.endpoints)
                changes = self._put_in_force(read, endpoints)
            except ProxylibError as error:
                self._last_error = str(error)
                raise
            with self._lock:
                self._last_error = ""
                policies = [policy for each in read.policies.values() for policy in each]
                self._loaded = Loaded(policies, endpoints)
                self._publish(changes)
            # Afterwards, because it looks at everything and holds nothing up.
            warnings = lint(policies, endpoints, read.services)
            with self._lock:
                self._loaded = replace(self._loaded, warnings=warnings)
            return warnings

    def _put_in_force(self, read: Read, endpoints: Sequence[Endpoint]) -> Changes:
        """The change from what is in force to what was read."""
        before = self._engine.endpoints
        after = {self._endpoint_id(endpoint): endpoint for endpoint in endpoints}
        changes = self._engine.change(
            Change(
                policies=dict.fromkeys(self._engine.policies, ()) | dict(read.policies),
                endpoints={n: None for n in before if n not in after}
                | {n: e for n, e in after.items() if before.get(n) != e},
                services=None if read.services is self._services else read.services.resolve,
            )
        )
        self._services = read.services
        return changes

    def _with_extra(self, endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
        try:
            return with_extra(list(endpoints), self._extra)
        except ValueError as error:
            raise ConfigError(f"extra endpoint: {error}") from error

    def _publish(
        self, changes: Changes, revision: int | None = None, also: Also | None = None
    ) -> None:
        for number in changes.removed:
            self._policies.pop(number, None)
        for number in changes.endpoints:
            self._policies[number] = resource(str(number), self._engine.resource(number))
        for identity in changes.hosts:
            hosts = self._engine.hosts(identity)
            self._hosts.pop(identity, None)
            if hosts is not None:
                self._hosts[identity] = resource(str(identity), hosts)
        in_order = {
            url: {item.name: item for _, item in sorted(items.items())}
            for url, items in (
                (NETWORK_POLICY, self._policies),
                (NETWORK_POLICY_HOSTS, self._hosts),
            )
        }
        bodies = {url: tuple(i.body for i in items.values()) for url, items in in_order.items()}
        self._loaded = replace(self._loaded, resources=bodies)
        more = {} if also is None else also(changes)
        if self._server.publish({**in_order, **more}, revision=revision):
            self._revision += 1

    def _endpoint_id(self, endpoint: Endpoint) -> int:
        return self._endpoint_ids.setdefault(endpoint.addresses, len(self._endpoint_ids) + 1)

    def _read_files(self) -> _Sources:
        problems: list[Problem] = []
        policies: list[Path] = []
        self._read_stamps = self._stamps()
        for path in self._policy_paths:
            try:
                policies += _yaml_files(path)
            except DocumentError as error:
                problems += error.problems
        if problems:
            raise DocumentError(problems)
        endpoints = [self._endpoints_path] if self._endpoints_path is not None else []
        return list(map(_file_source, policies)), list(map(_file_source, endpoints))

    def _watch(self) -> None:
        watched = [path.absolute() for path in (*self._policy_paths, self._endpoints_path) if path]
        # Directories, because editors and Kubernetes replace files rather than write them.
        directories = {path if path.is_dir() else path.parent for path in watched}
        read: _Stamps | None = self._read_stamps
        try:
            for changes in watch(
                *directories,
                stop_event=self._stop_watching,
                debounce=_WATCH_DEBOUNCE_MS,
                recursive=False,
                raise_interrupt=False,
                rust_timeout=_WATCH_TURN_MS,
                yield_on_timeout=True,
            ):
                # The first turn is the first moment at which no edit is missed any more.
                missed = read is not None and self._stamps() != read
                read = None
                if missed or any(_concerns(Path(name), watched) for _, name in changes):
                    self._reload_watched()
        except OSError as error:
            # The system's limit of watches, or a directory that has gone.
            self._watch_failed(ConfigError(f"files are no longer watched: {error}"))

    def _stamps(self) -> _Stamps:
        """What tells whether a file is another one than before."""
        found = {}
        for path in filter(None, (*self._policy_paths, self._endpoints_path)):
            with contextlib.suppress(OSError):
                for file in (path, *(path.iterdir() if path.is_dir() else ())):
                    status = file.stat()
                    found[file] = (status.st_ino, status.st_mtime_ns, status.st_size)
        return found

    def _reload_watched(self) -> None:
        try:
            warnings = self.reload()
        except ProxylibError as error:
            self._watch_failed(error)
        else:
            if self._on_change is not None:
                self._on_change(warnings)

    def _watch_failed(self, error: ProxylibError) -> None:
        if self._on_error is not None:
            self._on_error(error)


def _file_source(path: Path) -> Source:
    return Source(str(path), partial(read_file, path))


def _yaml_files(path: Path) -> list[Path]:
    """`path`, or the YAML files in it if it is a directory, in the order of their names.

    Raises DocumentError if that directory cannot be read or has none.
    """
    if not path.is_dir():
        return [path]
    try:
        files = sorted(file for file in path.iterdir() if _is_policy_name(file))
    except OSError as error:
        problem = Problem(Place(str(path)), f"cannot be read: {error.strerror}")
        raise DocumentError([problem]) from error
    if not files:
        raise DocumentError([Problem(Place(str(path)), _NO_FILE)])
    return files


def _is_policy_name(path: Path) -> bool:
    return path.suffix in _SUFFIXES and not path.name.startswith(".")


def _concerns(changed: Path, watched: Sequence[Path]) -> bool:
    """True if the change of a file may change what `watched` files say."""
    if changed in watched:
        return True
    # Kubernetes swaps a link called ..data under the files of a volume.
    return changed.name.startswith("..") or (changed.parent in watched and _is_policy_name(changed))
