"""What `proxylib parser new` makes works as it is."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from node.errors import UsageError
from node.kit.scaffold import FRAMINGS, new_parser
from tests.node.conftest import ROOT


def run(
    *arguments: str, cwd: Path = ROOT, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, timeout=timeout
    )


@pytest.mark.parametrize("framing", FRAMINGS)
def test_its_checks_and_tests_pass_at_once(framing: str, tmp_path: Path) -> None:
    """Dialogues, chunking, and a real Envoy, as the author's first command runs them."""
    folder = tmp_path / "new"
    new_parser(f"droid.{framing}", folder, framing)
    done = run("-m", "node", "parser", "test", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hostile dialogues" in done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("framing", FRAMINGS)
def test_its_tests_end_when_they_fail(framing: str, tmp_path: Path) -> None:
    """Policy and parser often disagree while an author edits one of them."""
    new_parser(f"droid.{framing}", tmp_path, framing)
    (tmp_path / "policy.yaml").write_text("kind: nothing\n")
    done = run("-m", "pytest", "-q", "tests/test_envoy.py", cwd=tmp_path, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout


def test_it_is_well_formatted(tmp_path: Path) -> None:
    for framing in FRAMINGS:
        new_parser(f"droid.{framing}", tmp_path / framing, framing)
    style = ("--isolated", "--line-length", "100", str(tmp_path))
    assert run("-m", "ruff", "format", "--diff", *style).returncode == 0
    done = run("-m", "ruff", "check", "--select", "E,F,I,B,UP,PT", *style)
    assert done.returncode == 0, done.stdout


def test_a_wheel_of_it_brings_the_parser(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    new_parser("droid-9", folder, "line")
    build = run("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", ".", cwd=folder)
    assert build.returncode == 0, build.stderr
    (wheel,) = folder.glob("proxylib_droid_9-*.whl")
    target = tmp_path / "installed"
    run("-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel))
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "from node.kit.facts import parser_facts\n"
        "print(parser_facts('droid-9'))"
    )
    done = run("-c", code)
    assert "proxylib-droid-9 (proxylib_droid_9)" in done.stdout, done.stderr
    assert "error=None" in done.stdout


def test_its_metadata_names_the_parser(tmp_path: Path) -> None:
    new_parser("My.Droid", tmp_path, "line")
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["proxylib.parsers"] == {"My.Droid": "proxylib_my_droid"}
    assert project["name"] == "proxylib-my-droid"


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "r2d2", "x" * 65])
def test_a_name_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        new_parser(name, tmp_path / "new", "line")
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        new_parser("droid", tmp_path, "line")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
