"""The embedded store of identity numbers: one SQLite file of one process.

Every change is on disk before its number is used (write-ahead log, full sync), so a
crash or a kill at any moment loses no number that somebody has seen.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from proxylib.errors import ConfigError
from xds.identity import CLUSTER, LOCAL, Scope, free_number, parse_labels

_VERSION = 1
"""``user_version`` of files that this code writes."""

_APPLICATION = 0x50784964
"""``application_id``: ours, and not any SQLite file."""

_SCHEMA = f"""
CREATE TABLE identity (
    scope TEXT NOT NULL, labels TEXT NOT NULL, number INTEGER NOT NULL UNIQUE,
    PRIMARY KEY (scope, labels)
) WITHOUT ROWID;
CREATE TABLE scope (name TEXT PRIMARY KEY, following INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""


class SqliteStore:
    """Identity numbers in the file `path`, which is made if it is not there.

    Raises ConfigError if the file cannot be used: it is something else, damaged,
    cannot be written, or is another process's at the moment.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        with self._explained():
            self._open()

    @property
    def _db(self) -> sqlite3.Connection:
        return self._connection or self._open()

    def _open(self) -> sqlite3.Connection:
        # SQLite gives the files that it puts beside it the same mode.
        self._path.touch(mode=0o600)
        if self._path.is_file():
            self._path.chmod(0o600)
        self._connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=1.0
        )
        try:
            self._check()
        except BaseException:
            self._close()
            raise
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _check(self) -> None:
        for setting in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
            self._db.execute(f"PRAGMA {setting}")
        # Takes the lock, which is then kept.
        self._db.execute("BEGIN EXCLUSIVE")
        self._db.execute("COMMIT")
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if (application, version) == (0, 0) and not self._tables():
            self._db.executescript(f"BEGIN EXCLUSIVE; {_SCHEMA} COMMIT;")
        elif application != _APPLICATION:
            raise ValueError("it has other data in it")
        elif version != _VERSION:
            raise ValueError(f"it is of version {version}, this program writes {_VERSION}")
        ((found,),) = self._db.execute("PRAGMA quick_check(1)").fetchall()
        if found != "ok":
            raise ValueError(f"it is damaged: {found}")
        for scope in (CLUSTER, LOCAL):
            for key, number in self.known(scope).items():
                if not scope.first <= number <= scope.last or str(parse_labels(key)) != key:
                    raise ValueError(f"{number} is no identity of {key!r}")

    def _tables(self) -> int:
        (count,) = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        return int(count)

    def numbers(self, scope: Scope, keys: Collection[str]) -> Mapping[str, int]:
        """The number of each of `keys`; new ones are on disk when this returns."""
        with self._change():
            found: dict[str, int] = {}
            new: list[str] = []
            for key in keys:
                row = self._db.execute(
                    "SELECT number FROM identity WHERE scope = ? AND labels = ?", (scope.name, key)
                ).fetchone()
                if row is None:
                    new.append(key)
                else:
                    found[key] = row[0]
            if new:
                found |= self._allocate(scope, new)
            return found

    def _allocate(self, scope: Scope, keys: Collection[str]) -> dict[str, int]:
        row = self._db.execute("SELECT following FROM scope WHERE name = ?", (scope.name,))
        ((following,),) = row.fetchall() or ((scope.first,),)
        given: dict[str, int] = {}
        taken: set[int] = set()
        if following + len(keys) > scope.last:
            query = "SELECT number FROM identity WHERE scope = ?"
            taken = {number for (number,) in self._db.execute(query, (scope.name,))}
        for key in keys:
            given[key] = free_number(scope, following, taken)
            taken.add(given[key])
            following = max(following, given[key] + 1)
        self._db.executemany(
            "INSERT INTO identity (scope, labels, number) VALUES (?, ?, ?)",
            [(scope.name, key, number) for key, number in given.items()],
        )
        self._db.execute(
            "INSERT INTO scope (name, following) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET following = excluded.following",
            (scope.name, following),
        )
        return given

    def known(self, scope: Scope) -> Mapping[str, int]:
        """Every key of `scope` and its number."""
        query = "SELECT labels, number FROM identity WHERE scope = ?"
        return dict(self._db.execute(query, (scope.name,)).fetchall())

    def forget(self, scope: Scope, keys: Collection[str]) -> None:
        """Take `keys` out; their numbers come back only when no unused one is left."""
        with self._change():
            self._db.executemany(
                "DELETE FROM identity WHERE scope = ? AND labels = ?",
                [(scope.name, key) for key in keys],
            )

    def close(self) -> None:
        """Let others have the file; it is opened again when there is something to do.

        It is complete at any moment, closed or not.
        """
        with self._lock:
            self._close()

    @contextmanager
    def _change(self) -> Iterator[None]:
        """One transaction: all of it, or nothing."""
        with self._lock, self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._connection is not None and self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            why = "another process uses it" if "locked" in str(error) else str(error)
            raise ConfigError(f"{self._path}: identities cannot be kept there: {why}") from error
        except OSError as error:
            raise ConfigError(
                f"{self._path}: identities cannot be kept there: {error.strerror}"
            ) from error
        except (sqlite3.Error, ValueError) as error:
            raise ConfigError(
                f"{self._path}: not an identity store ({error}); move it away to start afresh"
            ) from error
