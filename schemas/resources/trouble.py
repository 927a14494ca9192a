"""What an operator looks for in a list of batches: those that wait, that will end late, or that have failures."""

from enum import StrEnum

from tidemill.schemas.resources.batch import Batch, Progress, Status
from tidemill.schemas.resources.waiting import USUAL


class Trouble(StrEnum):
    """A filter of lists of batches; docs/reference/api/batches.md says what each finds."""

    STALLED = "stalled"
    """Unfinished, and its lines wait longer than usual."""
    LATE = "late"
    """Unfinished, and expected to end after its deadline."""
    FAILURES = "failures"
    """Lines failed or became dead letters, or the batch failed or expired."""


def is_stalled(batch: Batch) -> bool:
    """Whether lines of a batch wait longer than usual."""
    return not batch.status.is_terminal and any(wait.reason not in USUAL for wait in batch.tidemill.waiting)


def has_failures(batch: Batch) -> bool:
    """Whether something of a batch failed."""
    is_broken = batch.status in {Status.FAILED, Status.EXPIRED}
    return is_broken or batch.request_counts.failed > 0 or batch.tidemill.fault is not None


def late_at(batch: Batch) -> int:
    """When an unfinished batch begins to count as late, Unix seconds, unless a later record changes it."""
    progress = batch.tidemill.progress
    known = None if progress is None else _behind_at(progress)
    return batch.expires_at if known is None else min(known, batch.expires_at)


def _behind_at(progress: Progress) -> int | None:
    """When `Progress.at` begins to show a slack below zero; None for never."""
    if progress.slack_seconds is None or progress.slack_seconds < 0:
        return None if progress.slack_seconds is None else 0
    if progress.lines_per_second is None or progress.observed_at is None:
        return None
    gone_at = progress.observed_at + progress.slack_seconds + 1
    if not progress.lines_per_second:
        return gone_at
    return None if progress.holds_until is None else max(gone_at, progress.holds_until)
