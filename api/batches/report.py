"""Reports of a batch: its receipt, its errors by code, and its timeline."""

from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import BaseModel

from tidemill.api.batches import result_pages
from tidemill.api.batches.result_pages import Error, Response, ResultLine
from tidemill.schemas.jsonl import server_error
from tidemill.schemas.jsonl.line import CANCELLED, EXPIRED, REFUSALS
from tidemill.schemas.resources.batch import Batch, FileReceipt, Status

SAMPLES_MAX: Final = 3
GROUPS_MAX: Final = 100
"""Further codes are counted together, as `other`."""
CODE_CHARS_MAX: Final = 100
MESSAGE_CHARS_MAX: Final = 500

_EVENTS: Final = (
    "created", "in_progress", "cancelling", "finalizing", "completed", "failed", "expired", "cancelled"
)  # fmt: skip

_UNRUN: Final = {Status.EXPIRED: EXPIRED[0], Status.CANCELLED: CANCELLED[0]}


class ReceiptReport(BaseModel):
    """The reconciliation of lines; final when the batch has ended, provisional before."""

    object: Literal["batch.receipt"] = "batch.receipt"
    batch_id: str
    final: bool
    lines: int
    completed: int
    failed: int
    pending: int
    """Lines without a result; of an ended batch, lines that did not run: the error file has a line for each."""
    output: FileReceipt | None
    errors: FileReceipt | None
    missing: int | None
    double: int | None
    copies: int | None
    """Lines in either file that have the answer to an equal one."""


class Event(BaseModel):
    """An event in the life of a batch; `at` is Unix seconds."""

    event: str
    at: int


class Timeline(BaseModel):
    """The events of a batch in order, with the deadline while it is ahead."""

    object: Literal["list"] = "list"
    data: list[Event]


class Sample(BaseModel):
    """A line that failed."""

    index: int
    custom_id: str
    """Empty if the line has no readable one."""
    message: str


class Group(BaseModel):
    """Failed lines with one code."""

    code: str
    status_code: int | None
    count: int
    samples: list[Sample]


class ErrorReport(BaseModel):
    """The failed lines by code, the most frequent first."""

    object: Literal["list"] = "list"
    total: int
    unfinished: int
    """Failed, expired and cancelled lines, which a rerun runs by default."""
    data: list[Group]


@dataclass(slots=True)
class ErrorGroups:
    """Groups the lines of an error file by code."""

    total: int = 0
    unfinished: int = 0
    _groups: dict[tuple[str, int | None], Group] = field(default_factory=dict)

    def add(self, index: int, text: bytes) -> None:
        """Count a line of the error file."""
        line = result_pages.parse(text)
        error, status = _error_and_status(line)
        code = _code(error, status)
        self.unfinished += not is_refused(code, status)
        group = self.count(code, status)
        if len(group.samples) < SAMPLES_MAX:
            message = _message(error, line.response)
            sample = Sample(index=index, custom_id=line.name, message=message[:MESSAGE_CHARS_MAX])
            group.samples.append(sample)

    def count(self, code: str, status: int | None) -> Group:
        """Count a fault; returns its group."""
        if (code, status) not in self._groups and len(self._groups) >= GROUPS_MAX:
            code, status = "other", None
        new = Group(code=code, status_code=status, count=0, samples=[])
        group = self._groups.setdefault((code, status), new)
        group.count += 1
        self.total += 1
        return group

    def report(self) -> ErrorReport:
        """The groups."""
        groups = sorted(self._groups.values(), key=lambda group: (-group.count, group.code))
        return ErrorReport(total=self.total, unfinished=self.unfinished, data=groups)


def fault(text: bytes) -> tuple[str, int | None]:
    """The error code of a line of an error file, and the HTTP status if a server answered."""
    error, status = _error_and_status(result_pages.parse(text))
    return _code(error, status), status


def is_refused(code: str, status: int | None) -> bool:
    """Whether a line of an error file is not a valid request; one such line would fail a new batch."""
    return status is None and code in REFUSALS


def unrun_code(batch: Batch) -> str | None:
    """The error code of every line of a batch that ended without files before ingest had validated its input.

    Results could not count its lines; None for other batches.
    """
    return None if batch.is_validated else _UNRUN.get(batch.status)


def receipt(batch: Batch) -> ReceiptReport:
    """The receipt of a batch, at any time."""
    counts, final = batch.request_counts, batch.tidemill.receipt
    return ReceiptReport(
        batch_id=batch.id,
        final=batch.status.is_terminal,
        lines=final.lines if final else counts.total,
        completed=counts.completed,
        failed=counts.failed,
        pending=counts.pending,
        output=final.output if final else None,
        errors=final.errors if final else None,
        missing=final.missing if final else None,
        double=final.double if final else None,
        copies=final.copies if final else None,
    )


def timeline(batch: Batch) -> Timeline:
    """The timeline of a batch."""
    times = ((name, getattr(batch, f"{name}_at")) for name in _EVENTS)
    events = [Event(event=name, at=at) for name, at in times if at is not None]
    if not batch.status.is_terminal and batch.status is not Status.CANCELLING:
        events.append(Event(event="deadline", at=batch.expires_at))
    return Timeline(data=sorted(events, key=lambda event: event.at))


def refused(batch: Batch) -> ErrorReport:
    """The errors of an invalid input, by code."""
    groups = ErrorGroups()
    for entry in batch.errors.data if batch.errors else ():
        if len((group := groups.count(entry.code, None)).samples) < SAMPLES_MAX:
            index = entry.line - 1 if entry.line else -1
            group.samples.append(Sample(index=index, custom_id="", message=entry.message))
    return groups.report()


def _error_and_status(line: ResultLine) -> tuple[Error, int | None]:
    """The error that Tidemill wrote, else the error in the server's reply; and the status of the reply."""
    if line.response is None:
        return line.error or Error(), None
    if line.error is not None:
        return line.error, line.response.status_code
    found = server_error.read(line.response.body)
    return Error(code=found.code, type=found.type, message=found.message), line.response.status_code


def _message(error: Error, response: Response | None) -> str:
    """The error message of a line; without one, the beginning of the server's reply."""
    if isinstance(error.message, str) and error.message:
        return error.message
    return "" if response is None else server_error.quoted(response.body)


def _code(error: Error, status: int | None) -> str:
    for found in (error.code, error.type):
        if isinstance(found, str) and found:
            return found[:CODE_CHARS_MAX]
    return f"http_{status}" if status is not None else "unknown"
