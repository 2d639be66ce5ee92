"""A running proxy's parser takes up edits of its code: ``proxylib run --reload``.

New code is loaded here first, where policies are checked against its rules: what is
broken never reaches Envoy.  Then the library is told to load it too (proxylib.control).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from watchfiles import PythonFilter, watch

from node.errors import UsageError
from proxylib.control import ask
from proxylib.errors import ProxylibError
from proxylib.registry import get_parser_factory, module_of
from proxylib.reload import reload_parser

_DEBOUNCE = 50
"""Milliseconds in which edits count as one."""

_NOTICE_STOP = 200
"""Milliseconds until the watcher sees that it is to stop."""

Report = Callable[..., None]
"""``report(kind, message, role, **data)``."""


def code_of(parser: str) -> Path:
    """The file, or the package's folder, that a parser's code is in. Raises UsageError."""
    factory = get_parser_factory(parser)
    module = None if factory is None else sys.modules.get(module_of(factory))
    file = getattr(module, "__file__", None)
    if file is None:
        raise UsageError(f"parser {parser!r} did not come from a file: there is no code to watch")
    path = Path(file)
    return path.parent if path.name == "__init__.py" else path


def reload_everywhere(parser: str, control: Path, drain: float | None = None) -> list[str]:
    """Load `parser` anew here, then in the library whose control socket is `control`.

    Returns the names that were reloaded.  Raises ProxylibError with the author's
    traceback if the code is refused, OSError if nobody is at the socket.
    """
    reload_parser(parser)
    answer = ask(control, {"command": "reload", "parser": parser, "drain": drain})
    return [str(name) for name in answer["parsers"]]


def _signature(path: Path) -> list[tuple[str, int, int]]:
    """What tells one state of the code from another: names, times and sizes of its files."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    found = []
    for file in files:
        with suppress(OSError):
            known = file.stat()
            found.append((str(file), known.st_mtime_ns, known.st_size))
    return found


class CodeWatcher:
    """Reloads `parser` whenever its code changes, while its block lasts."""

    def __init__(self, parser: str, control: Path, report: Report) -> None:
        self._parser = parser
        self._control = control
        self._report = report
        self._stop = threading.Event()
        self._path = code_of(parser)
        self._known = _signature(self._path)
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        folder = self._path if self._path.is_dir() else self._path.parent
        known = self._known
        # Looked at after each time-out too: an edit may come before the watch has begun.
        edits = watch(
            folder,
            watch_filter=PythonFilter(),
            stop_event=self._stop,
            debounce=_DEBOUNCE,
            rust_timeout=_NOTICE_STOP,
            yield_on_timeout=True,
        )
        for _ in edits:
            now = _signature(self._path)
            if now != known:
                known = now
                self._reload()

    def _reload(self) -> None:
        try:
            reload_everywhere(self._parser, self._control)
        except (ProxylibError, OSError, ValueError) as error:
            text = f"the old code of {self._parser} goes on: {error}"
            self._report("reload-refused", text, "error")
        else:
            text = f"parser {self._parser} reloaded: new connections have the new code"
            self._report("reloaded", text, "good")
