from __future__ import annotations

import os
from pathlib import Path

import pytest

from bpf import headers
from bpf.errors import BpfError


def test_tree_is_made_once(tmp_path: Path) -> None:
    made = headers.tree(tmp_path)
    assert (made / "include" / "uapi" / "linux" / "tcp.h").is_file()
    assert (made / "include" / "uapi" / "asm" / "types.h").is_file()
    before = os.stat(made).st_ino
    assert os.stat(headers.tree(tmp_path)).st_ino == before


@pytest.mark.parametrize("lost", ["linux/kconfig.h", "uapi/asm", "uapi/linux/tcp.h"])
def test_a_damaged_tree_is_made_anew(tmp_path: Path, lost: str) -> None:
    include = headers.tree(tmp_path) / "include"
    (include / lost).unlink()
    headers.tree(tmp_path)
    assert (include / lost).exists()


def test_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "INCLUDE", tmp_path)
    assert not headers.installed()
    with pytest.raises(BpfError, match="install the package linux-libc-dev"):
        headers.tree(tmp_path)


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(BpfError, match="headers cannot be made"):
        headers.tree(tmp_path / "cache")
