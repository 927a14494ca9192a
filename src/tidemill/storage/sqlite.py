"""How SQLite's temporary files fail."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what SQLite reports of the disk, such as a full one, into an `OSError`."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"a temporary file cannot be used: {error}") from error
