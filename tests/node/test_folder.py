"""The private folder, and what is left of dead ones."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from node.folder import MAX_FOLDER, PREFIX, private_folder, remove_dead
from tests.node.conftest import ROOT

HOLD = """
from node.folder import private_folder
with private_folder() as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    input()
"""


@pytest.fixture
def parent(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    return short_path


def test_it_is_private_and_goes(parent: Path) -> None:
    with private_folder() as folder:
        assert folder.parent == parent
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_text("x")
    assert list(parent.iterdir()) == []


def test_a_long_path_is_avoided(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = parent / ("x" * MAX_FOLDER)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with private_folder() as folder:
        assert len(str(folder)) <= MAX_FOLDER


def test_only_those_of_the_dead_are_removed(parent: Path) -> None:
    elsewhere = parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("x")
    (parent / f"{PREFIX}link").symlink_to(elsewhere)
    (parent / f"{PREFIX}file").write_text("x")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=ROOT,
        env={"TMPDIR": str(parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process, private_folder() as ours:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        remove_dead(parent)
        assert (theirs / "file").exists()
        assert ours.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        remove_dead(parent)
        assert not theirs.exists()
        assert ours.exists()
    assert sorted(path.name for path in parent.iterdir()) == [
        "elsewhere",
        f"{PREFIX}file",
        f"{PREFIX}link",
    ]
    assert (elsewhere / "file").exists()
