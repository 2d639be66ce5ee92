"""New code for a running parser: tried beside the old, then put in its place at once.

The module that registers the parser, with the modules below it, is imported anew
while the old ones go on working.  If it cannot be imported, does not register all that
the old one did, fails its own check, or does not know the keys of the rules in
force, nothing has happened.  Otherwise new connections get the new code; running
ones keep the old, unless the new parser's `migrate` takes them over, and its memory
is freed when the last of them has ended.
"""

from __future__ import annotations

import importlib
import importlib.util
import linecache
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from proxylib import registry
from proxylib.errors import RegistrationError
from proxylib.parser import ClassFactory, ParserFactory
from proxylib.registry import (
    ENTRY_POINT_GROUP,
    FILE_MODULES,
    get_parser_factory,
    module_of,
    replace_parser_factories,
    staging,
)
from proxylib.timelimit import within

Install = Callable[[Mapping[str, ParserFactory]], None]
"""Looks whether other factories fit (know the rules that are in force), or raises."""

_OURS = (__file__, registry.__file__)
"""Files of frames that an author's traceback does without."""

LOAD_BUDGET = 20.0
"""Seconds that new code may take to load, and as many to check itself."""

_lock = threading.Lock()
"""One reload at a time."""


def reload_parser(
    name: str, install: Install = lambda factories: None, *, drain: float | None = None
) -> list[str]:
    """Load the code of parser `name` anew; returns the names that it registers.

    install: called with the new factories before they are in force; if it raises, they
    never are.  drain: seconds that connections of the old code have to end; None: as
    long as they like.  Raises RegistrationError with the author's traceback; then
    everything is as it was.
    """
    with _lock:
        factory = get_parser_factory(name)
        if factory is None:
            raise RegistrationError(f"there is no parser {name!r} to reload")
        module = _registering_module(name, factory)
        _compile_aside(module)
        with _fresh(module.__name__), staging() as staged:
            _import(module)
            _check(name, module, staged)
            install(staged)
            replace_parser_factories(staged, drain)
        return sorted(staged)


def _registering_module(name: str, factory: ParserFactory) -> ModuleType:
    """The module to import again: what the entry point names, or that of the class."""
    for candidate in (*_entry_modules(name), module_of(factory)):
        module = sys.modules.get(candidate)
        if module is not None and getattr(module, "__file__", None):
            return module
    raise RegistrationError(f"parser {name!r} did not come from a file: nothing to load anew")


@cache
def _entry_modules(name: str) -> tuple[str, ...]:
    """The modules that packages name for a parser; looking through all of them takes a while."""
    return tuple(entry.module for entry in entry_points(group=ENTRY_POINT_GROUP, name=name))


def _compile_aside(module: ModuleType) -> None:
    """Have a process compile the sources of `module`: here, the interpreter would be held.

    Where that does not succeed, importing them does it, or tells what is wrong.
    """
    sources = _sources(Path(str(module.__file__)))
    for source in sources:
        _forget(source)
    command = [sys.executable, "-I", "-S", "-m", "py_compile", *map(str, sources)]
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
        )


@contextmanager
def _fresh(root: str) -> Iterator[None]:
    """Inside the block `root` and what is below it are not imported yet.

    If it raises, what was imported before is back.
    """
    old = {
        name: module
        for name, module in list(sys.modules.items())
        if name == root or name.startswith(f"{root}.")
    }
    parent, _, attribute = root.rpartition(".")
    for name in old:
        del sys.modules[name]
    importlib.invalidate_caches()
    try:
        yield
    except BaseException:
        for name in [name for name in sys.modules if name == root or name.startswith(f"{root}.")]:
            del sys.modules[name]
        sys.modules.update(old)
        if parent in sys.modules:
            setattr(sys.modules[parent], attribute, old[root])
        raise
    finally:
        # So that tracebacks show the lines that run.
        linecache.checkcache()


def forget_bytecode(name: str, files: Iterable[Path]) -> None:
    """Have parser `name`, if it is not imported yet, be compiled from its source.

    files: those that parsers are loaded from; of an installed one, its package's.
    """
    sources = list(files)
    for module in _entry_modules(name):
        # What is wrong with it, its import tells.
        with suppress(Exception):
            spec = importlib.util.find_spec(module)
            if spec is not None and spec.origin is not None:
                sources += _sources(Path(spec.origin))
    for source in sources:
        _forget(source)


def _sources(path: Path) -> list[Path]:
    """The file of a module, or all files of its package."""
    return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]


def _forget(source: Path) -> None:
    """Python takes an edit within the same second, of the same size, for no edit."""
    with suppress(OSError):
        Path(importlib.util.cache_from_source(source)).unlink(missing_ok=True)


def _import(old: ModuleType) -> None:
    try:
        with within(LOAD_BUDGET, "loading the new code"):
            if old.__name__.startswith(FILE_MODULES):
                _run_file(old)
            else:
                importlib.import_module(old.__name__)
    except (Exception, SystemExit) as error:
        raise RegistrationError(f"the new code does not load:\n{author_story(error)}") from error


def _run_file(old: ModuleType) -> None:
    """Run a parser that was given as a file, as registry.load_parser_file does."""
    assert old.__file__ is not None
    spec = importlib.util.spec_from_file_location(old.__name__, old.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[old.__name__] = module
    spec.loader.exec_module(module)


def _check(name: str, old: ModuleType, staged: Mapping[str, ParserFactory]) -> None:
    if name not in staged:
        found = ", ".join(sorted(staged)) or "nothing"
        raise RegistrationError(f"the new code of {old.__file__} registers {found}, not {name!r}")
    for factory in staged.values():
        if isinstance(factory, ClassFactory):
            self_check(factory)


def self_check(factory: ClassFactory) -> None:
    """Raise RegistrationError with the author's traceback if the code fails its own check."""
    check = getattr(factory.parser_class, "self_check", None)
    try:
        if check is not None:
            with within(LOAD_BUDGET, "the new code's own check"):
                check()
    except (Exception, SystemExit) as error:
        story = author_story(error)
        raise RegistrationError(f"the new code fails its own check:\n{story}") from error


def author_story(error: BaseException) -> str:
    """The author's traceback, without the import machinery's frames and ours."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename not in _OURS
    ]
    lines = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
    return "".join(lines).rstrip()
