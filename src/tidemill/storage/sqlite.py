"""What users of SQLite share: errors of temporary files, and checkpoints in a thread."""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

CHECKPOINT_SECONDS = 1.0
"""Time between checkpoints. A thread makes them: each waits for the disk, 5 to 75 ms beside other writers."""
WAL_PAGES_MAX: Final = 8192
"""32 MiB of changes that are not yet in the file; with more, writers wait for a checkpoint."""

_log: Final = logging.getLogger(__name__)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what SQLite reports of the disk, such as a full one, into an `OSError`."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"a temporary file cannot be used: {error}") from error


class Checkpoints:
    """A thread that makes the checkpoints of a file, so that no write on the event loop has to."""

    def __init__(self, path: Path) -> None:
        """Start it for an open file."""
        self._path = path
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def stop(self, *, waits: bool = True) -> None:
        """Make no further checkpoint; `waits` for one that is in progress."""
        self._is_stopped.set()
        if waits:
            self._thread.join()

    def _run(self) -> None:
        while not self._is_stopped.wait(CHECKPOINT_SECONDS):
            try:
                # Without a timeout it does not wait for readers while writers wait for it.
                with closing(sqlite3.connect(self._path, timeout=0, isolation_level=None)) as connection:
                    _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    if pages > WAL_PAGES_MAX:
                        # Writes went on meanwhile: this checkpoint blocks them until the log can start again.
                        connection.execute("PRAGMA wal_checkpoint(RESTART)")
            except sqlite3.Error as error:
                _log.warning("could not write a checkpoint of %s (%s)", self._path.name, error)
