"""What is on the disk, whatever happens."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from node.agent.daemon import only_one
from node.agent.store import Store
from node.errors import SetupError
from proxylib.errors import ConfigError
from tests.node.conftest import ROOT

A, B = ("kind", "a"), ("kind", "b")


def test_changes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = Store(path)
    assert store.read() == {}
    with store.change({A: 1, B: {"text": "é"}}, ()):
        pass
    with store.change({A: 2}, [B]):
        pass
    store.close()
    again = Store(path)
    assert again.read() == {A: 2}
    again.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_block_that_raises_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    with pytest.raises(ValueError, match="refused"), store.change({A: 1}, ()):
        raise ValueError("refused")
    assert store.read() == {}
    with store.change({B: 1}, ()):
        pass
    assert store.read() == {B: 1}
    store.close()


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    with store.change({A: 1}, ()):
        pass
    store._database.execute("PRAGMA max_page_count=8")
    with (
        pytest.raises(ConfigError, match="cannot be written"),
        store.change({A: 2, B: "x" * 100_000}, ()),
    ):
        pass
    assert store.read() == {A: 1}
    store.close()


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0garbage"])
def test_a_file_that_is_not_ours(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="move it away"):
        Store(path)
    assert path.read_bytes() == content


def test_another_format(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(ConfigError, match="format 99"):
        Store(path)


WRITER = """
import sys
from pathlib import Path
from node.agent.store import Store
store = Store(Path(sys.argv[1]))
for number in range(1_000_000):
    after = {("n", str(i)): number for i in range(20)}
    with store.change(after, [("n", str(number % 20))]):
        pass
    print(number, flush=True)
"""


def test_kill_at_any_moment(tmp_path: Path) -> None:
    """What was acknowledged is there, and never half of a change."""
    path = tmp_path / "state.db"
    for round_ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.01 + 0.013 * round_)
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split("\n")
        process.wait()
        process.stdout.close()
        acknowledged = int(rest[-2]) if len(rest) > 1 else 0
        store = Store(path)
        items = store.read()
        store.close()
        assert len(items) == 20
        (number,) = set(items.values())
        assert number in (acknowledged, acknowledged + 1)
        path.unlink()
        for other in tmp_path.glob("state.db-*"):
            other.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 64 KiB, in a mount of the test's own."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small file system")
    where = tmp_path / "disk"
    where.mkdir()
    options = "size=64k,nr_inodes=40,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", where], check=True)
    yield where
    subprocess.run(["umount", where], check=True)


def test_a_full_disk_is_no_damage(small_disk: Path) -> None:
    full = small_disk / "full"
    full.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    with pytest.raises(ConfigError, match="the disk is full") as raised:
        Store(small_disk / "state.db")
    assert "not damaged, so leave it where it is" in str(raised.value)
    # The lock needs a place for its name only, which takes no page of this file system.
    with only_one(small_disk / "lock"):
        pass
    with suppress(OSError):
        for number in range(100):
            (small_disk / f"{number}").touch()
    with pytest.raises(SetupError, match="make room on its disk"), only_one(small_disk / "other"):
        pass
    for path in small_disk.iterdir():
        path.unlink()
    Store(small_disk / "state.db").close()


def test_a_file_that_cannot_be_read_is_not_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "state.db").mkdir()
    with pytest.raises(ConfigError, match="nothing says that the file is damaged"):
        Store(tmp_path / "state.db")


def test_moving_a_damaged_file_away_has_a_price_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"")
    with pytest.raises(ConfigError, match="then passes unjudged, until they"):
        Store(tmp_path / "state.db")
