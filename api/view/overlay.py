"""Merges a record of a batch with the batch that the view shows, which never goes back.

The api shows its own writes before results has published them, so a record may be older than the view: it was on
its way during a cancel, or it is read again. The view shows the furthest state and the highest counts of them.
"""

import re
from typing import Final

from tidemill.schemas.lifecycle import RANK
from tidemill.schemas.resources.batch import (
    Batch,
    BatchError,
    BatchErrors,
    Extras,
    Progress,
    RequestCounts,
    Status,
)
from tidemill.schemas.resources.waiting import WAITING_MAX, Reason, Waiting, moment
from tidemill.wording import counted

_UNREAD: Final = "Nothing has been read from the log since {}: this is the state of the batch then."
# JSON escapes quotes within strings, so this matches only the field. Its usage and cost are objects; no text in it
# has braces.
_PROGRESS: Final = re.compile(rb'"progress":(\{"percent":(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})')

FAULTS_LISTED_MAX = 3
"""Entries of `errors.data` that a list shows of up to 1,000."""

_TIMES = ("in_progress_at", "finalizing_at", "cancelling_at")


def merge(shown: Batch | None, record: Batch) -> Batch:
    """The batch to show, given the one shown and a record of the log."""
    if shown is None:
        return record
    if record.status.is_terminal:
        # The last record has counts, times and files of one step, and replaces everything.
        return record
    if shown.status.is_terminal:
        return shown
    ahead, behind = (record, shown) if RANK[record.status] >= RANK[shown.status] else (shown, record)
    known = {name: getattr(behind, name) for name in _TIMES if getattr(ahead, name) is None}
    if ahead.cancelling_at is not None:
        # The record of the cancel has a later time, or none of these.
        known = {name: at for name, at in known.items() if at is not None and at <= ahead.cancelling_at}
    return ahead.model_copy(
        update=known
        | {
            "request_counts": _highest(shown.request_counts, record.request_counts),
            "model": ahead.model or behind.model,
            "usage": record.usage or shown.usage,
            "tidemill": _furthest(shown.tidemill, record.tidemill),
        }
    )


def sealed(shown: Batch) -> Batch:
    """The batch after a seal."""
    return shown.model_copy(update={"tidemill": shown.tidemill.model_copy(update={"open": False})})


def appended(shown: Batch, size: int) -> Batch:
    """The batch after an append of `size` bytes, which count before ingest has read them."""
    size += shown.tidemill.input_bytes or 0
    return shown.model_copy(update={"tidemill": shown.tidemill.model_copy(update={"input_bytes": size})})


def cancelled(shown: Batch, at: int) -> Batch:
    """The batch after a cancel; an ended or cancelling one stays as it is."""
    if RANK[shown.status] >= RANK[Status.CANCELLING]:
        return shown
    return shown.model_copy(update={"status": Status.CANCELLING, "cancelling_at": at})


def listed(batch: Batch) -> bytes | None:
    """The JSON of the batch in a list: its first errors and the number of others; None if it is the same.

    A client that reads `errors.data` of a failed batch finds a code, a message and a line there, as in the batch.
    """
    faults = batch.errors.data if batch.errors is not None else ()
    if len(faults) <= FAULTS_LISTED_MAX:
        return None
    left_out = len(faults) - FAULTS_LISTED_MAX + 1
    more = BatchError(
        code="too_many_errors",
        message=f"Not in lists of batches: {counted(left_out, 'more entry')}. GET /v1/batches/{batch.id} has all.",
    )
    errors = BatchErrors(data=(*faults[: FAULTS_LISTED_MAX - 1], more))
    return batch.model_copy(update={"errors": errors}).model_dump_json().encode()


def searched(batch: Batch) -> tuple[str, str]:
    """The texts that a search matches: models between newlines; name, metadata and file ids in lower case."""
    models = dict.fromkeys([batch.model, *(one.model for one in batch.tidemill.models or ())])
    names = "\n".join(name for name in models if name is not None)
    files = (batch.input_file_id, batch.output_file_id, batch.error_file_id)
    texts = [batch.tidemill.name, *(batch.metadata or {}).values(), *files]
    return f"\n{names}\n", "\n".join(text for text in texts if text is not None).lower()


def _furthest(shown: Extras, record: Extras) -> Extras:
    """The newer ones, in which a sealed stream stays so, and neither its sequence nor its bytes go back."""
    if shown.stream is None:
        return record
    sequence = max(shown.sequence or 0, record.sequence or 0) or None
    # Null from the seal on: then the input is a file.
    is_growing = shown.input_bytes is not None and record.input_bytes is not None
    size = max(shown.input_bytes or 0, record.input_bytes or 0) if is_growing else None
    return record.model_copy(
        update={"open": shown.open and record.open, "sequence": sequence, "input_bytes": size}
    )


def _highest(left: RequestCounts, right: RequestCounts) -> RequestCounts:
    return RequestCounts(
        total=max(left.total, right.total),
        completed=max(left.completed, right.completed),
        failed=max(left.failed, right.failed),
    )


def unread(body: bytes, since: float) -> bytes:
    """A batch as JSON; one at work says as its first reason to wait since when the log has not been read."""
    batch = Batch.model_validate_json(body)
    if batch.status.is_terminal:
        return body
    counts = batch.request_counts
    lines = max(0, counts.total - counts.completed - counts.failed)
    said = Waiting.of(Reason.DELIVERY, _UNREAD.format(moment(int(since))), lines=lines, since=since)
    waiting = (said, *batch.tidemill.waiting)[:WAITING_MAX]
    extras = batch.tidemill.model_copy(update={"waiting": waiting})
    return batch.model_copy(update={"tidemill": extras}).model_dump_json().encode()


def current(body: bytes, now: float) -> bytes:
    """A batch as JSON, with its progress at a time, Unix seconds.

    It shows rate, ETA and slack only while they are current.
    """
    if (found := _PROGRESS.search(body)) is None:
        return body
    progress = Progress.model_validate_json(found[1])
    if (seen := progress.at(now)) is progress:
        return body
    return b"%b%b%b" % (body[: found.start(1)], seen.model_dump_json().encode(), body[found.end(1) :])
