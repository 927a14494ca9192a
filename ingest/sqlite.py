"""Sets and sums in SQLite files: they are larger than they should be in memory.

Each lies in a file of its own, which is made anew and goes with the object: a crash leaves nothing to be read.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

CACHE_KIB: Final = 8192
"""Memory of one file; the system's own cache has the rest."""


class Digests:
    """A set of digests."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection = _made(file, "CREATE TABLE digests (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def __contains__(self, digest: bytes) -> bool:
        found = self._connection.execute("SELECT 1 FROM digests WHERE digest = ?", (digest,))
        return found.fetchone() is not None

    def update(self, digests: Iterable[bytes]) -> None:
        """Add some."""
        self._connection.execute("BEGIN")
        # In order, so that neighbours are on one page.
        rows = [(digest,) for digest in sorted(digests)]
        self._connection.executemany("INSERT OR IGNORE INTO digests VALUES (?)", rows)
        self._connection.execute("COMMIT")

    def close(self) -> None:
        """Remove the file."""
        self._connection.close()
        self._file.unlink(missing_ok=True)


class Sizes:
    """The bytes of each object, and the number and the bytes of all that a project has."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection = _made(
            file, "CREATE TABLE sizes (id TEXT PRIMARY KEY, project TEXT, bytes INTEGER) WITHOUT ROWID"
        )
        self._sums: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()

    def number(self, project: str) -> int:
        """How many a project has."""
        return self._numbers[project]

    def of(self, project: str) -> int:
        """All bytes of a project."""
        return self._sums[project]

    def __contains__(self, file_id: str) -> bool:
        return self._connection.execute("SELECT 1 FROM sizes WHERE id = ?", (file_id,)).fetchone() is not None

    def put(self, file_id: str, project: str, size: int) -> None:
        """Take in a file; one that is known has this size from now on."""
        self.drop(file_id)
        self._write("INSERT INTO sizes VALUES (?, ?, ?)", file_id, project, size)
        self._sums[project] += size
        self._numbers[project] += 1

    def drop(self, file_id: str) -> None:
        """Take out a file; one that is not known is out."""
        found = self._connection.execute("SELECT project, bytes FROM sizes WHERE id = ?", (file_id,)).fetchone()
        if found is not None:
            self._write("DELETE FROM sizes WHERE id = ?", file_id)
            self._sums[found[0]] -= found[1]
            self._numbers[found[0]] -= 1

    def commit(self) -> None:
        """Many changes are made faster as one; what was not committed is there all the same."""
        if self._connection.in_transaction:
            self._connection.execute("COMMIT")

    def close(self) -> None:
        """Remove the file."""
        self._connection.close()
        self._file.unlink(missing_ok=True)

    def _write(self, statement: str, *values: object) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN")
        self._connection.execute(statement, values)


def _made(file: Path, table: str) -> sqlite3.Connection:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    # One thread after the other: long lines are checked in one beside the event loop's.
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    for statement in (
        "PRAGMA journal_mode = OFF",
        "PRAGMA synchronous = OFF",
        "PRAGMA locking_mode = EXCLUSIVE",
        f"PRAGMA cache_size = -{CACHE_KIB}",
        table,
    ):
        connection.execute(statement)
    return connection
