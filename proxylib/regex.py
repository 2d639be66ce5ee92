"""RE2 as the data path needs it: bytes in, yes or no out, for many patterns at once.

RE2 is Envoy's engine too, and linear in its input, so a hostile regex or key
costs time in proportion to its length and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

import re2

from proxylib.errors import RuleError

Test = Callable[[bytes], bool]

_MAX_MEM = 8 << 20
"""RE2's memory budget per program, bytes (its own default)."""


_MAX_REMEMBERED = 1024
_MAX_REMEMBERED_TEXT = 256
"""Answers that a test remembers, and the longest text remembered, bytes: a call
through RE2's binding costs several times the match itself, and traffic repeats
itself (hot keys, a handful of tables or topics). More would not fit the processor's
cache, and cost those that are new more than they save."""


MAX_PATTERN = 64 << 10
"""Longest regex of a rule, characters."""

_MAX_PROGRAM = 1 << 20
"""RE2's memory budget for the regex of one rule, bytes: some forty thousand
instructions, which take ten milliseconds to make. A rule needs a hundred."""

_MAX_INSTRUCTIONS = _MAX_PROGRAM // 24
"""About so many RE2 makes of that; a regex that is too large costs as much."""


def _options(max_mem: int = _MAX_MEM) -> re2.Options:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = max_mem
    return options


@dataclass(slots=True)
class Budget:
    """What the regexes of one source may come to, in RE2 instructions."""

    instructions: int = 4_000_000
    """So many take two seconds to make; ten thousand rules need some hundred thousand."""


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextmanager
def spending(budget: Budget) -> Iterator[None]:
    """What `check` compiles in this block is paid from `budget`."""
    token = _budget.set(budget)
    try:
        yield
    finally:
        _budget.reset(token)


@lru_cache(maxsize=4096)
def _program(pattern: str) -> int | RuleError:
    """The size of a pattern's program, or why it has none."""
    try:
        return int(re2.compile(pattern.encode(), _options(_MAX_PROGRAM)).programsize)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        return RuleError("", pattern, f"not a valid RE2 regex: {text}")


def check(key: str, pattern: str) -> None:
    """Raise RuleError if `pattern` is not an RE2 regex, or its program is too large.

    Also if that of the block's `spending` is spent, before anything is compiled.
    """
    if len(pattern) > MAX_PATTERN:
        raise RuleError(key, pattern[:80], f"longer than {MAX_PATTERN} characters")
    budget = _budget.get()
    if budget is not None and budget.instructions < 0:
        raise RuleError(key, pattern, _SPENT)
    found = _program(pattern)
    size = found if isinstance(found, int) else _MAX_INSTRUCTIONS
    if budget is not None:
        budget.instructions -= size
    if isinstance(found, RuleError):
        raise RuleError(key, pattern, found.reason)


_SPENT = (
    "the regexes of this file are too large together; write them without counted repetitions "
    "of classes such as \\pL{1,100}, or split the file"
)


def searcher(patterns: Iterable[str]) -> Test:
    """A test that is true where any of `patterns` is found (unanchored).

    One call whatever the number of patterns.  Text that is not UTF-8 is matched
    as Go's regexp does it: each stray byte counts as U+FFFD.
    """
    distinct = list(dict.fromkeys(patterns))
    if "" in distinct:
        return _always
    matcher = re2.Set.SearchSet(_options())
    for pattern in distinct:
        matcher.Add(pattern.encode())
    matcher.Compile()
    # A set answers with its DFA alone and says "no match" when that runs out of
    # memory: fine for one pattern that allows, not for one that denies. Single
    # patterns fall back to the NFA inside RE2 instead.
    match = matcher._set.Match
    is_ascii = bytes.isascii
    recent: dict[bytes, bool] = {}

    def test(text: bytes) -> bool:
        found = recent.get(text)
        if found is None:
            found = bool(match(text if is_ascii(text) else _like_go(text)))
            if len(text) <= _MAX_REMEMBERED_TEXT:
                if len(recent) >= _MAX_REMEMBERED:
                    recent.clear()
                recent[text] = found
        return found

    return test


def exhaustive_searcher(patterns: Iterable[str]) -> Test:
    """`searcher` for rules that deny: never misses a match for want of memory."""
    compiled = [re2.compile(pattern.encode(), _options()) for pattern in dict.fromkeys(patterns)]

    def test(text: bytes) -> bool:
        text = text if text.isascii() else _like_go(text)
        return any(regex.search(text) is not None for regex in compiled)

    return test


def whole_set(patterns: Sequence[str]) -> Callable[[bytes], Iterable[int]]:
    """Which of `patterns` match all of a text, by index.

    For rules that allow: like `searcher` it may miss a match for want of memory.
    Text that is not UTF-8 is matched as Envoy does it: a stray byte matches nothing.
    """
    matcher = re2.Set.FullMatchSet(_options())
    for pattern in patterns:
        matcher.Add(pattern.encode())
    matcher.Compile()
    match: Callable[[bytes], Iterable[int]] = matcher._set.Match
    return match


@lru_cache(maxsize=4096)
def whole(pattern: str) -> Test:
    """A test that is true for a text that `pattern` matches as a whole; never misses one."""
    matcher = re2.compile(pattern.encode(), _options())
    return lambda text: matcher.fullmatch(text) is not None


def _always(text: bytes) -> bool:
    return True


def _like_go(text: bytes) -> bytes:
    decoded = text.decode("utf-8", "surrogateescape")
    if decoded.isprintable():
        return text
    return "".join("�" if "\ud800" <= c <= "\udfff" else c for c in decoded).encode()
