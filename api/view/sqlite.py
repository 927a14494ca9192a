"""The SQLite file that a process keeps its view in: one file, one process."""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from tidemill.api import errors
from tidemill.api.requests.paging import Page
from tidemill.schemas.resources.bill import ExactSum
from tidemill.storage.locked_directory import lock_first_free
from tidemill.storage.sqlite import WAL_PAGES_MAX, Checkpoints

LAYOUT = 31
"""Version of the schema; a file with another one is rebuilt."""

SCAN_ROWS_MAX = 2_000
"""Rows that a search reads for one request: some milliseconds."""
PRIMARY_CODE = 0xFF
"""The part of SQLite's extended error codes with the primary code."""
DISK_CODES = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
DAMAGE_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

_TABLES = """
CREATE TABLE current (at INTEGER NOT NULL);
CREATE TABLE topics (name TEXT PRIMARY KEY, next INTEGER NOT NULL, identity TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE batches (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, created_at INTEGER NOT NULL, input_file_id TEXT NOT NULL,
    over INTEGER NOT NULL, status TEXT NOT NULL, ended_at INTEGER, lines_left INTEGER NOT NULL,
    input_bytes INTEGER, owner INTEGER NOT NULL, endpoint TEXT NOT NULL, single INTEGER NOT NULL,
    stalled INTEGER NOT NULL, late_at INTEGER NOT NULL, failures INTEGER NOT NULL,
    models TEXT NOT NULL, texts TEXT NOT NULL, listed BLOB,
    body BLOB NOT NULL -- last: SQLite reads all pages of a row up to the column that it is asked for
);
CREATE INDEX batches_listed ON batches (project, single, created_at, id);
CREATE INDEX batches_listed_by_endpoint ON batches (project, single, endpoint, created_at, id);
CREATE INDEX batches_listed_by_status ON batches (project, single, status, created_at, id);
CREATE INDEX batches_stalled ON batches (project, single, created_at, id, status, endpoint) WHERE stalled;
CREATE INDEX batches_late ON batches (project, single, created_at, id, late_at, status, endpoint) WHERE NOT over;
CREATE INDEX batches_failures ON batches (project, single, created_at, id, status, endpoint) WHERE failures;
CREATE INDEX batches_open ON batches (input_file_id) WHERE NOT over;
CREATE INDEX batches_running ON batches (project, lines_left) WHERE NOT over;
CREATE INDEX batches_of_input ON batches (input_file_id);
CREATE INDEX batches_ended ON batches (ended_at) WHERE over;
CREATE TABLE erasures (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, created_at INTEGER, input_file_id TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE labels (
    project TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, created_at INTEGER NOT NULL, id TEXT NOT NULL,
    PRIMARY KEY (project, name, value, created_at, id)
) WITHOUT ROWID;
CREATE INDEX labels_of ON labels (id);
CREATE TABLE reruns (source TEXT NOT NULL, created_at INTEGER NOT NULL, id TEXT PRIMARY KEY);
CREATE INDEX reruns_of ON reruns (source, created_at);
CREATE TABLE claims (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, fingerprint TEXT NOT NULL, created_at INTEGER NOT NULL,
    is_retry INTEGER NOT NULL, place INTEGER NOT NULL, input_file_id TEXT NOT NULL, body BLOB NOT NULL
);
CREATE INDEX claims_of_input ON claims (input_file_id, created_at);
CREATE INDEX claims_alike ON claims (project, fingerprint, created_at);
CREATE INDEX claims_old ON claims (created_at);
CREATE TABLE uploads (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, expires_at INTEGER NOT NULL, pending INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX uploads_ending ON uploads (expires_at);
CREATE TABLE parts (
    id TEXT PRIMARY KEY, upload_id TEXT NOT NULL, bytes INTEGER NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL
);
CREATE INDEX parts_of ON parts (upload_id);
CREATE INDEX parts_keys ON parts (key);
CREATE TABLE orphans (key TEXT PRIMARY KEY, seen_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE waiting (id TEXT PRIMARY KEY, files_offset INTEGER NOT NULL, value BLOB NOT NULL,
    owner INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, created_at INTEGER NOT NULL, purpose TEXT NOT NULL,
    expires_at INTEGER, key TEXT NOT NULL, sha256 TEXT NOT NULL, body BLOB NOT NULL,
    place INTEGER NOT NULL, deleted_at INTEGER, held INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL, lines INTEGER, from_body INTEGER NOT NULL, owner INTEGER NOT NULL
);
CREATE INDEX files_listed ON files (project, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX files_listed_by_purpose ON files (project, purpose, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX files_deleted ON files (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX files_expiring ON files (expires_at) WHERE deleted_at IS NULL AND expires_at IS NOT NULL;
CREATE INDEX files_held ON files (id) WHERE held;
CREATE INDEX files_keys ON files (key);
CREATE INDEX files_stored ON files (project, bytes) WHERE deleted_at IS NULL OR held;
CREATE TABLE keys (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, created_at INTEGER NOT NULL, sha256 TEXT NOT NULL,
    revoked INTEGER NOT NULL, expires_at INTEGER, signer TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE trust (signers TEXT NOT NULL);
CREATE INDEX keys_by_digest ON keys (sha256);
CREATE INDEX keys_listed ON keys (created_at, id);
CREATE TABLE ledger (
    id TEXT NOT NULL, project TEXT NOT NULL, model TEXT NOT NULL, day TEXT NOT NULL, ended_at INTEGER NOT NULL,
    lines INTEGER NOT NULL, copies INTEGER NOT NULL, input INTEGER NOT NULL, cached INTEGER NOT NULL,
    output INTEGER NOT NULL, reasoning INTEGER NOT NULL, images INTEGER NOT NULL, audio_seconds INTEGER NOT NULL,
    cost TEXT NOT NULL, cost_input TEXT NOT NULL, cost_output TEXT NOT NULL, cost_units TEXT NOT NULL,
    owner INTEGER NOT NULL, is_first INTEGER NOT NULL, PRIMARY KEY (id, model)
);
CREATE TABLE series (
    id TEXT PRIMARY KEY, at INTEGER NOT NULL, step INTEGER NOT NULL, points BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX series_by_time ON series (at);
CREATE TABLE throughput (
    project TEXT NOT NULL, at INTEGER NOT NULL, started INTEGER NOT NULL, completed INTEGER NOT NULL,
    failed INTEGER NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL, PRIMARY KEY (project, at)
) WITHOUT ROWID;
CREATE INDEX throughput_by_time ON throughput (at);
CREATE TABLE audit (
    id TEXT PRIMARY KEY, created_at INTEGER NOT NULL, project TEXT NOT NULL, actor TEXT NOT NULL,
    action TEXT NOT NULL, target TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE sessions_ended (id TEXT PRIMARY KEY, ended_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX audit_of ON audit (project, created_at, id);
CREATE INDEX audit_listed ON audit (created_at, id);
CREATE INDEX audit_by_action ON audit (action, created_at, id);
CREATE INDEX ledger_of ON ledger (project, ended_at);
CREATE INDEX ledger_by_time ON ledger (ended_at);
CREATE INDEX uploads_of ON uploads (project);
CREATE INDEX keys_unrevoked ON keys (project, expires_at) WHERE NOT revoked;
CREATE TABLE totals (
    project TEXT NOT NULL, kind TEXT NOT NULL, number INTEGER NOT NULL, amount INTEGER NOT NULL,
    PRIMARY KEY (project, kind)
) WITHOUT ROWID;
"""

_COUNTED = (
    ("files", "files", "(row.deleted_at IS NULL OR row.held)", "row.bytes"),
    ("batches", "batches", "1", "0"),
    ("batches", "running", "NOT row.over", "row.lines_left"),
    ("batches", "growing", "(NOT row.over AND row.input_bytes IS NOT NULL)", "row.input_bytes"),
)
"""The sums that triggers keep in `totals`: table, kind, condition of a row, and summed expression. Counting a
million rows instead takes 50 ms."""

_log = logging.getLogger(__name__)


class StateUnavailable(OSError):
    """The file cannot be read or written at the moment, mostly because its disk is full."""


class ViewDamaged(StateUnavailable):
    """The file was damaged and is deleted: the next process folds the log again."""


class Database:
    """An open file, locked by this process until `close`.

    Each call may raise `StateUnavailable`, after which the file is as it was before the call, or the transaction.
    """

    def __init__(self, folder: Path) -> None:
        """Open the file of the first folder that no other process holds (`lock_first_free`).

        An unreadable file is rebuilt. Damage of a page shows at the first statement that reads it: looking for
        it here would take a minute for some GB.

        Raises:
            OSError: The folder cannot be written, or too many processes hold theirs.
        """
        folder, self._lock = lock_first_free(folder)
        self.path = folder / "view.sqlite"
        try:
            self._connection = _open(self.path)
        except BaseException:
            os.close(self._lock)
            raise
        self._damage: Future[None] = Future()
        self._checkpoints = Checkpoints(self.path)

    def read(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self._disk_errors():
            return self._connection.execute(statement, _bound(statement, values)).fetchall()

    def first(self, statement: str, *values: object) -> Any:
        """The first column of the first row of a query; None without a row."""
        with self._disk_errors():
            row = self._connection.execute(statement, _bound(statement, values)).fetchone()
        return None if row is None else row[0]

    def read_apart(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a slow query, over its own connection; call it in a thread."""
        address = f"{self.path.absolute().as_uri()}?mode=ro"
        with self._disk_errors(), closing(sqlite3.connect(address, uri=True)) as connection:
            _add_functions(connection)
            return connection.execute(statement, _bound(statement, values)).fetchall()

    def each(self, statement: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """The rows of a query one by one. The caller must not await or write meanwhile."""
        with self._disk_errors():
            yield from self._connection.execute(statement, _bound(statement, values))

    def write(self, statement: str, *values: object) -> None:
        """Change rows, in a transaction of its own if none is open."""
        with self._disk_errors():
            self._connection.execute(statement, _bound(statement, values))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction; the block must not await."""
        self.write("BEGIN IMMEDIATE")
        try:
            yield
            self.write("COMMIT")
        finally:
            # On a full disk the commit fails, or SQLite has rolled back by itself.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    async def damaged(self) -> None:
        """Wait until a statement meets damage, then raise `ViewDamaged`."""
        await asyncio.shield(asyncio.wrap_future(self._damage))

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turn errors of the disk into `StateUnavailable`; delete a damaged file."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            # Errors of the module itself have no code.
            code = getattr(error, "sqlite_errorcode", 0) & PRIMARY_CODE
            if code not in DISK_CODES | DAMAGE_CODES:
                raise
            found = (ViewDamaged if code in DAMAGE_CODES else StateUnavailable)(error.sqlite_errorname)
            if code in DAMAGE_CODES and not self._damage.done():
                self._checkpoints.stop(waits=False)
                _delete(self.path)
                self._damage.set_exception(found)
            raise found from error

    def renew(self) -> None:
        """Replace the file by an empty one: deleting the rows of some GB would take minutes."""
        self._checkpoints.stop()
        self._connection.close()
        _delete(self.path)
        self._connection = _open(self.path)
        self._checkpoints = Checkpoints(self.path)

    def close(self) -> None:
        """Close the file and release it for other processes."""
        self._checkpoints.stop()
        self._connection.close()
        os.close(self._lock)


def _bound(statement: str, values: tuple[object, ...]) -> tuple[object, ...] | dict[str, object]:
    """The values as `sqlite3` takes them: placeholders with numbers (`?1`) are names to it (since Python 3.14)."""
    return {str(number): value for number, value in enumerate(values, 1)} if "?1" in statement else values


def _open(path: Path) -> sqlite3.Connection:
    connection = None
    try:
        connection = _connect(path)
        if connection.execute("PRAGMA user_version").fetchone() == (LAYOUT,):
            connection.execute("SELECT 1 FROM sqlite_schema")
            return connection
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & PRIMARY_CODE in DISK_CODES:
            # The file is intact: a rebuild would take long, and need more space on a full disk.
            raise OSError(f"{path} cannot be opened: {error}") from error
        _log.warning("rebuilding the view %s, which cannot be read (%s)", path.name, type(error).__name__)
    if connection is not None:
        connection.close()
    _delete(path)
    connection = _connect(path)
    connection.executescript(f"BEGIN; {_TABLES} {_triggers()} PRAGMA user_version = {LAYOUT}; COMMIT;")
    return connection


def _delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _triggers() -> str:
    """Triggers that keep `totals` current."""

    def moved(kind: str, which: str, amount: str, row: str, sign: str) -> str:
        which, amount = which.replace("row.", f"{row}."), amount.replace("row.", f"{row}.")
        return (
            f"INSERT INTO totals SELECT {row}.project, '{kind}', {sign}1, {sign}({amount}) WHERE {which}"
            " ON CONFLICT DO UPDATE SET number = number + excluded.number, amount = amount + excluded.amount;"
        )

    written = []
    for table, kind, which, amount in _COUNTED:
        came = moved(kind, which, amount, "NEW", "+")
        went = moved(kind, which, amount, "OLD", "-")
        written += [
            f"CREATE TRIGGER {kind}_came AFTER INSERT ON {table} BEGIN {came} END;",
            f"CREATE TRIGGER {kind}_went AFTER DELETE ON {table} BEGIN {went} END;",
            f"CREATE TRIGGER {kind}_changed AFTER UPDATE ON {table} BEGIN {went} {came} END;",
        ]
    return " ".join(written)


def _connect(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None)
    # A commit that a power cut undoes loses its offset too, so it need not reach the disk at once.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    # Bounds the WAL if the thread cannot make checkpoints.
    connection.execute(f"PRAGMA wal_autocheckpoint = {4 * WAL_PAGES_MAX}")
    _add_functions(connection)
    return connection


def _add_functions(connection: sqlite3.Connection) -> None:
    # The type does not say that an aggregate may return a text.
    connection.create_aggregate("exact_sum", 1, cast("Any", ExactSum))


def page_rows(
    database: Database,
    table: str,
    where: str,
    values: list[object],
    page: Page,
    *,
    project: str | None,
    source: str = "",
    body: str = "body",
) -> Iterator[tuple[str, bytes]]:
    """Id and body of up to `page.limit` + 1 rows one by one; the caller must not await or write meanwhile.

    The table may be joined with others in `source`; without a project, `page.after` may be of any.

    Raises:
        ApiError: 400, `page.after` is not a row of the project.
    """
    sign, order = ("<", "DESC") if page.newest_first else (">", "ASC")
    if page.after is not None:
        at = _created_at(database, table, project, page.after)
        where, values = f"{where} AND (created_at, id) {sign} (?, ?)", [*values, at, page.after]
    yield from database.each(
        f"SELECT id, {body} FROM {source or table} WHERE {where}"  # noqa: S608  names and conditions of this package
        f" ORDER BY created_at {order}, id {order} LIMIT ?",
        *values, page.limit + 1,
    )  # fmt: skip


def scanned_rows(
    database: Database,
    table: str,
    where: tuple[str, list[object]],
    scan: tuple[str, list[object]],
    page: Page,
    *,
    project: str,
    source: str,
    body: str,
) -> tuple[list[tuple[str, bytes]], str | None]:
    """Up to `page.limit` rows that meet `scan`, among the next `SCAN_ROWS_MAX` rows of `page_rows` for `where`.

    Returns:
        Ids and bodies, and the id that the next page comes after; None if no row is left.

    Raises:
        ApiError: 400, `page.after` is not a row of the project.
    """
    window = Page(limit=SCAN_ROWS_MAX, after=page.after, newest_first=page.newest_first)
    columns = f"CASE WHEN {scan[0]} THEN {body} END"
    rows: list[tuple[str, bytes]] = []
    last = None
    # The values of the columns come first in the statement.
    values = [*scan[1], *where[1]]
    found = page_rows(database, table, where[0], values, window, project=project, source=source, body=columns)
    for count, (row_id, content) in enumerate(found):
        if count == SCAN_ROWS_MAX or len(rows) == page.limit:
            return rows, last
        last = row_id
        if content is not None:
            rows.append((row_id, content))
    return rows, None


def _created_at(database: Database, table: str, project: str | None, object_id: str) -> int:
    # A client may delete the batches of a page before it asks for the next one; of a new batch this process may
    # have only the claim.
    for source in (table, "erasures", "claims") if table == "batches" else (table,):
        statement = f"SELECT created_at FROM {source} WHERE id = ? AND coalesce(?, project) = project"  # noqa: S608  named above
        at: int | None = database.first(statement, object_id, project)
        if at is not None:
            return at
    raise errors.unknown_cursor(object_id)
