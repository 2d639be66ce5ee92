"""The watched policy directory: a file that is dropped in is in force, one that goes is not.

Each file stands for itself: one that is wrong is reported, and what it said before
stays in force, over restarts too.  Directories are read whole after every change: editors
rename, Kubernetes swaps links, and a notice may be lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from watchfiles import watch

from node.agent.repository import Repository
from node.errors import UsageError
from proxylib.errors import ProxylibError
from xds.source import DocumentError, Place, Problem, read_file

SUFFIXES = (".yaml", ".yml", ".json")

RESCAN = 5.0
"""Seconds after which the directory is read again without a notice."""

_DEBOUNCE_MS = 100
"""Changes that come together (an editor's, a copied directory's) are taken up together."""

_STOP_TIMEOUT = 5.0

log = logging.getLogger(__name__)


class PolicyFolder:
    """Keeps `repository` as the files of `path` are, while its block lasts.

    Entering takes the directory up once. Raises UsageError if there is no such one.
    """

    def __init__(self, path: Path, repository: Repository) -> None:
        self.path = path
        self._repository = repository
        self._tried: tuple[int, dict[str, str | None]] | None = None
        self._refused: dict[str, Sequence[Problem]] = {}
        self._problems: dict[str, Sequence[Problem]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="policy-dir", daemon=True)

    def __enter__(self) -> PolicyFolder:
        if not self.path.is_dir():
            raise UsageError(f"policy-dir: {self.path} is not a directory")
        self.scan()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(_STOP_TIMEOUT)

    @property
    def working(self) -> bool:
        """False if the watch has ended by itself, which is a fault of ours."""
        return self._stopping.is_set() or self._thread.is_alive()

    def problems(self) -> Mapping[str, Sequence[Problem]]:
        """By file, what is wrong with it as it is now; what it said before is in force."""
        return dict(self._problems)

    def scan(self) -> None:
        """Take up what has changed since the last time."""
        problems: dict[str, Sequence[Problem]] = {}
        try:
            texts = self._read(problems)
        except OSError as error:
            # Files that cannot be seen have not gone.
            where = str(self.path)
            self._problems = {
                where: [Problem(Place(where), f"cannot be read: {error.strerror}")],
                **self._problems,
            }
            return
        files = self._repository.state.files
        wanted: dict[str, str | None] = {
            path: text
            for path, text in texts.items()
            if path not in files or files[path].text != text
        }
        wanted |= {path: None for path in files if path not in texts and path not in problems}
        # What was refused is tried again when something else has changed.
        tried = (self._repository.state.revision, wanted)
        if tried == self._tried:
            problems |= self._refused
        else:
            self._refused = {}
            self._apply(wanted, self._refused)
            self._tried = (self._repository.state.revision, {p: wanted[p] for p in self._refused})
            problems |= self._refused
        self._report(problems)
        self._problems = problems

    def _apply(
        self, changed: Mapping[str, str | None], problems: dict[str, Sequence[Problem]]
    ) -> None:
        """All together if that works, else each by itself."""
        if not changed:
            return
        try:
            changed_now = self._repository.put_files(changed)
            log.info("%s: revision %d", ", ".join(sorted(changed)), changed_now.revision)
            return
        except ProxylibError as error:
            if len(changed) == 1:
                (path,) = changed
                problems[path] = _problems(path, error)
                return
        for path, text in changed.items():
            self._apply({path: text}, problems)

    def _read(self, problems: dict[str, Sequence[Problem]]) -> dict[str, str]:
        texts: dict[str, str] = {}
        for item in sorted(self.path.iterdir()):
            if item.name.startswith(".") or item.suffix not in SUFFIXES:
                continue
            try:
                texts[str(item)] = read_file(item)
            except DocumentError as error:
                problems[str(item)] = error.problems
        return texts

    def _report(self, problems: Mapping[str, Sequence[Problem]]) -> None:
        for path, found in problems.items():
            if self._problems.get(path) != found:
                log.error(
                    "%s: not in force, what was in force before stays:\n%s",
                    path,
                    "\n".join(map(str, found)),
                )

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                for _ in watch(
                    self.path,
                    stop_event=self._stopping,
                    debounce=_DEBOUNCE_MS,
                    recursive=False,
                    raise_interrupt=False,
                    rust_timeout=int(RESCAN * 1000),
                    yield_on_timeout=True,
                ):
                    self.scan()
            except OSError as error:
                # The directory has gone, or the system's limit of watches is reached.
                log.warning(
                    "%s: is not watched, only read every %g s: %s", self.path, RESCAN, error
                )
            if not self._stopping.wait(RESCAN):
                self.scan()


def _problems(path: str, error: ProxylibError) -> Sequence[Problem]:
    if isinstance(error, DocumentError):
        return error.problems
    return [Problem(Place(path), str(error))]
