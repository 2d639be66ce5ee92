"""What went wrong, and where in the parser's own code.

Everything here looks at objects that a parser has made, so nothing may be taken for
granted: their text may raise, be no text, or never come.
"""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

from proxylib import limits
from proxylib.sandbox.native import BudgetExceeded, guarded

_FOREIGN = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), "<frozen")
"""Where files are not a parser's: the framework, the standard library."""

_MAX_FRAMES = 10_000
"""Frames of a traceback that are looked at, innermost last."""

_TEXT_BUDGET = 10_000_000
"""Nanoseconds that an exception may take to tell its text."""


def describe(error: BaseException) -> str:
    """``ValueError: bad value (at droid.py:17)``, in at most limits.MAX_PANIC_TEXT."""
    name = type.__dict__["__name__"].__get__(type(error))
    place = _place(error)
    return f"{name}: {text(error)}{f' (at {place})' if place else ''}"


def story(error: BaseException) -> str:
    """The traceback with its source lines, for somebody who is debugging."""
    try:
        lines: list[str] = guarded(_TEXT_BUDGET, traceback.format_exception, error)
        return "".join(lines).rstrip()
    except BaseException:
        return describe(error)


def text(error: BaseException) -> str:
    """What the exception says."""
    try:
        said: str = guarded(_TEXT_BUDGET, str, error)
        # Not said[...]: it may be of a subclass of str.
        return str.__getitem__(said, slice(limits.MAX_PANIC_TEXT))
    except BaseException as broken:
        return f"<no text: {type.__dict__['__name__'].__get__(type(broken))}>"


def _place(error: BaseException) -> str:
    if type(error) is BudgetExceeded:
        frames = list(getattr(error, "frames", ()))
    else:
        frames = _frames(error.__traceback__)
    own = (frame for frame in frames if not frame[0].startswith(_FOREIGN))
    found = next(own, frames[0] if frames else None)
    return f"{found[0]}:{found[1]}" if found else ""


def _frames(trace: TracebackType | None) -> list[tuple[str, int]]:
    """``(file, line)`` of a traceback, innermost first."""
    found: list[tuple[str, int]] = []
    while trace is not None and len(found) < _MAX_FRAMES:
        found.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return found[::-1]
