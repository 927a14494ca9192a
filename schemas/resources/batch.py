"""The batch, as the API shows it.

Fields and states are those of the OpenAI Batch API; what is beyond it sits under the one key `tidemill`.
"""

import re
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tidemill.schemas.bounds import (
    ERRORS_BYTES_MAX,
    ERRORS_MAX,
    OUTPUTS_MAX,
    RERUNS_MAX,
    Digest,
    Id,
    Metadata,
    Name,
    Number,
    Param,
    Real,
    Signed,
    Size,
    Text,
    Time,
    Word,
)
from tidemill.schemas.resources.bill import Cost
from tidemill.schemas.resources.file import file_kind
from tidemill.schemas.resources.waiting import Waits

_WINDOW = re.compile(r"([1-9]\d{0,5})([smhd])\Z")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Status(StrEnum):
    """The eight states of a batch."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing changes any more."""
        return self in TERMINAL


TERMINAL = frozenset({Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED})


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class BatchError(_Shape):
    """One fault of the input file."""

    code: Word
    message: Text
    param: Param | None = None
    line: Number | None = None
    """Line of the input file, the first is 1; null where the fault is the whole file's."""


def error_bytes(error: BatchError) -> int:
    """What an entry takes in a record, in bytes."""
    return len(error.model_dump_json(exclude_none=True).encode()) + 1


def _fitting(errors: tuple[BatchError, ...]) -> tuple[BatchError, ...]:
    if sum(map(error_bytes, errors)) > ERRORS_BYTES_MAX:
        raise ValueError(f"the errors have more than {ERRORS_BYTES_MAX} bytes")
    return errors


_fitting.bytes_max = ERRORS_BYTES_MAX  # type: ignore[attr-defined]  # for who computes what a record may have

Faults = Annotated[tuple[BatchError, ...], Field(max_length=ERRORS_MAX), AfterValidator(_fitting)]
"""As many as are listed: their number has a bound, and so have their bytes."""


class BatchErrors(_Shape):
    """The faults that made a batch fail."""

    object: Literal["list"] = "list"
    data: Faults


class RequestCounts(_Shape):
    """Lines in all, and those that are final."""

    total: Number = 0
    completed: Number = 0
    failed: Number = 0

    @property
    def pending(self) -> int:
        """Lines without a result."""
        return self.total - self.completed - self.failed


class InputTokensDetails(_Shape):
    """What the input tokens were."""

    cached_tokens: Number = 0


class OutputTokensDetails(_Shape):
    """What the output tokens were."""

    reasoning_tokens: Number = 0


class Usage(_Shape):
    """Tokens of the lines that succeeded."""

    input_tokens: Number = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: Number = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: Number = 0


class FileReceipt(_Shape):
    """What a file of a batch holds."""

    lines: Number
    bytes: Size
    sha256: Digest


class Receipt(_Shape):
    """The reconciliation of a finished batch: `lines` = `output.lines` + `errors.lines`."""

    lines: Number
    output: FileReceipt | None = None
    """Of numbered files, what they are together, one after the other."""
    errors: FileReceipt | None = None
    missing: Signed = 0
    double: Number = 0
    outputs: Annotated[tuple[FileReceipt, ...], Field(max_length=OUTPUTS_MAX)] = ()
    """Each of the numbered files; empty where the output is one file."""

    @property
    def files(self) -> tuple[tuple[str, FileReceipt], ...]:
        """The files there are, those of the output first, each with its kind (`schemas/log/part.py`)."""
        numbered = tuple((file_kind(failed=False, number=n), file) for n, file in enumerate(self.outputs, start=1))
        output = numbered or (((file_kind(failed=False), self.output),) if self.output else ())
        return (*output, *(((file_kind(failed=True), self.errors),) if self.errors else ()))


class Progress(_Shape):
    """How far a batch at work is, and when it will be done; what is not known yet is null."""

    percent: Real
    lines_per_second: Real | None = None
    """0 where no line has been done for longer than usual; null where too little is known."""
    done_earliest_at: Signed | None = None
    """Unix seconds; the end is expected between this and the next. Null while no line gets done."""
    done_latest_at: Signed | None = None
    slack_seconds: Signed | None = None
    """From the latest expected end to the deadline; below zero the batch is at risk. While no line gets done, what
    it would be if all lines went on at once as fast as before: it falls with each second."""
    observed_at: Time | None = None
    """Unix seconds; when all this was true."""
    holds_until: Time | None = None
    """Unix seconds; when the rate and the end are out of date, if nothing newer is said."""

    def at(self, now: float) -> "Progress":
        """What of it is still true at a time.

        Args:
            now: Unix seconds.
        """
        if self.lines_per_second is None or self.observed_at is None:
            return self
        is_old = self.holds_until is not None and now >= self.holds_until
        if not is_old and self.lines_per_second:
            if self.done_latest_at is None or self.done_latest_at >= now:
                return self
            return self.model_copy(update={"done_earliest_at": None, "done_latest_at": None})
        age = max(0, int(now) - self.observed_at)
        return self.model_copy(
            update={
                "lines_per_second": None if is_old else 0.0,
                "done_earliest_at": None,
                "done_latest_at": None,
                "slack_seconds": None if self.slack_seconds is None else self.slack_seconds - age,
            }
        )


class ReplayRange(_Shape):
    """The part of a model's requests that a batch is made of, as it was asked for."""

    model: Name
    start: Word
    """A time (ISO 8601) or an offset of each partition; the first that is in it."""
    end: Word | None = None
    """As `start`, the first that is not in it; null is what the end was when it was asked for."""


class Cut(_Shape):
    """Where an output is cut into numbered files: what one of them holds at most."""

    lines_max: Size
    bytes_max: Size
    """A longer line has a file of its own."""


class Fault(_Shape):
    """What of a batch could not be handled: its records are dead letters, and their lines have no result."""

    records: Number
    source: Name
    """The last of them: `topic/partition/offset`, which is the letter's id."""
    reason: Text


class Extras(_Shape):
    """What Tidemill says beyond OpenAI's fields."""

    name: Name | None = None
    """What people call it: `metadata.name`, else the name of its input file, or of its stream."""
    stream: Name | None = None
    """The name of the stream that a direct producer sent its lines in; see docs/reference/intake.md."""
    numbered: Cut | None = None
    """How the output is cut into numbered files; null where it is one file, whatever its size."""
    output_file_ids: Annotated[tuple[Id, ...], Field(max_length=OUTPUTS_MAX)] = ()
    """All the numbered files of the output, in order; the first is the batch's `output_file_id` too."""
    rerun_of: Id | None = None
    """The batch whose lines these are once more."""
    replay_range: ReplayRange | None = None
    """The part of the log whose lines these are once more."""
    reruns: Annotated[tuple[Id, ...], Field(max_length=RERUNS_MAX)] = ()
    """The newest batches that are made of this one's lines. The api finds them; no record holds them."""
    progress: Progress | None = None
    at_risk: Signed | None = None
    """Unix seconds; from then on the log may have dropped what the batch still needs. Null where all is well."""
    recovered: bool = False
    """Whether parts of its results were lost in the store, and were read from the log again."""
    waiting: Waits = ()
    """What its lines, or its files, wait for longer than usual. Of an expired batch: what held its last lines."""
    fault: Fault | None = None
    """What of it could not be handled, while it was at work. Null where all is well."""
    receipt: Receipt | None = None
    cost: Cost | None = None
    """Known once the batch is over."""
    usage_unknown: Number | None = None
    """Lines whose server named impossible counts of tokens: `usage` and `cost` are without them. Null for none."""


class ExpiresAfter(_Shape):
    """When a file is deleted, counted from its creation."""

    anchor: Literal["created_at"]
    seconds: Time


class Batch(_Shape):
    """A batch. Times are Unix seconds."""

    id: Id
    object: Literal["batch"] = "batch"
    endpoint: Word
    model: Name | None = None
    errors: BatchErrors | None = None
    input_file_id: Id
    completion_window: Word
    status: Status
    output_file_id: Id | None = None
    error_file_id: Id | None = None
    created_at: Time
    in_progress_at: Time | None = None
    expires_at: Time
    finalizing_at: Time | None = None
    completed_at: Time | None = None
    failed_at: Time | None = None
    expired_at: Time | None = None
    cancelling_at: Time | None = None
    cancelled_at: Time | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: Usage | None = None
    metadata: Metadata | None = None
    tidemill: Extras = Extras()


def window_seconds(window: str) -> int:
    """The length of a completion window.

    Args:
        window: A number and one of `s`, `m`, `h`, `d`: `24h`.

    Raises:
        ValueError: It is written in another way.
    """
    if (match := _WINDOW.match(window)) is None:
        raise ValueError(f"a window is a number and one of s, m, h, d; got {window!r}")
    return int(match[1]) * _UNIT_SECONDS[match[2]]
