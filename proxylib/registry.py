"""Which parser a name stands for.

Filled by `register_parser_factory`, by the `@parser` decorator, and on the first
miss by the entry points of group ``proxylib.parsers`` of installed packages.
Read by the engine at each new connection and by policy validation.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from math import inf
from pathlib import Path
from types import ModuleType
from typing import TypeVar
from weakref import WeakKeyDictionary

from proxylib.errors import RegistrationError
from proxylib.parser import ClassFactory, Parser, ParserFactory

ENTRY_POINT_GROUP = "proxylib.parsers"

FILE_MODULES = "proxylib_parser_file."
"""Before the names of modules that were given as files: one named json.py must not become
everybody's json."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")

_factories: dict[str, ParserFactory] = {}

_superseded: WeakKeyDictionary[ParserFactory, tuple[str, float]] = WeakKeyDictionary()
"""Factories that were replaced: whose, and until when their connections may go on
(monotonic)."""

_staged: ContextVar[dict[str, ParserFactory] | None] = ContextVar("staged", default=None)
"""Where registrations go instead, while code is loaded on trial."""

P = TypeVar("P", bound=type[Parser])


def is_parser_name(name: str) -> bool:
    """Whether a parser may have this name."""
    return _NAME.fullmatch(name) is not None


def register_parser_factory(name: str, factory: ParserFactory) -> None:
    """Make `factory` the one for l7proto `name`.

    Raises RegistrationError for a duplicate name, or one that is not made of letters,
    digits, dots, dashes and underscores.
    """
    if not is_parser_name(name):
        raise RegistrationError(f"{name!r} cannot be a parser's name: use letters, digits, . - _")
    staged = _staged.get()
    target = _factories if staged is None else staged
    known = target.get(name)
    if known is not None:
        raise RegistrationError(f"parser {name!r} is registered already, by {known!r}")
    target[name] = factory


def parser(name: str) -> Callable[[P], P]:
    """Class decorator: register a `Parser` subclass under `name`.

    Raises RegistrationError if the class cannot work.
    """

    def register(cls: P) -> P:
        given: object = cls
        if not (isinstance(given, type) and issubclass(given, Parser)):
            raise RegistrationError(f"parser {name!r}: {cls!r} is not a subclass of Parser")
        try:
            cls.check_class()
        except TypeError as error:
            raise RegistrationError(f"parser {name!r}, class {cls.__name__}: {error}") from error
        register_parser_factory(name, ClassFactory(cls))
        return cls

    return register


def get_parser_factory(name: str) -> ParserFactory | None:
    """The factory for l7proto `name`, or None if nobody registered one.

    Loads the entry point of that name if need be; one that fails to import
    raises RegistrationError.
    """
    staged = _staged.get()
    factory = None if staged is None else staged.get(name)
    factory = factory or _factories.get(name)
    if factory is None:
        for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
            _load(entry.name, entry.load)
            factory = _factories.get(name)
    return factory


def parser_names() -> list[str]:
    """All names that can be used: registered ones and installed entry points."""
    installed = {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return sorted(installed | set(_factories))


def loaded_parser_names() -> list[str]:
    """The names that are registered in this process by now."""
    return sorted(_factories)


@contextmanager
def staging() -> Iterator[dict[str, ParserFactory]]:
    """Inside the block, what this thread registers goes into the dict, and is not in force."""
    staged: dict[str, ParserFactory] = {}
    token = _staged.set(staged)
    try:
        yield staged
    finally:
        _staged.reset(token)


def replace_parser_factories(
    factories: Mapping[str, ParserFactory], drain: float | None = None
) -> None:
    """Put other factories in force, for new connections; those there are keep theirs.

    drain: seconds after which these are `overdue`; None: never.
    """
    until = inf if drain is None else time.monotonic() + drain
    for name, factory in factories.items():
        old = _factories.get(name)
        if old is not None:
            factory.generation = old.generation + 1
            _superseded[old] = (name, until)
        _factories[name] = factory


def overdue(factory: ParserFactory) -> bool:
    """Whether the connections of a factory that was replaced have had their time."""
    return time.monotonic() >= _superseded.get(factory, ("", inf))[1]


def generations(name: str) -> list[ParserFactory]:
    """The factory of `name`, and those before it that still have connections; newest first."""
    current = _factories.get(name)
    old = [f for f, (known, _) in list(_superseded.items()) if known == name and f.connections]
    every = ([] if current is None else [current]) + old
    return sorted(every, key=lambda factory: -factory.generation)


def load_parser_file(path: Path) -> list[str]:
    """Import a ``.py`` file and return the names that it registered.

    A file that is imported already, under whatever name, is not run again.
    Raises RegistrationError if it cannot be imported or registers nothing.
    """
    imported = _imported_from(path)
    if imported is not None and (names := _registered_by(imported)):
        return names
    before = dict(_factories)
    module_name = f"{FILE_MODULES}{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise RegistrationError(f"{path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        _load(str(path), lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    except RegistrationError:
        _factories.clear()
        _factories.update(before)
        del sys.modules[module_name]
        raise
    names = sorted(set(_factories) - set(before))
    if not names:
        raise RegistrationError(f"{path}: registers no parser (use @parser(NAME))")
    return names


def _imported_from(path: Path) -> ModuleType | None:
    wanted = str(path.absolute())
    modules = list(sys.modules.values())
    return next((m for m in modules if getattr(m, "__file__", None) == wanted), None)


def module_of(factory: ParserFactory) -> str:
    """The module whose code `factory` stands for: its parser class's, if it has one."""
    made = factory.parser_class if isinstance(factory, ClassFactory) else type(factory)
    return made.__module__


def _registered_by(module: ModuleType) -> list[str]:
    return sorted(name for name, f in _factories.items() if module_of(f) == module.__name__)


def _load(what: str, load: Callable[[], object]) -> None:
    try:
        load()
    except RegistrationError:
        raise
    except (Exception, SystemExit) as error:
        raise RegistrationError(f"{what}: {type(error).__name__}: {error}") from error
