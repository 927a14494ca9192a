"""Batches that were deleted while the log may have lines of them, as `tidemill.secrets` tells."""

from tidemill.api.view.sqlite import Database
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import Erasure


class Erasures:
    """In the file of the view, for as long as the log may have the lines."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, batch_id: str, erasure: Erasure) -> None:
        """Remember that a batch is deleted."""
        self._database.write("INSERT OR IGNORE INTO erasures VALUES (?, ?)", batch_id, erasure.project)

    def fold(self, key: str, value: bytes | None, offset: int) -> None:
        """Take a record of the topic.

        Raises:
            DecodeError: It cannot be read.
        """
        del offset
        if value is None:
            self._database.write("DELETE FROM erasures WHERE id = ?", key)
        else:
            self.put(key, codec.decode_erasure(value))

    def is_deleted(self, batch_id: str, project: str | None = None) -> bool:
        """Whether a batch, of this project where one is named, is deleted."""
        statement = "SELECT 1 FROM erasures WHERE id = ? AND coalesce(?, project) = project"
        return bool(self._database.read(statement, batch_id, project))

    def forbid(self, batch_id: str) -> bool:
        """Whether a batch's lines are not to be run again: it is deleted, or is over and its input is gone."""
        return bool(
            self._database.read(
                "SELECT 1 FROM erasures WHERE id = ? UNION ALL"
                " SELECT 1 FROM batches WHERE id = ? AND over AND NOT EXISTS"
                " (SELECT 1 FROM files WHERE files.id = input_file_id AND deleted_at IS NULL)",
                batch_id, batch_id,
            )
        )  # fmt: skip
