"""Objects of the store that no record names, and since when this process has met them."""

from tidemill.api.view.sqlite import Database
from tidemill.schemas.log.part import INDICES_PREFIX, indexed_key
from tidemill.schemas.ports import Clock

STRAY_SECONDS_MIN = 86_400
"""How long an object may be there without a record."""
STRAYS_MAX = 100_000
"""As many are remembered at one time; the others wait for these to go."""


class Orphans:
    """In the file of the view, so that a restart does not make them young again."""

    PREFIXES = ("files/", "uploads/", INDICES_PREFIX)
    """Where the objects are that records name one by one; the columns of a file are named with it."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def is_old(self, key: str) -> bool:
        """Whether an object had no record for long; one that is met for the first time is young."""
        if self._is_named(key):
            return False
        now = int(self._clock())
        rows = self._database.read("SELECT met_at FROM strays WHERE key = ?", key)
        if rows:
            return int(str(rows[0][0])) + STRAY_SECONDS_MIN <= now
        if int(str(self._database.read("SELECT count(*) FROM strays")[0][0])) < STRAYS_MAX:
            self._database.write("INSERT INTO strays VALUES (?, ?)", key, now)
        return False

    def forget(self, key: str) -> None:
        """The object is gone."""
        self._database.write("DELETE FROM strays WHERE key = ?", key)

    def forget_named(self) -> None:
        """Forget objects that a record names by now, and those that others have deleted."""
        oldest = int(self._clock()) - 2 * STRAY_SECONDS_MIN
        self._database.write(
            "DELETE FROM strays WHERE met_at < ? OR key IN (SELECT key FROM parts)"
            " OR key IN (SELECT key FROM files WHERE deleted_at IS NULL OR held)",
            oldest,
        )

    def _is_named(self, key: str) -> bool:
        if key.startswith(INDICES_PREFIX):
            key = indexed_key(key)
        rows = self._database.read(
            # What could not be removed when its file was deleted goes from here.
            "SELECT 1 FROM files WHERE key = ? AND (deleted_at IS NULL OR held)"
            " UNION ALL SELECT 1 FROM parts WHERE key = ? LIMIT 1",
            key,
            key,
        )
        return bool(rows)
