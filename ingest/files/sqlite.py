"""Finds the lines of an input file that equal an earlier one, with a temporary file of SQLite as its memory.

The result depends on the bytes of the file alone, so a repetition after a crash finds the same lines.
"""

import sqlite3
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Final, Self

import msgspec

from tidemill.ingest.files.verdict import Copies
from tidemill.schemas.endpoints import is_deterministic
from tidemill.schemas.jsonl import copies
from tidemill.schemas.jsonl.copies import Copy
from tidemill.schemas.jsonl.lines import Line

CACHE_KIB: Final = 8192
"""SQLite's memory for one file."""
ROWS: Final = 1_000
"""Copies that are written to the store at a time."""
_SCHEMA: Final = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -{CACHE_KIB};
CREATE TABLE originals (digest BLOB PRIMARY KEY, place INTEGER) WITHOUT ROWID;
CREATE TABLE copies (original INTEGER, place INTEGER, custom_id BLOB, PRIMARY KEY (original, place)) WITHOUT ROWID;
BEGIN;
"""


class EqualLines:
    """The lines of one file; SQLite removes its file at the end of the context, or of the process."""

    def __init__(self, endpoint: str, *, is_forced: bool) -> None:
        """Start without lines; with `is_forced` even requests with random answers may count as equal."""
        self._endpoint = endpoint
        self._is_forced = is_forced
        self._place = 0
        self._lock = threading.Lock()
        """A thread may still add lines when its task is cancelled; SQLite crashes if it is closed meanwhile."""
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with self._lock:
            self._database.close()
        if isinstance(error, sqlite3.OperationalError):  # such as a full disk
            raise OSError(f"equal lines cannot be found: {error}") from error

    def add(self, lines: Iterable[Line]) -> None:
        """Add the next lines, all valid."""
        with self._lock:
            self._add(lines)

    def _add(self, lines: Iterable[Line]) -> None:
        execute = self._database.execute
        for place, line in enumerate(lines, self._place):
            self._place = place + 1
            found = copies.request_of(line.data or b"")
            if not (self._is_forced or is_deterministic(self._endpoint, found.temperature)):
                continue
            new = execute("INSERT OR IGNORE INTO originals VALUES (?, ?)", (found.digest, place))
            if not new.rowcount:
                execute(
                    "INSERT INTO copies SELECT place, ?, ? FROM originals WHERE digest = ?",
                    (place, found.custom_id, found.digest),
                )

    def copies(self, numbers: bytes) -> Copies:
        """The copies; `numbers` has the number of each line's model, or is empty if there is only one."""
        found = Copies()
        for (place,) in self._database.execute("SELECT place FROM copies"):
            found.places.add(place)
            found.by_model[numbers[place] if numbers else 0] += 1
        return found

    async def encoded(self) -> AsyncIterator[bytes]:
        """The list of the copies, encoded (`schemas/jsonl/copies.py`)."""
        cursor = self._database.execute("SELECT original, place, custom_id FROM copies ORDER BY original, place")
        while rows := cursor.fetchmany(ROWS):
            yield b"".join(
                copies.encode(Copy(original, place, msgspec.Raw(custom_id))) for original, place, custom_id in rows
            )
