"""How what the log says of a batch meets what this process knows already: nothing ever goes back.

The api shows its own writes before `results` has published them, and a record may be older than what is shown:
the one that was on its way while a cancel was asked for, or one that is read once more. So a batch is shown as
the furthest state seen, and its counts as the highest.
"""

import re
from typing import Final

from tidemill.schemas.resources.batch import Batch, BatchError, BatchErrors, Progress, RequestCounts, Status

# A quote within a string is escaped in JSON, so this is found where it is a field; no field of it is an object.
_PROGRESS: Final = re.compile(rb'"progress":(\{"percent":[^{}]*\})')

FAULTS_LISTED_MAX = 3
"""Entries of `errors.data` of a batch in a list, of the up to 1,000 that the batch has."""

# Finalizing may be told of after a cancel was sent that comes too late: what follows both decides.
_RANK = {
    Status.VALIDATING: 0,
    Status.IN_PROGRESS: 1,
    Status.FINALIZING: 2,
    Status.CANCELLING: 3,
    Status.FAILED: 4,
    Status.COMPLETED: 4,
    Status.EXPIRED: 4,
    Status.CANCELLED: 4,
}
_TIMES = ("in_progress_at", "finalizing_at", "cancelling_at")


def merge(shown: Batch | None, told: Batch) -> Batch:
    """The batch to show, given the one shown and one that the log tells of."""
    if shown is None:
        return told
    if told.status.is_terminal:
        # The last record has its counts, times and files from one step, and stands as it is.
        return told
    if shown.status.is_terminal:
        return shown
    ahead, behind = (told, shown) if _RANK[told.status] >= _RANK[shown.status] else (shown, told)
    known = {name: getattr(behind, name) for name in _TIMES if getattr(ahead, name) is None}
    return ahead.model_copy(
        update=known
        | {
            "request_counts": _highest(shown.request_counts, told.request_counts),
            "model": ahead.model or behind.model,
            "usage": told.usage or shown.usage,
            "tidemill": told.tidemill,
        }
    )


def cancelled(shown: Batch, at: int) -> Batch:
    """The batch after a cancel was asked for: one that is over, or being cancelled, stays as it is."""
    if _RANK[shown.status] >= _RANK[Status.CANCELLING]:
        return shown
    return shown.model_copy(update={"status": Status.CANCELLING, "cancelling_at": at})


def listed(batch: Batch) -> bytes | None:
    """The batch as a list shows it, in JSON: the first of its faults, and how many more there are; None as it is.

    A client that reads `errors.data` of a failed batch finds a code, a message and a line there, as in the batch.
    """
    faults = batch.errors.data if batch.errors is not None else ()
    if len(faults) <= FAULTS_LISTED_MAX:
        return None
    left_out = len(faults) - FAULTS_LISTED_MAX + 1
    more = BatchError(
        code="too_many_errors",
        message=f"{left_out} more entries are not in a list of batches: GET /v1/batches/{batch.id} has them.",
    )
    errors = BatchErrors(data=(*faults[: FAULTS_LISTED_MAX - 1], more))
    return batch.model_copy(update={"errors": errors}).model_dump_json().encode()


def _highest(left: RequestCounts, right: RequestCounts) -> RequestCounts:
    return RequestCounts(
        total=max(left.total, right.total),
        completed=max(left.completed, right.completed),
        failed=max(left.failed, right.failed),
    )


def current(body: bytes, now: float) -> bytes:
    """A batch as JSON, with the progress that holds at a time.

    A rate, an ETA and a slack are shown only while what they rest on is true, however old the record is.

    Args:
        body: As the view keeps it.
        now: Unix seconds.
    """
    if (found := _PROGRESS.search(body)) is None:
        return body
    told = Progress.model_validate_json(found[1])
    if (seen := told.at(now)) is told:
        return body
    return b"%b%b%b" % (body[: found.start(1)], seen.model_dump_json().encode(), body[found.end(1) :])
