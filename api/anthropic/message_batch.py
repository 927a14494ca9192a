"""The message batch, as Anthropic's API shows it.

Source: Anthropic's API reference, "Message Batches", and `MessageBatch` of its SDKs.
"""

from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import BaseModel

from tidemill.api.batches import report
from tidemill.api.view.view import View
from tidemill.schemas import ids
from tidemill.schemas.resources.batch import Batch, Status

PATH: Final = "/v1/messages/batches"
ProcessingStatus = Literal["in_progress", "canceling", "ended"]


class RequestCounts(BaseModel):
    """The requests by their state; until the batch ends, all are `processing`."""

    processing: int = 0
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0


class MessageBatch(BaseModel):
    """A message batch. Times are RFC 3339."""

    id: str
    """The id of the batch, the same as in OpenAI's API."""
    type: Literal["message_batch"] = "message_batch"
    processing_status: ProcessingStatus
    request_counts: RequestCounts
    created_at: str
    expires_at: str
    ended_at: str | None
    cancel_initiated_at: str | None
    archived_at: None = None
    """Always null: `results_url` is null once the results are deleted."""
    results_url: str | None
    """The path of the results, for the `base_url` of an SDK: behind a proxy the api does not know its address."""


def processing_status(status: Status) -> ProcessingStatus:
    """Anthropic's word for a status."""
    if status.is_terminal:
        return "ended"
    return "canceling" if status is Status.CANCELLING else "in_progress"


def shown(view: View, project: str, batch: Batch) -> MessageBatch:
    """A batch of the endpoint `/v1/messages`."""
    has_ended = batch.status.is_terminal
    return MessageBatch(
        id=batch.id,
        processing_status=processing_status(batch.status),
        request_counts=_counts(view, project, batch),
        created_at=_time(batch.created_at),
        expires_at=_time(batch.expires_at),
        ended_at=None if batch.ended_at is None else _time(batch.ended_at),
        cancel_initiated_at=None if batch.cancelling_at is None else _time(batch.cancelling_at),
        results_url=f"{PATH}/{batch.id}/results" if has_ended and has_results(view, project, batch) else None,
    )


def has_results(view: View, project: str, batch: Batch) -> bool:
    """Whether the files with the results of an ended batch are there.

    A batch whose input was rejected, or that ended before ingest had checked its input, has no files: its results
    name the requests of the input.
    """
    if batch.tidemill.receipt is None or report.unrun_code(batch) is not None:
        return view.file(project, batch.input_file_id) is not None
    kinds = [kind for kind, _ in batch.tidemill.receipt.files]
    return all(view.file(project, ids.derived_file_id(batch.id, kind)) for kind in kinds)


def _counts(view: View, project: str, batch: Batch) -> RequestCounts:
    total, counts = batch.request_counts.total, batch.request_counts
    if not total:
        # Ingest has not counted the lines yet, or has rejected them.
        record = view.file(project, batch.input_file_id)
        total = record.lines or 0 if record else 0
    if not batch.status.is_terminal:
        return RequestCounts(processing=total)
    if batch.status is Status.FAILED:
        return RequestCounts(errored=total)
    rest = max(0, total - counts.completed - counts.failed)
    is_cancelled = batch.status is Status.CANCELLED
    return RequestCounts(
        succeeded=counts.completed,
        errored=counts.failed,
        canceled=rest if is_cancelled else 0,
        expired=0 if is_cancelled else rest,
    )


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
