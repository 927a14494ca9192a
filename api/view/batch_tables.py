"""Small tables: claims of ids, deletions, links to reruns, when the view was current; and readers of a file."""

import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

from tidemill.api.view.sqlite import Database
from tidemill.schemas.bounds import RERUNS_MAX
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import Claim, Erasure
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.batch import Batch

CLAIM_SECONDS_MAX = topics.CLAIMS.retention_ms // 1000
"""The retention of the topic."""
PROMISE_SECONDS_MAX = 3_600
"""How long a claim counts as a running batch: some never become one, after a crash or as a repeated create."""
REPEAT_SECONDS_MAX = 120
"""How long a retry after a create counts as the same create."""

_DAY_SECONDS: Final = 86_400
AWAY_SECONDS_MAX: Final = topics.TOMBSTONE_MS // 1000 - _DAY_SECONDS
"""How long ago a view may have been current; the day is for reading."""

_log: Final = logging.getLogger(__name__)

# A batch may name any id as its input, so only those of the file's project count.
_OF_PROJECT = "project = coalesce((SELECT project FROM files WHERE id = ?1), project)"
_READERS = f"SELECT id, over, 0 FROM batches WHERE input_file_id = ?1 AND {_OF_PROJECT}"  # noqa: S608  no values
# By name: SQLite would read all batches of an input that most of them have done with.
_OPEN_READERS = (
    "SELECT id, over, 0 FROM batches INDEXED BY batches_open"  # noqa: S608  no values
    f" WHERE input_file_id = ?1 AND NOT over AND {_OF_PROJECT}"
)
_CLAIMANTS = (
    f"SELECT id, 0, 1 FROM claims WHERE input_file_id = ?1 AND {_OF_PROJECT} AND created_at > ?2"  # noqa: S608  no values
    " AND NOT EXISTS (SELECT 1 FROM batches WHERE batches.id = claims.id)"
    " AND NOT EXISTS (SELECT 1 FROM erasures WHERE erasures.id = claims.id)"
)


class Reader(NamedTuple):
    """A batch with a file as its input."""

    batch_id: str
    is_over: bool
    is_claim: bool
    """Whether the log has only its claim, which may never become a batch."""


class Claims:
    """Claims in the file of the view; the first claim of a batch id stays."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.seen: int = database.first("SELECT coalesce(max(place) + 1, 0) FROM claims")
        """The offset after the last claim that was read."""

    def first(self, project: str, batch_id: str) -> Claim | None:
        """The first claim of a batch id."""
        return _claim(
            self._database.first("SELECT body FROM claims WHERE id = ? AND project = ?", batch_id, project)
        )

    def repeated(self, project: str, fingerprint: str) -> Claim | None:
        """The create that a retry of the same request repeats, of the last `REPEAT_SECONDS_MAX`.

        That is the latest first try, or the one that it stands for. If none has arrived, it is the earliest of the
        retries, so that the next one finds the same.
        """
        latest = self._alike(project, fingerprint, "is_retry, CASE WHEN is_retry THEN place ELSE -place END")
        return latest and self.stands_for(latest)

    def stands_for(self, claim: Claim) -> Claim:
        """The claim that a first try stands for: that of its retry, if the retry came to the log before it.

        Only the earliest first try has one: a retry behind it has found it, and makes no batch. A retry that was
        in the log when the request of the first try came belongs to another one, which was lost.
        """
        project = claim.command.project
        earliest = self._alike(project, claim.fingerprint, "place")
        if claim.is_retry or earliest is None or not earliest.is_retry:
            return claim
        if self._database.first("SELECT place FROM claims WHERE id = ?", earliest.command.batch.id) < claim.seen:
            return claim
        first = self._alike(project, claim.fingerprint, "is_retry, place")
        is_first = first is not None and first.command.batch.id == claim.command.batch.id
        return earliest if is_first else claim

    def _alike(self, project: str, fingerprint: str, order: str) -> Claim | None:
        """The first claim of a request in an order, of the last `REPEAT_SECONDS_MAX`."""
        body = self._database.first(
            "SELECT body FROM claims WHERE project = ? AND fingerprint = ? AND created_at >= ?"  # noqa: S608  an order of this class
            f" AND id NOT IN (SELECT id FROM erasures) ORDER BY {order} LIMIT 1",
            project, fingerprint, int(self._clock()) - REPEAT_SECONDS_MAX,
        )  # fmt: skip
        return _claim(body)

    def fold(self, key: str, value: bytes | None, offset: int) -> None:
        """Fold a record of the topic; raises `DecodeError`."""
        del key
        claim = codec.decode_claim(value)
        self.seen = offset + 1
        batch = claim.command.batch
        self._database.write(
            "INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            batch.id, claim.command.project, claim.fingerprint, batch.created_at, claim.is_retry, offset,
            batch.input_file_id, codec.encode(claim),
        )  # fmt: skip
        self._database.write("DELETE FROM claims WHERE created_at < ?", int(self._clock()) - CLAIM_SECONDS_MAX)


class Erasures:
    """Deleted batches, for as long as the log may have their lines."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, batch_id: str, erasure: Erasure) -> None:
        """Mark a batch as deleted; the view keeps its place in lists, so that a page can begin after it."""
        self._database.write(
            "INSERT OR IGNORE INTO erasures"
            " SELECT ?1, ?2, (SELECT created_at FROM batches WHERE id = ?1), ?3",
            batch_id, erasure.project, erasure.input_file_id,
        )  # fmt: skip

    def fold(self, key: str, value: bytes | None, offset: int) -> None:
        """Fold a record of the topic; raises `DecodeError`."""
        del offset
        if value is None:
            self._database.write("DELETE FROM erasures WHERE id = ?", key)
        else:
            self.put(key, codec.decode_erasure(value))

    def is_deleted(self, project: str, batch_id: str) -> bool:
        """Whether a batch of a project is deleted."""
        statement = "SELECT 1 FROM erasures WHERE id = ? AND project = ?"
        return self._database.first(statement, batch_id, project) is not None

    def input_of(self, project: str, batch_id: str) -> str | None:
        """The input of a deleted batch, empty if the project never had that file; None for any other batch."""
        statement = "SELECT input_file_id FROM erasures WHERE id = ? AND project = ?"
        found: str | None = self._database.first(statement, batch_id, project)
        return found

    def forbids(self, batch_id: str) -> bool:
        """Whether the lines of a batch must not run again: it is deleted, or it ended and its input is deleted."""
        statement = (
            "SELECT 1 FROM erasures WHERE id = ?1 UNION ALL"
            " SELECT 1 FROM batches WHERE id = ?1 AND over AND NOT EXISTS"
            " (SELECT 1 FROM files WHERE files.id = input_file_id AND files.project = batches.project"
            " AND deleted_at IS NULL)"
        )
        return self._database.first(statement, batch_id) is not None


class Links:
    """Reruns of batches. A batch and its reruns share a project, so one check of access covers them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, batch: Batch) -> None:
        """Link a rerun to its batch."""
        if (source := batch.tidemill.rerun_of) is not None:
            self._database.write(
                "INSERT OR IGNORE INTO reruns VALUES (?, ?, ?)", source, batch.created_at, batch.id
            )

    def drop(self, batch_id: str) -> None:
        """Remove a deleted batch."""
        self._database.write("DELETE FROM reruns WHERE id = ? OR source = ?", batch_id, batch_id)

    def with_reruns(self, batch_ids: Sequence[str]) -> set[str]:
        """The batches among these that have reruns."""
        rows = self._database.read(
            f"SELECT DISTINCT source FROM reruns WHERE source IN ({','.join('?' * len(batch_ids))})",  # noqa: S608  no values
            *batch_ids,
        )
        return {source for (source,) in rows}

    def add_reruns(self, batch_id: str, body: bytes) -> bytes:
        """A batch as JSON with its reruns, the oldest first."""
        rows = self._database.read(
            "SELECT id FROM reruns WHERE source = ? ORDER BY created_at DESC, id DESC LIMIT ?",
            batch_id,
            RERUNS_MAX,
        )
        if not rows:
            return body
        batch = Batch.model_validate_json(body)
        extras = batch.tidemill.model_copy(update={"reruns": tuple(rerun for (rerun,) in reversed(rows))})
        return batch.model_copy(update={"tidemill": extras}).model_dump_json().encode()


def renew_outdated(database: Database, now: float) -> None:
    """Empty a view that was current more than `AWAY_SECONDS_MAX` ago, before anything else uses it.

    Kafka may have dropped tombstones since that the view never saw.
    """
    marked = database.first("SELECT at FROM current")
    # A clock that was ahead when it was marked says nothing.
    if marked is not None and not -_DAY_SECONDS <= (away := now - marked) <= AWAY_SECONDS_MAX:
        _log.warning("the view was last current %.0f days ago; folding it again", away / _DAY_SECONDS)
        database.renew()
        marked = None
    if marked is None:
        mark_current(database, now)


def mark_current(database: Database, now: float) -> None:
    """Note that the view has the records of all compacted topics, or of none."""
    with database.transaction():
        database.write("DELETE FROM current")
        database.write("INSERT INTO current VALUES (?)", int(now))


def readers(database: Database, now: float, file_id: str) -> list[Reader]:
    """The batches with a file as their input.

    The log has the claim of a batch before a client hears of the batch; results publishes its record later. This
    asks the rows each time, since the topics of the log are folded in any order.
    """
    rows = database.read(f"{_READERS} UNION ALL {_CLAIMANTS}", file_id, int(now) - PROMISE_SECONDS_MAX)
    return [Reader(batch_id, bool(over), bool(claim)) for batch_id, over, claim in rows]


def is_read(database: Database, now: float, file_id: str) -> bool:
    """Whether a batch that is not over reads a file, which need not have a record."""
    statement = f"{_OPEN_READERS} UNION ALL {_CLAIMANTS}"
    return database.first(statement, file_id, int(now) - PROMISE_SECONDS_MAX) is not None


def _claim(body: bytes | None) -> Claim | None:
    return None if body is None else codec.decode_claim(body)
