"""No possessive quantifier and no atomic group in any regular expression of ours.

CPython before 3.11.5 (Debian 12 has 3.11.2) is wrong about them: when the last turn of
a possessively repeated group fails half-way, the half stays in the match (CPython issue
106052).  A parser would then let through bytes that it has not judged.

Patterns are read with `re`'s own parser: those of the modules, and every constant in
the sources that is given to a function of `re` directly.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from re import _constants, _parser  # type: ignore[attr-defined]  # no public way to read one

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("proxylib", "parsers", "xds", "node")
FORBIDDEN = (_constants.POSSESSIVE_REPEAT, _constants.ATOMIC_GROUP)
ELSEWHERE = ("proxylib.embed",)
"""Modules that only the built library can import; their sources are read all the same."""
USES = ("compile", "match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer")


def ops(tree: object) -> Iterator[object]:
    """Every opcode of a parsed pattern, however deep."""
    if isinstance(tree, _constants._NamedIntConstant):
        yield tree
    elif isinstance(tree, _parser.SubPattern | tuple | list):
        for item in tree:
            yield from ops(item)


def forbidden(pattern: str | bytes, flags: int = 0) -> bool:
    return any(op in FORBIDDEN for op in ops(_parser.parse(pattern, flags)))


def modules() -> Iterable[str]:
    for package in PACKAGES:
        yield package
        path = [str(ROOT / package)]
        yield from (info.name for info in pkgutil.walk_packages(path, f"{package}."))


def compiled(*values: object) -> Iterator[re.Pattern[str] | re.Pattern[bytes]]:
    """The patterns in `values`, also as bound methods (``compile(...).match``)."""
    ahead, seen = list(values), set()
    while ahead:
        holder = ahead.pop()
        owner = getattr(holder, "__self__", None)
        if isinstance(holder, re.Pattern):
            yield holder
        elif isinstance(owner, re.Pattern):
            yield owner
        elif isinstance(holder, dict | list | tuple | set | frozenset) and id(holder) not in seen:
            seen.add(id(holder))
            ahead += holder.values() if isinstance(holder, dict) else holder


def literals(source: str) -> Iterator[tuple[int, str | bytes]]:
    """Line and text of constants that are the first argument of a function of `re`."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
            and node.func.attr in USES
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, node.args[0].value  # type: ignore[misc]  # text or bytes


REASON = "possessive or atomic, which CPython before 3.11.5 gets wrong (issue 106052): "


def test_patterns_of_modules() -> None:
    found = []
    for name in modules():
        if name in ELSEWHERE or name.endswith("__main__"):
            continue
        for variable, value in vars(importlib.import_module(name)).items():
            for pattern in compiled(value):
                if forbidden(pattern.pattern, pattern.flags & ~re.DEBUG):
                    found.append(f"{name}.{variable} = {pattern.pattern!r}")
    assert not found, REASON + "\n".join(found)


def test_patterns_in_functions() -> None:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for line, pattern in literals(path.read_text()):
                if forbidden(pattern):
                    found.append(f"{path.relative_to(ROOT)}:{line}: {pattern!r}")
    assert not found, REASON + "\n".join(found)


@pytest.mark.parametrize("pattern", [rb"(?:ab)++", "a*+", "x(?:y|(z?+))", "(?>a)", "(?=a{2,3}+)"])
def test_what_is_forbidden_is_seen(pattern: str | bytes) -> None:
    assert forbidden(pattern)
    assert [text for _, text in literals(f"re.compile({pattern!r})")] == [pattern]
    assert [found.pattern for found in compiled({"x": (re.compile(pattern).match,)})] == [pattern]


@pytest.mark.parametrize("pattern", [r"a\++", "[*+]+", "(?:ab){1,2}", "a+?", rb"\(\?>a"])
def test_what_is_not_forbidden_is_not(pattern: str | bytes) -> None:
    assert not forbidden(pattern)
