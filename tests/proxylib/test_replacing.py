"""A file is the old one or the new one."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from proxylib.replacing import replace_file


def test_it_is_replaced_with_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_file(path, "one\n", 0o600)
    replace_file(path, "two\n", 0o600)
    assert path.read_text() == "two\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [path]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.mkdir()
    (path / "kept").touch()
    with pytest.raises(OSError, match=r"state\.json"):
        replace_file(path, "one\n")
    assert [*tmp_path.iterdir()] == [path]
    assert (path / "kept").exists()
