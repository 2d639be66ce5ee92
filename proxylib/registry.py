"""Which parser a name stands for.

Filled by `register_parser_factory`, by the `@parser` decorator, and on the first
miss by the entry points of group ``proxylib.parsers`` of installed packages.
Read by the engine at each new connection and by policy validation.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from proxylib.errors import RegistrationError
from proxylib.parser import ClassFactory, Parser, ParserFactory

ENTRY_POINT_GROUP = "proxylib.parsers"

_factories: dict[str, ParserFactory] = {}

P = TypeVar("P", bound=type[Parser])


def register_parser_factory(name: str, factory: ParserFactory) -> None:
    """Make `factory` the one for l7proto `name`.

    Raises RegistrationError for an empty or duplicate name.
    """
    if not name:
        raise RegistrationError("a parser needs a name")
    known = _factories.get(name)
    if known is not None:
        raise RegistrationError(f"parser {name!r} is registered already, by {known!r}")
    _factories[name] = factory


def parser(name: str) -> Callable[[P], P]:
    """Class decorator: register a `Parser` subclass under `name`."""

    def register(cls: P) -> P:
        register_parser_factory(name, ClassFactory(cls))
        return cls

    return register


def get_parser_factory(name: str) -> ParserFactory | None:
    """The factory for l7proto `name`, or None if nobody registered one.

    Loads the entry point of that name if need be; one that fails to import
    raises RegistrationError.
    """
    factory = _factories.get(name)
    if factory is None:
        for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
            _load(entry.name, entry.load)
            factory = _factories.get(name)
    return factory


def parser_names() -> list[str]:
    """All names that can be used: registered ones and installed entry points."""
    installed = {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return sorted(installed | set(_factories))


def load_parser_file(path: Path) -> list[str]:
    """Import a ``.py`` file and return the names that it registered.

    Raises RegistrationError if it cannot be imported or registers nothing.
    """
    before = dict(_factories)
    # Not by its bare stem: a file named json.py must not become everybody's json.
    module_name = f"proxylib_parser_file.{path.stem}"
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


def _load(what: str, load: Callable[[], object]) -> None:
    try:
        load()
    except RegistrationError:
        raise
    except (Exception, SystemExit) as error:
        raise RegistrationError(f"{what}: {type(error).__name__}: {error}") from error
