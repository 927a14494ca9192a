"""The claims of batches as the log tells of them: who was first to name a batch, and with what."""

from tidemill.api.view.sqlite import Database
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import Claim
from tidemill.schemas.ports import Clock

CLAIM_SECONDS_MAX = topics.CLAIMS.retention_ms // 1000
"""As long as the log keeps them."""
REPEAT_SECONDS_MAX = 120
"""How long after a create its repetition is taken for the same create."""


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


def _claim(rows: list[tuple[object, ...]]) -> Claim | None:
    if not rows:
        return None
    body = rows[0][0]
    assert isinstance(body, bytes)
    return codec.decode_claim(body)
