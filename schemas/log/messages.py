"""The messages of the log, apart from lines: commands, facts about a batch, and records of compacted topics.

Each message is JSON with `kind` and the version `v`. A reader accepts any message of its major version, and
ignores unknown fields.
"""

from functools import reduce
from operator import add
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tidemill.schemas.bounds import (
    ANSWER_SCHEMA_CHARS_MAX,
    BATCH_MODELS_MAX,
    OUTPUTS_MAX,
    UPLOAD_PARTS_MAX,
    Digest,
    Filename,
    Id,
    Metadata,
    Moment,
    Name,
    Number,
    Shape,
    Signed,
    Size,
    StoreKey,
    Text,
    Time,
    Word,
)
from tidemill.schemas.buckets import BucketObject, OutputCopy
from tidemill.schemas.resources.access import ApiKey
from tidemill.schemas.resources.batch import Batch, ExpiresAfter, Faults, Receipt, Status, Usage
from tidemill.schemas.resources.bill import Cost
from tidemill.schemas.resources.by_model import ModelLines, ModelResults
from tidemill.schemas.resources.file import File, Upload, UploadPart
from tidemill.schemas.resources.waiting import Waits

VERSION = 1
HOLD_SECONDS_MAX = 3600
WRAPPED_CHARS_MAX = 1024
"""A key management service wraps a key into about 200 bytes."""
_BY_KIND = Field(discriminator="kind")


class _Message(Shape):
    v: Literal[1] = 1


class InputRef(Shape):
    """The input of a batch in the store."""

    key: StoreKey
    bytes: Size
    source: BucketObject | None = None
    """The object that ingest first has to copy to the store; None for an input that is there."""


class BatchCreated(_Message):
    """The api created a batch: `batch` is its first state, `validating`."""

    kind: Literal["batch_created"] = "batch_created"
    project: Name
    batch: Batch
    input: InputRef | None = None
    """None if the input file does not exist: ingest rejects the batch, as OpenAI does."""
    output_expires_after: ExpiresAfter | None = None
    answer_schema: Annotated[str, StringConstraints(max_length=ANSWER_SCHEMA_CHARS_MAX)] | None = None
    """The JSON Schema that each answer must fit, as JSON text."""


class CancelRequested(_Message):
    """A client asked to cancel a batch."""

    kind: Literal["cancel_requested"] = "cancel_requested"
    batch_id: Id
    at: Time


class DeleteRequested(_Message):
    """A client asked to delete an ended batch, or its retention has passed."""

    kind: Literal["delete_requested"] = "delete_requested"
    batch_id: Id
    project: Name
    files: Annotated[tuple[Word, ...], Field(max_length=OUTPUTS_MAX + 1)] = ()
    """The kinds of its files (`schemas/resources/file.py`), which results may have forgotten."""
    input_file_id: Id = ""
    """Its input, a file that need not be deleted; empty if the project never had it."""
    at: Time


Command = Annotated[BatchCreated | CancelRequested | DeleteRequested, _BY_KIND]


class Accepted(_Message):
    """Ingest found no error and publishes `total` lines, less the copies."""

    kind: Literal["accepted"] = "accepted"
    batch_id: Id
    total: Number
    model: Name | None = None
    """None if the lines name several models."""
    models: Annotated[tuple[ModelLines, ...], Field(max_length=BATCH_MODELS_MAX)] = ()
    """The models in the order of their first lines, if there are several. Parts and bitmaps number them so."""
    copies: Number = 0
    """Lines that are not published, because they equal an earlier one. The store has the list."""
    at: Time


class Rejected(_Message):
    """Ingest found errors; no line is called."""

    kind: Literal["rejected"] = "rejected"
    batch_id: Id
    errors: Faults
    at: Time


class Compacted(_Message):
    """Results wrote the files of an ended batch; a file without lines is None."""

    kind: Literal["compacted"] = "compacted"
    batch_id: Id
    receipt: Receipt
    models: ModelResults
    """The results of each model; one, unless the lines name several."""
    usage_unknown: Number = 0
    """Lines of the output with impossible token counts; they are not billed."""
    recovered: bool = False
    """Whether parts were lost, so that the files were made from the log."""
    output_copy: OutputCopy | None = None
    """The outcome of the copy to a bucket; None if the batch asked for none."""
    closed_by: Id = ""
    """The owner that closed the batch; a former owner may have closed it with other lines."""
    writer: Id = ""
    """The owner that wrote the files; part of their keys."""
    at: Time

    @property
    def failed(self) -> int:
        """Lines of the error file that were called."""
        return sum(model.failed for model in self.models)

    @property
    def usage(self) -> Usage:
        """The usage of all models."""
        return reduce(add, (model.usage for model in self.models))

    @property
    def cost(self) -> Cost:
        """The cost of all models."""
        return reduce(add, (model.bill.cost for model in self.models))


class Tick(_Message):
    """Results sends itself the time, so that due work has a place in the log.

    Every line before a tick counts, even if results was down when a deadline passed.
    """

    kind: Literal["tick"] = "tick"
    at: Moment
    writer: Id = ""
    """The owner that sent it; a later owner ignores it. All messages of earlier owners are before it."""


class Opened(_Message):
    """A stream began: `batch` is its first state, `in_progress`."""

    kind: Literal["opened"] = "opened"
    project: Name
    batch: Batch
    output_expires_after: ExpiresAfter | None = None


class Grown(_Message):
    """A stream's batch has more lines, counted from its beginning; sent before the first new one is published."""

    kind: Literal["grown"] = "grown"
    batch_id: Id
    total: Number
    model: Name | None = None
    """Known after the first valid line."""
    sequence: Number | None = None
    """The highest `tidemill-seq` of its records."""
    bytes: Number = 0
    dropped_records: Number | None = None


class Ended(_Message):
    """A stream accepts no more lines; some of its lines may still be unpublished."""

    kind: Literal["ended"] = "ended"
    batch_id: Id


class Sealed(_Message):
    """A stream's batch has all its lines, and its input is in the store."""

    kind: Literal["sealed"] = "sealed"
    batch_id: Id
    total: Number
    model: Name | None = None
    input: InputRef
    dropped_records: Number | None = None


class DeadLettered(_Message):
    """A record of the batch could not be processed, and is a dead letter."""

    kind: Literal["dead_lettered"] = "dead_lettered"
    batch_id: Id
    source: Name
    """`topic/partition/offset`: the letter's id."""
    reason: Text
    at: Time


class Stalled(_Message):
    """A process reports why its lines of a batch wait; replaces its earlier report.

    The report changes no line, and may be lost.
    """

    kind: Literal["stalled"] = "stalled"
    batch_id: Id
    source: Id
    """The process and the subject of its reports: each source reports on its own lines."""
    number: Number
    """Counts the reports of this source."""
    model: Name = ""
    """The model of these lines, if the source has lines of only one."""
    waiting: Waits = ()
    """Empty once no line waits."""
    hold_seconds: Annotated[int, Field(ge=1, le=HOLD_SECONDS_MAX)]
    """How long the report is valid."""


Fact = Annotated[
    Accepted | Rejected | Opened | Grown | Ended | Sealed | Compacted | Tick | DeadLettered | Stalled, _BY_KIND
]


class BatchRecord(_Message):
    """The value of `tidemill.batches`: the batch and its project."""

    project: Name
    batch: Batch
    files_offset: Signed | None = None
    """Offset in `tidemill.files` of the batch's last file record, which a reader applies before the batch."""
    owner: Size = 0
    """The owner that wrote it; readers ignore it after a record of a later owner."""


class FileRecord(_Message):
    """The value of `tidemill.files`; a deleted file's record is a tombstone."""

    project: Name
    file: File
    key: StoreKey
    """Of the content in the store."""
    sha256: Digest
    lines: Number | None = None
    """Lines, counted during the upload."""
    from_body: bool = False
    """Whether it was made for one batch, from a body or a bucket's object; then it is deleted with the batch."""
    owner: Size = 0
    """The owner that wrote it; readers ignore it after a record of a later owner."""


class KeyRecord(_Message):
    """An API key and the digest of its secret; signed, it is the value of `tidemill.keys`."""

    key: ApiKey
    sha256: Digest
    """SHA-256 of the secret, in hex (`schemas/resources/access.py`)."""


class Erasure(_Message):
    """The value of `tidemill.secrets` under a batch id: the batch is deleted, and its lines must not be read."""

    kind: Literal["erasure"] = "erasure"
    project: Name
    at: Time
    input_file_id: Id = ""


class Secret(_Message):
    """The value of `tidemill.secrets` under a batch id, `/` and a key's id: a wrapped key of the batch."""

    kind: Literal["secret"] = "secret"
    project: Name
    at: Time
    wrapped_by: Name
    """The wrapping key: of a file, or of a key management service."""
    wrapped: Annotated[str, StringConstraints(max_length=WRAPPED_CHARS_MAX)]
    """The wrapped key in base64."""


class LedgerRecord(_Message):
    """The value of `tidemill.ledger`: the bill of an ended batch."""

    batch_id: Id
    project: Name
    endpoint: Word
    status: Status
    ended_at: Time
    day: Word
    """The day of `ended_at` in UTC: `2026-11-23`."""
    models: ModelResults
    """Usage and bill of each model; lines that failed cost nothing."""
    owner: Size = 0
    """The owner that wrote it; readers ignore it after a record of a later owner."""


class AuditRecord(_Message):
    """The value of `tidemill.audit`: who requested what, from where, without secrets and lines."""

    id: Id
    at: Time
    project: Name
    """The project concerned; empty if the key was unknown."""
    actor: Name
    """Id of the client's key: `key_settings` for that of the settings, empty for an unknown one. For a person, the
    verified email address, else the provider's `sub`."""
    action: Word
    """One of `schemas/resources/audit.py`."""
    target: Filename = ""
    """Id of the object, or the key of a server or a model in the catalog, which is longer than its name."""
    address: Word = ""
    """The client's IP address."""
    request_id: Id = ""
    detail: Metadata = Field({})
    """Details, like the role of a key."""


class Claim(_Message):
    """The value of `tidemill.claims`: the batch that an api process is about to create.

    The topic has one partition, so all api processes see claims in the same order. The first claim of a batch id
    is the batch, and a repeated request finds it, whichever process received the first.
    """

    kind: Literal["claim"] = "claim"
    command: BatchCreated
    fingerprint: Digest
    """A hash of the request; equal requests have equal ones."""
    is_retry: bool = False
    """Whether the client says that it repeats a request."""
    seen: Number = 0
    """The offset after the last claim that the api process had read when the request came."""


class Queued(_Message):
    """The value of `tidemill.queue`: a batch of a project that may have a bounded number of them at work.

    The topic has one partition, so all processes of ingest see the batches in the same order. The first record of
    a batch is its place.
    """

    kind: Literal["queued"] = "queued"
    command: BatchCreated


class Dequeued(_Message):
    """Ingest has published the lines of a batch that was in the queue, or rejected it."""

    kind: Literal["dequeued"] = "dequeued"
    batch_id: Id


QueueRecord = Annotated[Queued | Dequeued, Field(discriminator="kind")]


class UploadRecord(_Message):
    """The value of `tidemill.uploads` under an upload's id; a tombstone removes the upload."""

    kind: Literal["upload"] = "upload"
    project: Name
    upload: Upload
    life_seconds: Time | None = None
    """How long the finished file is kept; None for ever."""
    part_ids: Annotated[tuple[Id, ...], Field(max_length=UPLOAD_PARTS_MAX)] = ()
    """The parts of a completed upload, in order."""


class PartRecord(_Message):
    """The value of `tidemill.uploads` under `<upload id>/<part id>`."""

    kind: Literal["part"] = "part"
    part: UploadPart
    bytes: Size
    key: StoreKey
    """Of the content in the store."""


UploadMessage = Annotated[UploadRecord | PartRecord, Field(discriminator="kind")]
