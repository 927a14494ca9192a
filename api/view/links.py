"""Which batches are made of the lines of which: told by the newer one, and found here from the older one."""

from typing import Final

from tidemill.api.view.sqlite import Database
from tidemill.schemas.resources.batch import Batch

RERUNS_MAX: Final = 100
"""Of a batch, the newest that are shown."""


class Links:
    """Batches and their reruns, in the view's database. One check of access covers them: they share a project."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, batch: Batch) -> None:
        """Remember what a batch is made of."""
        if (source := batch.tidemill.rerun_of) is not None:
            self._database.write(
                "INSERT OR IGNORE INTO reruns VALUES (?, ?, ?)", source, batch.created_at, batch.id
            )

    def drop(self, batch_id: str) -> None:
        """Forget a batch that is not there any more."""
        self._database.write("DELETE FROM reruns WHERE id = ? OR source = ?", batch_id, batch_id)

    def shown(self, batch_id: str, body: bytes) -> bytes:
        """A batch as JSON, with the batches that are made of it, the oldest first."""
        rows = self._database.read(
            "SELECT id FROM reruns WHERE source = ? ORDER BY created_at DESC, id DESC LIMIT ?",
            batch_id,
            RERUNS_MAX,
        )
        if not rows:
            return body
        batch = Batch.model_validate_json(body)
        extras = batch.tidemill.model_copy(update={"reruns": tuple(str(row[0]) for row in reversed(rows))})
        return batch.model_copy(update={"tidemill": extras}).model_dump_json().encode()
