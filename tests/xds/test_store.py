"""The embedded store: what was given is never lost, whenever the process dies."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxylib.errors import ConfigError
from xds.identity import CLUSTER, LOCAL, MAX_IDENTITY, Identities
from xds.labels import label_set, parse_label
from xds.store import SqliteStore


def test_outlives_the_process(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s")
    assert store.numbers(CLUSTER, ["k8s:b=1", "k8s:a=1"]) == {"k8s:b=1": 256, "k8s:a=1": 257}
    assert store.numbers(LOCAL, ["k8s:a=1"]) == {"k8s:a=1": LOCAL.first}
    store.forget(CLUSTER, ["k8s:a=1"])
    store.close()
    again = SqliteStore(tmp_path / "s")
    assert again.known(CLUSTER) == {"k8s:b=1": 256}
    assert again.numbers(CLUSTER, ["k8s:a=1"]) == {"k8s:a=1": 258}, "257 may still be around"
    again.close()
    assert again.known(CLUSTER)["k8s:b=1"] == 256, "closing only gives the file up"
    again.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s")
    with pytest.raises(ConfigError, match=r"s: identities .*another process uses it"):
        SqliteStore(tmp_path / "s")
    store.close()
    SqliteStore(tmp_path / "s").close()


def test_numbers_run_out_and_come_back(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s")
    store.numbers(CLUSTER, ["k8s:a=1", "k8s:b=1"])
    store._db.execute("UPDATE scope SET following = ?", (MAX_IDENTITY,))
    assert store.numbers(CLUSTER, ["k8s:c=1", "k8s:d=1"]) == {
        "k8s:c=1": MAX_IDENTITY,
        "k8s:d=1": 258,
    }
    store.forget(CLUSTER, ["k8s:a=1"])
    assert store.numbers(CLUSTER, ["k8s:e=1"]) == {"k8s:e=1": 256}
    store.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "not an identity store"),
        (b"x" * 5000, "not an identity store"),
        (b"SQLite format 3\0" + b"\xff" * 5000, "not an identity store"),
    ],
)
def test_other_files_are_refused_and_left_alone(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "s"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        SqliteStore(path)
    assert path.read_bytes() == content


def test_other_databases_and_bad_rows_are_refused(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(ConfigError, match="has other data in it"):
        SqliteStore(tmp_path / "other")
    for scope, key, number in (
        ("cluster", "k8s:a=1", 5),
        ("local", "k8s:a=1", 300),
        ("cluster", "no labels", 300),
    ):
        store = SqliteStore(tmp_path / key)
        store._db.execute("INSERT INTO identity VALUES (?, ?, ?)", (scope, key, number))
        store.close()
        with pytest.raises(ConfigError, match="not an identity store"):
            SqliteStore(tmp_path / key)
        (tmp_path / key).unlink()


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="identities cannot be kept there"):
        SqliteStore(tmp_path)
    with pytest.raises(ConfigError, match="identities cannot be kept there"):
        SqliteStore(tmp_path / "gone" / "s")


GIVER = """
import sys
from pathlib import Path
from xds.identity import Identities
from xds.labels import label_set, parse_label
from xds.store import SqliteStore
identities = Identities(SqliteStore(Path(sys.argv[1])), delay=0)
turn = int(sys.argv[2])
for n in range(100_000):
    labels = [label_set([parse_label(f"k8s:n={turn}-{n}-{m}")]) for m in range(3)]
    for found, number in identities.acquire(labels).items():
        print(found, number, flush=True)
    if n % 5 == 4:
        identities.release(labels[:1])
        identities.expire()
        print(labels[0], "-", flush=True)
"""


def test_kill_at_any_moment_loses_no_number(tmp_path: Path) -> None:
    seen: dict[str, str] = {}
    for turn in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", GIVER, str(tmp_path / "s"), str(turn)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.stdout.close()
        process.wait()
        assert lines[0], "it gave something before it was killed"
        said = dict(line.rsplit(" ", 1) for line in lines if line.endswith("\n"))
        released = {key for key, number in said.items() if number == "-\n"}
        store = SqliteStore(tmp_path / "s")
        known = {key: str(number) for key, number in store.known(CLUSTER).items()}
        store.close()
        assert len(set(known.values())) == len(known)
        kept = {key: number.strip() for key, number in said.items() if key not in released}
        # A release may have been done, and its line not been written, when the process died.
        last = [key for key in kept if key.endswith("-0")][-1:]
        assert kept.keys() - known.keys() <= set(last)
        assert all(known[key] == number for key, number in kept.items() if key in known)
        assert not released & known.keys()
        seen = known
    identities = Identities(SqliteStore(tmp_path / "s"))
    some = dict(list(seen.items())[-20:])
    sets = {label_set(map(parse_label, key.split())): number for key, number in some.items()}
    assert {s: str(n) for s, n in identities.acquire(sets).items()} == sets
    identities.close()


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    SqliteStore(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    # One of an earlier release is made so.
    path.chmod(0o644)
    store = SqliteStore(path)
    store.numbers(CLUSTER, ["k8s:a=1"])
    assert {found.stat().st_mode & 0o777 for found in tmp_path.iterdir()} == {0o600}
    store.close()
