"""The wheel has all that a user needs, and what it imports is among its requirements."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

# The first of the session waits for the wheel to be built.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
PACKAGES = ("proxylib", "parsers", "xds", "bpf", "node")
NOT_SHIPPED = {"stubs"}
"""Folders that only type checkers of this checkout need."""

TEST_KIT = {"hypothesis", "pytest"}
"""What only tests of parsers need; the scaffold's pyproject.toml names them."""


def tracked() -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
def test_every_file_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {name for name in tracked() if not NOT_SHIPPED & set(Path(name).parts)}
    assert wanted - names == set()
    assert "proxylib/libproxylib.so" in names


def test_nothing_else_is_in_it(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_the_installed_library_is_not_the_checkouts(installed: Path, tmp_path: Path) -> None:
    code = "import proxylib.native as n, node; print(n.library_path(), node.__file__, sep='\\n')"
    done = subprocess.run(
        [installed / "bin/python", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    for line in done.stdout.splitlines():
        assert Path(line).is_relative_to(installed), line


def imported(path: Path) -> Iterator[str]:
    """The top-level modules that a file imports, anywhere in it."""
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in item.names)
        elif isinstance(item, ast.ImportFrom) and item.module and not item.level:
            yield item.module.partition(".")[0]


def required() -> set[str]:
    """The distributions that an installation brings: setup.py's, and theirs in turn."""
    text = (ROOT / "setup.py").read_text()
    block = re.search(r"install_requires=(\[.*?\])", text, re.DOTALL)
    assert block is not None
    waiting, found = list(ast.literal_eval(block[1])), set[str]()
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonical(requirement.name)
        if name not in found:
            found.add(name)
            try:
                waiting += requires(requirement.name) or []
            except PackageNotFoundError as error:
                raise AssertionError(f"{name} is required, and not installed") from error
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_it_imports_is_required() -> None:
    distributions = packages_distributions()
    ours = {*PACKAGES, *sys.stdlib_module_names, "proxylib_native", "libproxylib"}
    named = {
        module
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for module in imported(path)
    }
    brought = required()
    missing = {
        module
        for module in named - ours - TEST_KIT
        if not brought & set(map(canonical, distributions.get(module, [])))
    }
    # Only to build the shared library, or to make the protos.
    assert missing == {"setuptools"}
