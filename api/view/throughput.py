"""Throughput: how many lines ended when, by batch and by project, from the counts in records of batches.

It follows the folding of records, so it costs no record of its own. The log keeps the last record of each batch:
after a rebuild of the view, the lines of a batch count at its end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from tidemill.api.view.sqlite import Database
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.batch import Batch

STEP_SECONDS: Final = 5
"""The interval of a young batch; it doubles as often as the batch would have more than `POINTS_MAX` points."""
POINTS_MAX: Final = 240
MINUTE: Final = 60
KEPT_SECONDS: Final = 8 * 86_400
"""How long the view keeps the throughput of projects, and the series of a batch after its last line."""

Point = tuple[int, int, int, int, int | None]
"""The start of an interval, Unix seconds; at its end the completed and failed lines of the batch, its retries, and
the calls that its servers took at a time, None if no process has reported."""


@dataclass(frozen=True)
class ProjectInterval:
    """The lines that ended in an interval."""

    # The fields are in the order of the columns.

    at: int
    """Its start, Unix seconds."""
    started: int
    """Lines of batches that passed validation."""
    completed: int
    failed: int
    input_tokens: int
    """Tokens of batches that ended."""
    output_tokens: int


@dataclass(frozen=True)
class QueueRow:
    """Open batches of one state and the same models; the fields are in the order of the columns."""

    status: str
    models: str
    """See `overlay.searched`."""
    batches: int
    lines: int
    """Lines without a result."""
    oldest_at: int
    """When the oldest was created, Unix seconds."""
    lines_per_second: float | None
    """The sum of the rates last seen; None if none is known."""


class Throughput:
    """Throughput in the file of the view."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._purged_at = 0
        self.limit_of: Callable[[Batch], int | None] = lambda _: None
        """Returns the present concurrency limit of a batch's servers; None if unknown."""

    def add(self, project: str, before: Batch | None, after: Batch) -> None:
        """Count the lines that ended between two states of a batch."""
        old = before.request_counts if before is not None else None
        started, completed, failed = (
            max(0, getattr(after.request_counts, name) - (getattr(old, name) if old else 0))
            for name in ("total", "completed", "failed")
        )
        usage = after.usage if before is None or before.usage is None else None
        if not (started or completed or failed or usage):
            return
        at = _moment(after, int(self._clock()))
        self._database.write(
            "INSERT INTO throughput VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " started = started + excluded.started, completed = completed + excluded.completed,"
            " failed = failed + excluded.failed, input = input + excluded.input,"
            " output = output + excluded.output",
            project, at - at % MINUTE, started, completed, failed,
            usage.input_tokens if usage else 0, usage.output_tokens if usage else 0,
        )  # fmt: skip
        if at >= self._purged_at + MINUTE:
            self._purged_at = at
            self._purge(int(self._clock()) - KEPT_SECONDS)
        # A batch whose lines end all at once needs no series.
        if old is not None and (old.completed or old.failed or not after.status.is_terminal):
            self._append(after, at)

    def of_batch(self, batch: Batch) -> tuple[int, list[Point]]:
        """The interval in seconds, and the points of a batch, the oldest first."""
        step, points = self._series(batch.id)
        counts = batch.request_counts
        if not points and (counts.completed or counts.failed):
            at = _moment(batch, int(self._clock()))
            points = [(at - at % step, counts.completed, counts.failed, batch.tidemill.retries or 0, None)]
        return step, points

    def began_at(self) -> int:
        """The first minute in which lines of any project started or ended; the present one if there is none."""
        now = int(self._clock())
        return int(self._database.first("SELECT min(at) FROM throughput") or now - now % MINUTE)

    def intervals(self, project: str | None, start: int, step: int) -> list[ProjectInterval]:
        """Sums of intervals since a time, the oldest first; without a project, of all."""
        which, given = _of(project)
        rows = self._database.read_apart(
            "SELECT at - at % ?, sum(started), sum(completed), sum(failed), sum(input), sum(output)"  # noqa: S608
            f" FROM throughput WHERE at >= ?{which} GROUP BY 1 ORDER BY 1",
            step, start, *given,
        )  # fmt: skip
        return [ProjectInterval(*row) for row in rows]

    def busiest(self, start: int, limit: int) -> list[tuple[str, int]]:
        """The projects with the most ended lines since a time, and their number."""
        return self._database.read_apart(
            "SELECT project, sum(completed + failed) AS lines FROM throughput WHERE at >= ? GROUP BY 1"
            " HAVING lines > 0 ORDER BY 2 DESC, 1 LIMIT ?",
            start, limit,
        )  # fmt: skip

    def queues(self, project: str | None, limit: int) -> list[QueueRow]:
        """Open batches by state and models; without a project, of all."""
        which, given = _of(project)
        rows = self._database.read_apart(
            "SELECT status, models, count(*), sum(lines_left), min(created_at),"  # noqa: S608
            " sum(json_extract(body, '$.tidemill.progress.lines_per_second')) FROM batches"
            f" WHERE NOT over{which} GROUP BY 1, 2 ORDER BY 1, 2 LIMIT ?",
            *given, limit,
        )  # fmt: skip
        return [QueueRow(*row) for row in rows]

    def drop(self, batch_id: str) -> None:
        """Remove the series of a deleted batch."""
        self._database.write("DELETE FROM series WHERE id = ?", batch_id)

    def _purge(self, before: int) -> None:
        self._database.write("DELETE FROM throughput WHERE at < ?", before)
        # A batch that runs for longer keeps its series.
        self._database.write(
            "DELETE FROM series WHERE at < ? AND NOT EXISTS"
            " (SELECT 1 FROM batches WHERE batches.id = series.id AND NOT over)",
            before,
        )

    def _series(self, batch_id: str) -> tuple[int, list[Point]]:
        rows = self._database.read("SELECT step, points FROM series WHERE id = ?", batch_id)
        return (rows[0][0], orjson.loads(rows[0][1])) if rows else (STEP_SECONDS, [])

    def _append(self, batch: Batch, at: int) -> None:
        step, points = self._series(batch.id)
        counts = batch.request_counts
        retries, limit = batch.tidemill.retries or 0, self.limit_of(batch)
        step, points = appended(step, points, (at, counts.completed, counts.failed, retries, limit))
        self._database.write(
            "INSERT OR REPLACE INTO series VALUES (?, ?, ?, ?)", batch.id, at, step, orjson.dumps(points)
        )


def _of(project: str | None) -> tuple[str, tuple[str, ...]]:
    """A condition that an index answers, and its values."""
    return ("", ()) if project is None else (" AND project = ?", (project,))


def appended(step: int, points: Sequence[Point], point: Point) -> tuple[int, list[Point]]:
    """A series with one more point, in intervals so long that it has at most `POINTS_MAX`."""
    series = [*points, point]
    while True:
        latest: dict[int, Point] = {}
        last = 0
        for at, *counts, limit in series:
            # If the clock was set back, the point belongs to the last interval.
            last = max(last, at - at % step)
            known = latest.get(last)
            completed, failed, retries = counts
            # After the last call of the batch its servers may report no limit, so the known one stays.
            latest[last] = (last, completed, failed, retries, limit or (known[4] if known else None))
        if len(latest) <= POINTS_MAX:
            return step, list(latest.values())
        step *= 2


def _moment(batch: Batch, now: int) -> int:
    """When the counts in a batch's record were current, Unix seconds."""
    if batch.status.is_terminal:
        return batch.finalizing_at or batch.ended_at or now
    progress = batch.tidemill.progress
    return (progress.observed_at if progress else None) or now
