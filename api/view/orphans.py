"""Orphans: objects of the store that no record names, each with the time when this process first saw it."""

from collections.abc import Iterable

from tidemill.api.view.batch_tables import is_read
from tidemill.api.view.sqlite import Database
from tidemill.schemas import ids
from tidemill.schemas.bounds import OUTPUTS_MAX
from tidemill.schemas.log.part import INDICES_PREFIX, file_id_of, indexed_key
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.resources.file import file_kind

ORPHAN_SECONDS_MIN = 86_400
"""How long an object may exist without a record."""
ORPHANS_MAX = 100_000
"""Objects that are tracked at a time; others wait."""


class Orphans:
    """Objects in the file of the view, so that their age survives a restart."""

    PREFIXES = ("files/", "uploads/", INDICES_PREFIX)
    """Prefixes of objects that records name; the index of a file belongs to its record."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def track(self, keys: Iterable[str]) -> list[str]:
        """Start to track the objects without a record among these; returns those that `is_old`."""
        unnamed = [key for key in keys if not self.is_named(key)]
        now = int(self._clock())
        with self._database.transaction():
            room = ORPHANS_MAX - self._database.first("SELECT count(*) FROM orphans")
            new = [key for key in unnamed if self._seen_at(key) is None]
            for key in new[: max(0, room)]:
                self._database.write("INSERT OR IGNORE INTO orphans VALUES (?, ?)", key, now)
        return [key for key in unnamed if self.is_old(key)]

    def outer_keys(self) -> list[str]:
        """The objects of the oldest and of the newest file; none if all files are deleted."""
        statement = "SELECT key FROM files WHERE deleted_at IS NULL ORDER BY rowid {} LIMIT 1"
        return [key for order in ("ASC", "DESC") for (key,) in self._database.read(statement.format(order))]

    def is_old(self, key: str) -> bool:
        """Whether an object has had no record for `ORPHAN_SECONDS_MIN`."""
        seen_at = self._seen_at(key)
        return seen_at is not None and seen_at + ORPHAN_SECONDS_MIN <= self._clock() and not self.is_named(key)

    def _seen_at(self, key: str) -> int | None:
        """When this process first saw an object without a record."""
        seen_at: int | None = self._database.first("SELECT seen_at FROM orphans WHERE key = ?", key)
        return seen_at

    def unfinished_outputs(self) -> set[str]:
        """Ids of files of batches that run for `ORPHAN_SECONDS_MIN` or longer; call this in a thread.

        No object that was old before the call belongs to a younger batch.
        Results may have written such a file long before its record, and write it again at any time.
        """
        created_at_max = int(self._clock()) - ORPHAN_SECONDS_MIN
        rows = self._database.read_apart(
            "SELECT body FROM batches WHERE NOT over AND created_at <= ?", created_at_max
        )
        found: set[str] = set()
        for (body,) in rows:
            batch = Batch.model_validate_json(body)
            numbers = [None] if batch.tidemill.numbered is None else range(1, OUTPUTS_MAX + 1)
            kinds = [file_kind(failed=True), *(file_kind(failed=False, number=number) for number in numbers)]
            found.update(ids.derived_file_id(batch.id, kind) for kind in kinds)
        return found

    def forget(self, key: str) -> None:
        """Stop tracking a deleted object."""
        self._database.write("DELETE FROM orphans WHERE key = ?", key)

    def forget_all(self) -> None:
        """Stop tracking all objects."""
        self._database.write("DELETE FROM orphans")

    def forget_named(self) -> None:
        """Stop tracking objects that have a record by now, or that another process deleted."""
        oldest = int(self._clock()) - 2 * ORPHAN_SECONDS_MIN
        self._database.write(
            "DELETE FROM orphans WHERE seen_at < ?"
            " OR EXISTS (SELECT 1 FROM parts WHERE parts.key = orphans.key)"
            # With `IN` SQLite would read all files first.
            " OR EXISTS (SELECT 1 FROM files WHERE files.key = orphans.key AND (deleted_at IS NULL OR held))",
            oldest,
        )

    def is_named(self, key: str) -> bool:
        """Whether a record names an object, or a running batch reads it."""
        if key.startswith(INDICES_PREFIX):
            key = indexed_key(key)
        # The bytes of a deleted file that could not be removed are orphans too.
        statement = (
            "SELECT 1 FROM files WHERE key = ?1 AND (deleted_at IS NULL OR held)"
            " UNION ALL SELECT 1 FROM parts WHERE key = ?1"
        )
        if self._database.first(statement, key) is not None:
            return True
        # A view that was made anew may lack the record of a deleted input, but has the batch that reads it.
        return is_read(self._database, self._clock(), file_id_of(key))
