"""A clean virtual environment with the project's wheel: what a user has, not the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.docs.pages import Reader

ROOT = Path(__file__).parents[2]
PACKAGES = ("proxylib", "parsers", "xds", "bpf", "node")
UNTRACKED = shutil.ignore_patterns("__pycache__", "*.so")


def pip(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy: a build folder has yesterday's files."""
    copy = tmp_path_factory.mktemp("copy")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=UNTRACKED)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    pip("wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", copy / "dist", copy)
    (built,) = (copy / "dist").glob("proxylib-*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path) -> Iterator[Path]:
    """The environment. It sees the packages of others that are installed here (setup.py's
    dependencies are held against the imports by test_wheel.py), but not the checkout."""
    with TemporaryDirectory(prefix="venv") as name:
        folder = Path(name)
        venv.create(folder, with_pip=False)
        pip("--python", folder / "bin/python", "install", "--no-deps", "--no-index", wheel)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        yield folder


@pytest.fixture
def reader(installed: Path) -> Iterator[Reader]:
    """A person in an empty folder with the environment; a loopback address of their own."""
    # Several runs of the tests may share a machine.
    mine = f"127.{1 + os.getpid() % 250}.{os.getpid() // 250 % 250}.1"
    with TemporaryDirectory(prefix="page") as folder:
        yield Reader(Path(folder), installed, {"127.0.0.1": mine})
