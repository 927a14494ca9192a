"""Small tables about batches, folded from the log: claims of their ids, deletions, and who reran whom."""

from typing import Final

from tidemill.api.view.sqlite import Database
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import Claim, Erasure
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.batch import Batch

CLAIM_SECONDS_MAX = topics.CLAIMS.retention_ms // 1000
"""As long as the log keeps them."""
REPEAT_SECONDS_MAX = 120
"""How long after a create its repetition is taken for the same create."""
RERUNS_MAX: Final = 100
"""Of a batch, the newest that are shown."""


class Claims:
    """In the file of the view; what is said of a batch id first, stays."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def first(self, project: str, batch_id: str) -> Claim | None:
        """The claim that a batch id stands for."""
        rows = self._database.read("SELECT body FROM claims WHERE id = ? AND project = ?", batch_id, project)
        return _claim(rows)

    def repeated(self, project: str, fingerprint: str) -> Claim | None:
        """The create that a retry of the same request repeats, of the last `REPEAT_SECONDS_MAX`.

        That is the latest first try. Where none has arrived it is the earliest of the retries, so that the next
        one finds the same.
        """
        rows = self._database.read(
            "SELECT body FROM claims WHERE project = ? AND fingerprint = ? AND created_at >= ?"
            " AND id NOT IN (SELECT id FROM erasures)"
            " ORDER BY is_retry, CASE WHEN is_retry THEN place ELSE -place END LIMIT 1",
            project, fingerprint, int(self._clock()) - REPEAT_SECONDS_MAX,
        )  # fmt: skip
        return _claim(rows)

    def fold(self, key: str, value: bytes | None, offset: int) -> None:
        """Take a record of the topic.

        Raises:
            DecodeError: It cannot be read.
        """
        del key
        claim = codec.decode_claim(value)
        batch = claim.command.batch
        self._database.write(
            "INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?, ?, ?, ?)",
            batch.id, claim.command.project, claim.fingerprint, batch.created_at, claim.is_retry, offset,
            codec.encode(claim),
        )  # fmt: skip
        self._database.write("DELETE FROM claims WHERE created_at < ?", int(self._clock()) - CLAIM_SECONDS_MAX)


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


def _claim(rows: list[tuple[object, ...]]) -> Claim | None:
    if not rows:
        return None
    body = rows[0][0]
    assert isinstance(body, bytes)
    return codec.decode_claim(body)
