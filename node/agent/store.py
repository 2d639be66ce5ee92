"""State on disk: what was told to the agent, in one SQLite file.

A change is one transaction that is on the disk before it is answered, so that a
kill -9 at any moment leaves the state before it or the state after it.  What the
state means is repository.py's business: here are keys and JSON values.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from proxylib.errors import ConfigError

FORMAT = 1
"""The format of the file (SQLite's user_version); another one is refused."""

_SCHEMA = f"""
CREATE TABLE item (
    kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;
PRAGMA user_version={FORMAT};
"""

_SMALLEST = 512
"""Bytes of SQLite's smallest page: no database is smaller."""

_ELSEWHERE = ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_BUSY")
"""What the names of SQLite's errors begin with whose reason is not what is in the file."""

Key = tuple[str, str]
"""An item's kind, and its key among those."""

Items = Mapping[Key, Any]
"""Items and their JSON values."""


class Store:
    """Items on the disk. Used by one thread at a time.

    Raises ConfigError, with what to do, for a file that cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._database = self._open()
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"{path}: {_unusable(error)}") from error

    def _open(self) -> sqlite3.Connection:
        if not self.path.exists():
            _create(self.path)
        # SQLite takes a file that was cut to nothing for a new one.
        if self.path.stat().st_size < _SMALLEST:
            raise sqlite3.DatabaseError("cut short")
        database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            (found,) = database.execute("PRAGMA user_version").fetchone()
            if found != FORMAT:
                raise sqlite3.DatabaseError(f"format {found}, this version writes {FORMAT}")
            if database.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("damaged")
            # All that was acknowledged is in the one file: of a log beside it (WAL), the end
            # may be cut off, and nobody sees that the state is one of before.
            database.execute("PRAGMA journal_mode=DELETE")
            database.execute("PRAGMA synchronous=EXTRA")
        except BaseException:
            database.close()
            raise
        return database

    def read(self) -> dict[Key, Any]:
        """Everything. Raises ConfigError for a value that is not ours."""
        try:
            with closing(self._database.execute("SELECT kind, key, value FROM item")) as rows:
                return {(kind, key): json.loads(value) for kind, key, value in rows}
        except (sqlite3.Error, ValueError) as error:
            raise ConfigError(f"{self.path}: {_unusable(error)}") from error

    @contextmanager
    def change(self, write: Items, delete: Collection[Key]) -> Iterator[None]:
        """Write some items, and delete others.

        It is on the disk when the block has ended; if the block raises, nothing is.
        Raises ConfigError if it cannot be written.
        """
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("DELETE FROM item WHERE kind=? AND key=?", delete)
            self._database.executemany("REPLACE INTO item VALUES (?, ?, ?)", _rows(write))
        except sqlite3.Error as error:
            self._roll_back()
            raise self._failed(error) from error
        try:
            yield
        except BaseException:
            self._roll_back()
            raise
        try:
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise self._failed(error) from error

    def _roll_back(self) -> None:
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")

    def _failed(self, error: sqlite3.Error) -> ConfigError:
        return ConfigError(f"{self.path}: the change cannot be written: {error}")

    def close(self) -> None:
        self._database.close()


def _unusable(error: Exception) -> str:
    """Why the file cannot be used, and what to do: a full disk has damaged nothing."""
    told = getattr(error, "sqlite_errorname", "")
    if told == "SQLITE_FULL" or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full ({error}): make room, and try again; the file is not damaged, so "
            "leave it where it is"
        )
    if isinstance(error, OSError) or told.startswith(_ELSEWHERE):
        return (
            f"cannot be read or written ({error}): see to the disk and to rights; nothing says "
            "that the file is damaged, so leave it where it is"
        )
    return (
        f"not usable as the agent's state ({error}); put a copy back, or move it away to start "
        "afresh, without policies and endpoints: what goes to and from endpoints then passes "
        "unjudged, until they and their policies are added again"
    )


def _create(path: Path) -> None:
    """A new file, in place only when it is whole; only its owner reads policies.

    SQLite gives the files that it puts beside it the same mode.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        with closing(sqlite3.connect(name)) as database:
            database.executescript(_SCHEMA)
        os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _rows(items: Items) -> Iterator[tuple[str, str, str]]:
    for (kind, key), value in items.items():
        yield kind, key, json.dumps(value, ensure_ascii=False)
