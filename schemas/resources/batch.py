"""The batch, as the API shows it: OpenAI's fields and states, and further fields under the key `tidemill`."""

import re
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tidemill.schemas.bounds import (
    BATCH_MODELS_MAX,
    ERRORS_BYTES_MAX,
    ERRORS_MAX,
    OUTPUTS_MAX,
    RERUNS_MAX,
    Digest,
    Headers,
    Id,
    Metadata,
    Name,
    Number,
    Param,
    Real,
    Shape,
    Signed,
    Size,
    Text,
    Time,
    Url,
    Word,
)
from tidemill.schemas.buckets import Format, OutputCopy, Uri
from tidemill.schemas.resources.bill import Cost
from tidemill.schemas.resources.file import file_kind
from tidemill.schemas.resources.waiting import Waits
from tidemill.schemas.traces import Traceparent

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
        """Whether the state is final."""
        return self in TERMINAL


TERMINAL = frozenset({Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED})


class BatchError(Shape):
    """An error in the input file."""

    code: Word
    message: Text
    param: Param | None = None
    line: Number | None = None
    """Line of the input file, from 1; null for an error of the whole file."""


def error_bytes(error: BatchError) -> int:
    """Bytes of an entry in a record."""
    return len(error.model_dump_json(exclude_none=True).encode()) + 1


def _fitting(errors: tuple[BatchError, ...]) -> tuple[BatchError, ...]:
    if sum(map(error_bytes, errors)) > ERRORS_BYTES_MAX:
        raise ValueError(f"the errors have more than {ERRORS_BYTES_MAX} bytes")
    return errors


_fitting.bytes_max = ERRORS_BYTES_MAX  # type: ignore[attr-defined]  # the tests compute the largest record from it

Faults = Annotated[tuple[BatchError, ...], Field(max_length=ERRORS_MAX), AfterValidator(_fitting)]
"""Bounded in number and in bytes."""


class BatchErrors(Shape):
    """The errors that made a batch fail."""

    object: Literal["list"] = "list"
    data: Faults


class RequestCounts(Shape):
    """All lines, and those that have ended."""

    total: Number = 0
    completed: Number = 0
    failed: Number = 0

    def __add__(self, other: "RequestCounts") -> "RequestCounts":
        completed, failed = self.completed + other.completed, self.failed + other.failed
        return RequestCounts(total=self.total + other.total, completed=completed, failed=failed)

    @property
    def pending(self) -> int:
        """Lines without a result."""
        return self.total - self.completed - self.failed


class InputTokensDetails(Shape):
    """Parts of the input tokens."""

    cached_tokens: Number = 0


class OutputTokensDetails(Shape):
    """Parts of the output tokens."""

    reasoning_tokens: Number = 0


class Usage(Shape):
    """The usage of the lines that succeeded."""

    input_tokens: Number = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: Number = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: Number = 0
    images: Number | None = None
    """Images that the lines made; null on other endpoints."""
    audio_seconds: Number | None = None
    """Seconds of audio of the lines whose replies report no tokens, each rounded up; null on other endpoints."""

    def __add__(self, other: "Usage") -> "Usage":
        cached = self.input_tokens_details.cached_tokens + other.input_tokens_details.cached_tokens
        reasoning = self.output_tokens_details.reasoning_tokens + other.output_tokens_details.reasoning_tokens
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=cached),
            output_tokens=self.output_tokens + other.output_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning),
            total_tokens=self.total_tokens + other.total_tokens,
            images=_added(self.images, other.images),
            audio_seconds=_added(self.audio_seconds, other.audio_seconds),
        )


def _added(one: int | None, other: int | None) -> int | None:
    return None if one is None and other is None else (one or 0) + (other or 0)


Dedupe = Literal["none", "batch", "all"]
"""Which equal lines of a batch are called only once: none, those whose answer is deterministic, or all."""


class ModelShare(Shape):
    """The lines of one model in a batch that names several."""

    model: Name
    request_counts: RequestCounts
    copies: Number = 0
    """Lines that equal an earlier one, and so are not called."""
    usage: Usage | None = None
    cost: Cost | None = None
    """Null until the batch has ended."""

    @property
    def unanswered(self) -> int:
        """Lines that are called and have no result, in a batch at work."""
        return max(0, self.request_counts.pending - self.copies)


class FileReceipt(Shape):
    """The content of a file of a batch."""

    lines: Number
    bytes: Size
    sha256: Digest


class Receipt(Shape):
    """The reconciliation of an ended batch: `lines` = `output.lines` + `errors.lines`."""

    lines: Number
    output: FileReceipt | None = None
    """The output; if it has numbered files, their concatenation."""
    errors: FileReceipt | None = None
    missing: Signed = 0
    double: Number = 0
    copies: Number = 0
    """Lines in either file that have the answer to an equal line."""
    outputs: Annotated[tuple[FileReceipt, ...], Field(max_length=OUTPUTS_MAX)] = ()
    """The numbered files of the output; empty if the output is one file."""

    @property
    def files(self) -> tuple[tuple[str, FileReceipt], ...]:
        """The existing files, output first, each with its kind (`file_kind`)."""
        numbered = tuple((file_kind(failed=False, number=n), file) for n, file in enumerate(self.outputs, start=1))
        output = numbered or (((file_kind(failed=False), self.output),) if self.output else ())
        return (*output, *(((file_kind(failed=True), self.errors),) if self.errors else ()))


class Progress(Shape):
    """The progress of an unfinished batch; unknown values are null."""

    percent: Real
    lines_per_second: Real | None = None
    """0 if the batch has stalled; null if it is not known yet."""
    done_earliest_at: Signed | None = None
    """Unix seconds; the batch is expected to end between this and `done_latest_at`. Null while it is stalled."""
    done_latest_at: Signed | None = None
    slack_seconds: Signed | None = None
    """From the latest expected end to the deadline; below zero the batch is at risk. While it is stalled, the
    value if it went on now at its former rate, so it falls each second."""
    observed_at: Time | None = None
    """Unix seconds of these values."""
    holds_until: Time | None = None
    """Unix seconds until which the rate and the end are valid."""
    usage: Usage | None = None
    """The usage of the lines that have succeeded so far; null before the first, and after a restart until results
    has read all of them again."""
    cost: Cost | None = None
    """The cost so far at the current price: that of `usage`, rounded as at the end."""

    def at(self, now: float) -> "Progress":
        """The values that are still valid at `now`, in Unix seconds."""
        if self.lines_per_second is None or self.observed_at is None:
            return self
        is_old = self.holds_until is not None and now >= self.holds_until
        unknown = {"done_earliest_at": None, "done_latest_at": None}
        if not is_old and self.lines_per_second:
            if self.done_latest_at is None or self.done_latest_at >= now:
                return self
            return self.model_copy(update=unknown)
        slack = None if self.slack_seconds is None else self.slack_seconds - max(0, int(now) - self.observed_at)
        rate = None if is_old else 0.0
        return self.model_copy(update={**unknown, "lines_per_second": rate, "slack_seconds": slack})


class ReplayRange(Shape):
    """The range of a model's requests in a replay, as requested."""

    model: Name
    start: Word
    """A time (ISO 8601) or an offset in each partition, inclusive."""
    end: Word | None = None
    """Like `start`, exclusive; null for the ends at the time of the request."""


class Cut(Shape):
    """Bounds of each numbered file of an output."""

    lines_max: Size
    bytes_max: Size
    """A longer line has its own file."""


class Fault(Shape):
    """Records of a batch that became dead letters, so that their lines have no result."""

    records: Number
    source: Name
    """The last one: `topic/partition/offset`, the letter's id."""
    reason: Text


class Extras(Shape):
    """Fields beyond those of OpenAI."""

    name: Name | None = None
    """`metadata.name`, else the name of its input file or stream."""
    stream: Name | None = None
    """The stream of a direct producer (docs/reference/intake.md); its own id for an open batch of the API."""
    stream_partition: Number | None = None
    """The partition of `tidemill.intake` that the records of a direct producer's stream are in."""
    single: bool = False
    """Whether it is one asynchronous request."""
    open: bool = False
    """Whether more lines may come: it is a stream that is not sealed."""
    sequence: Number | None = None
    """The highest number of the appends to it, or of the records of its stream; null if none has any."""
    dropped_records: Number | None = None
    """Records dropped as copies by their `tidemill-seq`; null for none. After a crash of ingest it may be off."""
    input_bytes: Number | None = None
    """Bytes of the lines of a stream so far; null once they are a file, or if it never was a stream."""
    callback_url: Url | None = None
    """A URL that gets the event of its end, besides the webhook endpoints of the project."""
    headers: Headers | None = None
    """Headers of the request that created it, which go with each call (setting `forward_headers`)."""
    traceparent: Traceparent | None = None
    """The context of its trace; null without one."""
    numbered: Cut | None = None
    """Bounds of numbered files; null if the output is one file."""
    output_file_ids: Annotated[tuple[Id, ...], Field(max_length=OUTPUTS_MAX)] = ()
    """The numbered files of the output, in order; the first is also `output_file_id`."""
    input_uri: Uri | None = None
    """The object of a bucket that its input was read from; null for none."""
    output_uri: Uri | None = None
    """The folder of a bucket that its output and errors are copied to before it ends; null for none."""
    output_format: Format | None = None
    """The format of these copies."""
    output_copy: OutputCopy | None = None
    """The outcome of the copy; null until the batch ends, and if it has no files."""
    rerun_of: Id | None = None
    """The batch whose lines it runs again."""
    replay_range: ReplayRange | None = None
    """The range of the log whose lines it runs again."""
    reruns: Annotated[tuple[Id, ...], Field(max_length=RERUNS_MAX)] = ()
    """The newest reruns of this batch; the api adds them, and no record has them."""
    validated: bool = False
    """Whether each answer must fit a JSON Schema."""
    dedupe: Dedupe | None = None
    """Which equal lines are called only once; null for none."""
    copies: Number | None = None
    """Lines that equal an earlier one and are not called; they count once the files are written. Null for none."""
    retries: Number | None = None
    """Calls beyond the first one of each line that has ended; null for none."""
    progress: Progress | None = None
    at_risk: Signed | None = None
    """Unix seconds from which the log may have dropped records that the batch needs; null if there is no risk."""
    recovered: bool = False
    """Whether parts of its results were lost in the store, and were read from the log again."""
    models: Annotated[tuple[ModelShare, ...], Field(max_length=BATCH_MODELS_MAX)] = ()
    """Counts, usage and cost of each model, if its lines name several."""
    waiting: Waits = ()
    """Why its lines or files wait for longer than usual; of an expired batch, why its last lines waited."""
    fault: Fault | None = None
    """Its dead letters; null if there are none."""
    receipt: Receipt | None = None
    cost: Cost | None = None
    """The cost; null until the batch has ended."""
    usage_unknown: Number | None = None
    """Lines with impossible counts, or with audio whose replies report neither tokens nor seconds; `usage` and
    `cost` do not contain them; null for none."""


class ExpiresAfter(Shape):
    """When a file is deleted, in seconds after its creation."""

    anchor: Literal["created_at"]
    seconds: Time


class Batch(Shape):
    """A batch. Times are Unix seconds."""

    id: Id
    object: Literal["batch"] = "batch"
    endpoint: Word
    model: Name | None = None
    """The model of its lines; null before validation, and if they name several (`tidemill.models`)."""
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

    @property
    def ended_at(self) -> int | None:
        """When it got its final status, Unix seconds; None before."""
        return self.completed_at or self.failed_at or self.expired_at or self.cancelled_at

    @property
    def is_validated(self) -> bool:
        """Whether ingest has accepted its input, also if a cancel came first."""
        return self.in_progress_at is not None or self.request_counts.total > 0

    @property
    def lines_asked(self) -> int:
        """The number of lines that are called: all but those that get the answer to an equal one."""
        return self.request_counts.total - (self.tidemill.copies or 0)


def window_seconds(window: str) -> int:
    """The seconds of a completion window like `24h`: a number and one of `s`, `m`, `h`, `d`.

    Raises:
        ValueError: The window is malformed.
    """
    if (match := _WINDOW.match(window)) is None:
        raise ValueError(f"a window is a number and one of s, m, h, d; got {window!r}")
    return int(match[1]) * _UNIT_SECONDS[match[2]]
