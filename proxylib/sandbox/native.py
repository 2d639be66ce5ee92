"""The watchdog of native/guard.c, in whatever process this is.

Inside libproxylib it is there already.  An ordinary Python process (the test kit)
imports the same library as an extension module; where it has not been built, calls
run without a budget.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

from proxylib.native import library_path

NAME = "proxylib_native"


def load() -> ModuleType | None:
    """The native module; None if the library has not been built.

    Raises ImportError if it was built from other sources than these.
    """
    known = sys.modules.get(NAME)
    if known is not None:
        return known
    try:
        path = str(library_path())
    except FileNotFoundError:
        return None
    loader = ExtensionFileLoader(NAME, path)
    spec = spec_from_file_location(NAME, path, loader=loader)
    assert spec is not None
    try:
        module = module_from_spec(spec)
    except ImportError as error:
        raise ImportError(
            f"{path} was built from other sources: build it again (make setup)"
        ) from error
    loader.exec_module(module)
    sys.modules[NAME] = module
    return module


class _BudgetExceeded(BaseException):
    """Stands in for the native one; never raised."""

    frames: list[tuple[str, int]]


def _unguarded(budget: int, call: Callable[..., Any], /, *args: Any) -> Any:
    return call(*args)


_module = load()

guarded: Callable[..., Any] = _module.guarded if _module else _unguarded
"""``guarded(budget, call, *args)``: ``call(*args)``, interrupted after `budget`
nanoseconds; raises BudgetExceeded then, whatever the call made of the interruption."""

BudgetExceeded: type[BaseException] = _module.BudgetExceeded if _module else _BudgetExceeded
"""A call into a parser has used up its time budget. ``frames``: ``(file, line)`` of
where it was, innermost first."""
