"""The door to SQLite: a set of digests that is larger than it should be in memory."""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final

CACHE_KIB: Final = 8192
"""Memory of one set; the system's own cache has the rest."""


class Digests:
    """In a file of its own, which is made anew and goes with the object: a crash leaves nothing to be read."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        self._file = file
        self._connection = sqlite3.connect(file, isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "PRAGMA locking_mode = EXCLUSIVE",
            f"PRAGMA cache_size = -{CACHE_KIB}",
            "CREATE TABLE digests (digest BLOB PRIMARY KEY) WITHOUT ROWID",
        ):
            self._connection.execute(statement)

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
