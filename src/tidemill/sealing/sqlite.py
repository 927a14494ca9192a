"""The wrapped keys of batches in the order of the log, in a temporary file since a process needs few at a time."""

import sqlite3
from typing import Final

from tidemill.bounded_dict import BoundedDict
from tidemill.storage.sqlite import disk_errors

CACHED_MAX: Final = 4096
"""Batches whose keys, or whose lack of keys, are cached in memory."""
PAGE: Final = 1_000
"""Keys of one answer of `Secrets.after`, which takes about 1 ms."""
_SCHEMA: Final = """
PRAGMA journal_mode = MEMORY;
PRAGMA synchronous = OFF;
CREATE TABLE secrets (
    number INTEGER PRIMARY KEY, batch_id TEXT, key_id TEXT, value BLOB, UNIQUE (batch_id, key_id)
);
"""


class Secrets:
    """The current records of `tidemill.secrets`; SQLite removes the file when the object is deleted.

    Each call raises `OSError` if the disk is full, or fails.
    """

    def __init__(self) -> None:
        # One thread at a time uses it, but not always the one that created it.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(_SCHEMA)
        self._cached: BoundedDict[str, dict[str, bytes]] = BoundedDict(CACHED_MAX)

    def of(self, batch_id: str) -> dict[str, bytes]:
        """The keys of a batch by their ids, oldest first; callers must not change the dict."""
        if (known := self._cached.use(batch_id)) is not None:
            return known
        with disk_errors():
            rows = self._database.execute(
                "SELECT key_id, value FROM secrets WHERE batch_id = ? ORDER BY number", (batch_id,)
            )
            known = self._cached[batch_id] = dict(rows)
        return known

    def put(self, batch_id: str, key_id: str, value: bytes) -> None:
        """Store a key; a key with the same id keeps its position."""
        self._cached.pop(batch_id, None)
        with disk_errors():
            self._database.execute(
                "INSERT INTO secrets (batch_id, key_id, value) VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET value = excluded.value",
                (batch_id, key_id, value),
            )

    def drop(self, batch_id: str, key_id: str) -> bool:
        """Delete a key; returns whether it existed."""
        self._cached.pop(batch_id, None)
        with disk_errors():
            dropped = self._database.execute(
                "DELETE FROM secrets WHERE batch_id = ? AND key_id = ?", (batch_id, key_id)
            )
            return dropped.rowcount > 0

    def after(self, number: int) -> list[tuple[int, str, str, bytes]]:
        """Number, batch id, key id and value of up to `PAGE` keys with higher numbers, oldest first."""
        with disk_errors():
            found = self._database.execute(
                "SELECT number, batch_id, key_id, value FROM secrets WHERE number > ? ORDER BY number LIMIT ?",
                (number, PAGE),
            )
            return found.fetchall()
