"""The wrapped keys of batches by their ids, in the order of the log, in a temporary file: few are ever needed."""

import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

REMEMBERED_MAX: Final = 4096
"""Batches whose keys, or whose want of any, are kept in memory."""
_SCHEMA: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE secrets (
    number INTEGER PRIMARY KEY, batch_id TEXT, key_id TEXT, value BLOB, UNIQUE (batch_id, key_id)
);
"""


class Secrets:
    """Records of `tidemill.secrets` as the log has them. SQLite removes the file with the last use of this."""

    def __init__(self) -> None:
        # Used by one thread at a time, which need not be the one that makes it.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(_SCHEMA)
        self._remembered: OrderedDict[str, dict[str, bytes]] = OrderedDict()

    def of(self, batch_id: str) -> dict[str, bytes]:
        """The keys of a batch by their ids, the oldest first; not to be changed."""
        if (known := self._remembered.get(batch_id)) is not None:
            self._remembered.move_to_end(batch_id)
            return known
        rows = self._database.execute(
            "SELECT key_id, value FROM secrets WHERE batch_id = ? ORDER BY number", (batch_id,)
        )
        known = self._remembered[batch_id] = dict(rows)
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        return known

    def put(self, batch_id: str, key_id: str, value: bytes) -> None:
        """Keep a key; one of the same id keeps its place."""
        self._remembered.pop(batch_id, None)
        self._database.execute(
            "INSERT INTO secrets (batch_id, key_id, value) VALUES (?, ?, ?) "
            "ON CONFLICT DO UPDATE SET value = excluded.value",
            (batch_id, key_id, value),
        )

    def drop(self, batch_id: str, key_id: str) -> bool:
        """Drop a key; says whether it was there."""
        self._remembered.pop(batch_id, None)
        dropped = self._database.execute(
            "DELETE FROM secrets WHERE batch_id = ? AND key_id = ?", (batch_id, key_id)
        )
        return dropped.rowcount > 0

    def oldest(self) -> Iterator[tuple[str, str, bytes]]:
        """Batch, key and value of all, the oldest first; nothing may be put or dropped meanwhile."""
        yield from self._database.execute("SELECT batch_id, key_id, value FROM secrets ORDER BY number")
