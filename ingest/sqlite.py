"""Sets and sums in SQLite files, because they are too large for memory.

Each object has its own file, empty at first and removed at the end, so a crash does no harm.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final

from tidemill.storage.sqlite import disk_errors

CACHE_KIB: Final = 8192
"""SQLite's memory for one file; the page cache of the system holds more."""
ROWS_MAX: Final = 10_000
"""Digests of one transaction: SQLite keeps a copy of each page that it changes, of 4 KiB."""


class _Database:
    """A file with one table."""

    def __init__(self, file: Path, table: str) -> None:
        """Create the file anew.

        Raises:
            OSError: The disk is full, or fails.
        """
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        with disk_errors():
            # Threads use it one after the other: long lines are checked outside of the event loop's thread.
            self._connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
            for statement in (
                # Without a journal a full disk leaves a file that has lost rows.
                "PRAGMA journal_mode = MEMORY",
                "PRAGMA synchronous = OFF",
                "PRAGMA locking_mode = EXCLUSIVE",
                f"PRAGMA cache_size = -{CACHE_KIB}",
                f"CREATE TABLE {table} WITHOUT ROWID",
            ):
                self._connection.execute(statement)

    def close(self) -> None:
        """Remove the file."""
        self._connection.close()
        self._file.unlink(missing_ok=True)


class Digests(_Database):
    """A set of digests."""

    def __init__(self, file: Path) -> None:
        """Begin with an empty set; see `_Database`."""
        super().__init__(file, "digests (digest BLOB PRIMARY KEY)")

    def __contains__(self, digest: bytes) -> bool:
        with disk_errors():
            found = self._connection.execute("SELECT 1 FROM digests WHERE digest = ?", (digest,))
            return found.fetchone() is not None

    def update(self, digests: Iterable[bytes]) -> None:
        """Add digests.

        Raises:
            OSError: The disk is full, or fails; some of the digests may be in the set.
        """
        # In order, so that neighbours are on one page.
        rows = ((digest,) for digest in sorted(digests))
        with disk_errors():
            while some := list(islice(rows, ROWS_MAX)):
                # A full disk may have left the last transaction open.
                if not self._connection.in_transaction:
                    self._connection.execute("BEGIN")
                self._connection.executemany("INSERT OR IGNORE INTO digests VALUES (?)", some)
                self._connection.execute("COMMIT")


class Sizes(_Database):
    """The size of each object, and the number and total size of each project's objects.

    A call raises `OSError` if the disk is full, or fails; it undoes the changes since the latest `commit` then.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(file, "sizes (id TEXT PRIMARY KEY, project TEXT, bytes INTEGER)")
        self._sums: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()
        self._committed = self._sums, self._numbers
        """The sums and numbers before the transaction."""

    def number(self, project: str) -> int:
        """The number of a project's objects."""
        return self._numbers[project]

    def of(self, project: str) -> int:
        """The bytes of all objects of a project."""
        return self._sums[project]

    def __contains__(self, object_id: str) -> bool:
        return self._row(object_id) is not None

    def project(self, object_id: str) -> str | None:
        """The project of an object; None if it is not there."""
        return None if (row := self._row(object_id)) is None else row[0]

    def size(self, object_id: str) -> int | None:
        """The size of an object; None if it is not there."""
        return None if (row := self._row(object_id)) is None else row[1]

    def put(self, object_id: str, project: str, size: int) -> None:
        """Set the project and size of an object."""
        self.drop(object_id)
        self._write("INSERT INTO sizes VALUES (?, ?, ?)", object_id, project, size)
        self._sums[project] += size
        self._numbers[project] += 1

    def drop(self, object_id: str) -> None:
        """Remove an object, if it is there."""
        if (row := self._row(object_id)) is not None:
            project, size = row
            self._write("DELETE FROM sizes WHERE id = ?", object_id)
            self._sums[project] -= size
            self._numbers[project] -= 1

    def commit(self) -> None:
        """End the transaction that holds the latest changes; one for many changes is faster."""
        if self._connection.in_transaction:
            self._execute("COMMIT")

    def _row(self, object_id: str) -> tuple[str, int] | None:
        found = self._execute("SELECT project, bytes FROM sizes WHERE id = ?", object_id).fetchone()
        return None if found is None else (found[0], found[1])

    def _write(self, statement: str, *values: object) -> None:
        if not self._connection.in_transaction:
            self._execute("BEGIN")
            self._committed = self._sums.copy(), self._numbers.copy()
        self._execute(statement, *values)

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        is_changed = self._connection.in_transaction
        with disk_errors():
            try:
                return self._connection.execute(statement, values)
            except sqlite3.OperationalError:
                if is_changed:
                    self._undo()
                raise

    def _undo(self) -> None:
        """Undo the transaction, as SQLite itself does after most errors of the disk, and the sums with it."""
        self._sums, self._numbers = self._committed
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
