"""The batch, as the API shows it.

Fields and states are those of the OpenAI Batch API; what is beyond it sits under the one key `tidemill`.
"""

import re
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tidemill.schemas.bill import Cost
from tidemill.schemas.part import file_kind

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")

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

    code: str
    message: str
    param: str | None = None
    line: int | None = None
    """Line of the input file, the first is 1; null where the fault is the whole file's."""


class BatchErrors(_Shape):
    """The faults that made a batch fail."""

    object: Literal["list"] = "list"
    data: tuple[BatchError, ...]


class RequestCounts(_Shape):
    """Lines in all, and those that are final."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokensDetails(_Shape):
    """What the input tokens were."""

    cached_tokens: int = 0


class OutputTokensDetails(_Shape):
    """What the output tokens were."""

    reasoning_tokens: int = 0


class Usage(_Shape):
    """Tokens of the lines that succeeded."""

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int = 0


class FileReceipt(_Shape):
    """What a file of a batch holds."""

    lines: int
    bytes: int
    sha256: str


class Receipt(_Shape):
    """The reconciliation of a finished batch: `lines` = `output.lines` + `errors.lines`."""

    lines: int
    output: FileReceipt | None = None
    """Of numbered files, what they are together, one after the other."""
    errors: FileReceipt | None = None
    missing: int = 0
    double: int = 0
    outputs: tuple[FileReceipt, ...] = ()
    """Each of the numbered files; empty where the output is one file."""

    @property
    def files(self) -> tuple[tuple[str, FileReceipt], ...]:
        """The files there are, those of the output first, each with its kind (`schemas/part.py`)."""
        numbered = tuple((file_kind(failed=False, number=n), file) for n, file in enumerate(self.outputs, start=1))
        output = numbered or (((file_kind(failed=False), self.output),) if self.output else ())
        return (*output, *(((file_kind(failed=True), self.errors),) if self.errors else ()))


class Progress(_Shape):
    """How far a batch at work is, and when it will be done; what is not known yet is null."""

    percent: float
    lines_per_second: float | None = None
    done_earliest_at: int | None = None
    """Unix seconds; the end is expected between this and the next."""
    done_latest_at: int | None = None
    slack_seconds: int | None = None
    """From the latest expected end to the deadline; below zero the batch is at risk."""


class ReplayRange(_Shape):
    """The part of a model's requests that a batch is made of, as it was asked for."""

    model: str
    start: str
    """A time (ISO 8601) or an offset of each partition; the first that is in it."""
    end: str | None = None
    """As `start`, the first that is not in it; null is what the end was when it was asked for."""


class Cut(_Shape):
    """Where an output is cut into numbered files: what one of them holds at most."""

    lines_max: int
    bytes_max: int
    """A longer line has a file of its own."""


class Extras(_Shape):
    """What Tidemill says beyond OpenAI's fields."""

    stream: str | None = None
    """The name of the stream that a direct producer sent its lines in; see docs/intake.md."""
    numbered: Cut | None = None
    """How the output is cut into numbered files; null where it is one file, whatever its size."""
    output_file_ids: tuple[str, ...] = ()
    """All the numbered files of the output, in order; the first is the batch's `output_file_id` too."""
    replay_of: str | None = None
    """The batch whose lines these are once more."""
    replay_range: ReplayRange | None = None
    """The part of the log whose lines these are once more."""
    replays: tuple[str, ...] = ()
    """The newest batches that are made of this one's lines. The api finds them; no record holds them."""
    progress: Progress | None = None
    at_risk: int | None = None
    """Unix seconds; from then on the log may have dropped what the batch still needs. Null where all is well."""
    mended: bool = False
    """Whether parts of it were lost on the way, and its lines were read from the log again."""
    stuck: str | None = None
    """Why the files of a batch that is finalizing cannot be written; it is tried again. Null where all is well."""
    receipt: Receipt | None = None
    cost: Cost | None = None
    """Known once the batch is over."""


class ExpiresAfter(_Shape):
    """When a file is deleted, counted from its creation."""

    anchor: Literal["created_at"]
    seconds: int


class Batch(_Shape):
    """A batch. Times are Unix seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: Usage | None = None
    metadata: dict[str, str] | None = None
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
