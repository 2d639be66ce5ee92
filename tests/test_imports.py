"""Import rules beyond import-linter: parsers use the public API, bpf nothing of ours."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import proxylib

ROOT = Path(__file__).parents[1]
OURS = {"proxylib", "parsers", "xds", "node", "bpf", "demos", "benchmarks", "tests"}


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in a file; name is empty for ``import module``."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((module, alias.name) for alias in node.names)


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", sources("parsers"), ids=lambda p: str(p.relative_to(ROOT)))
def test_parsers_use_the_public_api(path: Path) -> None:
    package = path.relative_to(ROOT).with_suffix("").parts[:2]
    for module, name in imports(path):
        top = module.split(".")[0]
        if top not in OURS:
            continue
        if top == "parsers":
            assert tuple(module.split(".")[:2]) == package, f"another parser: {module}"
        else:
            assert module == "proxylib", f"not the public API: {module}"
            assert name in proxylib.__all__, f"not public: proxylib.{name}"


def test_bpf_imports_nothing_of_ours() -> None:
    for path in sources("bpf"):
        for module, _ in imports(path):
            assert module.split(".")[0] not in OURS - {"bpf"}, f"{path}: {module}"


def test_public_api_is_there() -> None:
    assert all(hasattr(proxylib, name) for name in proxylib.__all__)
