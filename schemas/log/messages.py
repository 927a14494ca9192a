"""What travels on the log, apart from lines: commands, facts about a batch, and the two compacted records.

Each message is JSON with `kind` and the version `v`. A reader takes any message of its own major version and
ignores fields it does not know.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tidemill.schemas.bounds import (
    OUTPUTS_MAX,
    UPLOAD_PARTS_MAX,
    Digest,
    Id,
    Metadata,
    Moment,
    Name,
    Number,
    Signed,
    Size,
    StoreKey,
    Text,
    Time,
    Word,
)
from tidemill.schemas.resources.access import ApiKey
from tidemill.schemas.resources.batch import Batch, ExpiresAfter, Faults, Receipt, Status, Usage
from tidemill.schemas.resources.bill import Bill
from tidemill.schemas.resources.file import File
from tidemill.schemas.resources.upload import Upload, UploadPart
from tidemill.schemas.resources.waiting import Waits

VERSION = 1
HOLD_SECONDS_MAX = 3600
WRAPPED_CHARS_MAX = 1024
"""A key management service makes some 200 bytes of a key."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    v: Literal[1] = 1


class InputRef(BaseModel):
    """Where the input of a batch lies in the store."""

    model_config = ConfigDict(frozen=True)

    key: StoreKey
    bytes: Size


class BatchCreated(_Message):
    """The api took a batch: `batch` is its first state, `validating`."""

    kind: Literal["batch_created"] = "batch_created"
    project: Name
    batch: Batch
    input: InputRef | None = None
    """None where the input file does not exist, which is for ingest to say, as OpenAI does."""
    output_expires_after: ExpiresAfter | None = None


class CancelRequested(_Message):
    """Somebody asked to cancel."""

    kind: Literal["cancel_requested"] = "cancel_requested"
    batch_id: Id
    at: Time


class DeleteRequested(_Message):
    """Somebody asked to delete a batch that is over, or its life has ended."""

    kind: Literal["delete_requested"] = "delete_requested"
    batch_id: Id
    project: Name
    files: Annotated[tuple[Word, ...], Field(max_length=OUTPUTS_MAX + 1)] = ()
    """Its files by their kinds (`schemas/log/part.py`): results may have forgotten them long ago."""
    at: Time


Command = Annotated[BatchCreated | CancelRequested | DeleteRequested, Field(discriminator="kind")]


class Accepted(_Message):
    """Ingest found no fault and publishes the lines: from now on there is `total` to wait for."""

    kind: Literal["accepted"] = "accepted"
    batch_id: Id
    total: Number
    model: Name
    at: Time


class Rejected(_Message):
    """Ingest found faults; no line is run."""

    kind: Literal["rejected"] = "rejected"
    batch_id: Id
    errors: Faults
    at: Time


class Compacted(_Message):
    """Results wrote the files of a batch that is over; a file without a line is None."""

    kind: Literal["compacted"] = "compacted"
    batch_id: Id
    receipt: Receipt
    failed: Number
    """Lines of the error file that were run; the others were not."""
    usage: Usage
    usage_unknown: Number = 0
    """Lines of the output whose server named counts of tokens that cannot be; they are billed as nothing."""
    bill: Bill | None = None
    """At the price in force when the files were written, which is so the price for good."""
    recovered: bool = False
    """Whether parts were lost, so that the files were made from the log."""
    closed_by: Id = ""
    """The owner of the partition who closed the batch; a former one may have closed it over other lines."""
    writer: Id = ""
    """The owner who wrote the files: part of their keys."""
    at: Time


class Tick(_Message):
    """Results reminds one of its own partitions that something is due.

    What time decides is decided by the time in here, at its place in the log: every line that came before it
    counts, also where the stage was down when the time came.
    """

    kind: Literal["tick"] = "tick"
    at: Moment
    writer: Id = ""
    """The owner of the partition who sent it: what an earlier owner has told of lies before it."""


class Opened(_Message):
    """A stream of a direct producer began: `batch` is its first state, `in_progress`, and it grows."""

    kind: Literal["opened"] = "opened"
    project: Name
    batch: Batch


class Grown(_Message):
    """A batch that grows has more lines; said before the first of them is sent to be run."""

    kind: Literal["grown"] = "grown"
    batch_id: Id
    total: Number
    """Lines from its beginning."""
    model: Name | None = None
    """Known once a line was without fault."""


class Sealed(_Message):
    """A batch that grew has all its lines, and its input is a file in the store."""

    kind: Literal["sealed"] = "sealed"
    batch_id: Id
    total: Number
    model: Name | None = None
    input: InputRef


class Buried(_Message):
    """A record that names the batch was tried and could not be handled; it is a dead letter."""

    kind: Literal["buried"] = "buried"
    batch_id: Id
    source: Name
    """`topic/partition/offset`: the letter's id."""
    reason: Text
    at: Time


class Stalled(_Message):
    """A process says what the lines of a batch that it holds wait for, in place of what it said before.

    It is a remark about the present: it changes no line, is not needed again, and may be lost.
    """

    kind: Literal["stalled"] = "stalled"
    batch_id: Id
    source: Id
    """The process, and what it works on: another one speaks of other lines."""
    number: Number
    """Counts what this source has said: a lower one is older."""
    waiting: Waits = ()
    """Empty: they wait no more."""
    hold_seconds: Annotated[int, Field(ge=1, le=HOLD_SECONDS_MAX)]
    """How long it counts, unless it is said again."""


Fact = Annotated[
    Accepted | Rejected | Opened | Grown | Sealed | Compacted | Tick | Buried | Stalled,
    Field(discriminator="kind"),
]


class BatchRecord(_Message):
    """The value of `tidemill.batches`: the batch, whose it is, and what a reader needs to act on it."""

    project: Name
    batch: Batch
    files_offset: Signed | None = None
    """Offset in `tidemill.files` of the last of the batch's file records: who shows the batch shows them first."""
    owner: Size = 0
    """The owner of the batch's partition who wrote it: after a record of a later owner it counts for nothing."""


class FileRecord(_Message):
    """The value of `tidemill.files`; a deleted file's record is a tombstone."""

    project: Name
    file: File
    key: StoreKey
    """Where the bytes lie in the store."""
    sha256: Digest
    lines: Number | None = None
    """Newlines in it, counted while it was uploaded, with one more for a last line that has none."""
    owner: Size = 0
    """The owner of the batch's partition who wrote it: after a record of a later owner it counts for nothing."""


class KeyRecord(_Message):
    """A key, and what its secret is known by; signed, it is the value of `tidemill.keys`."""

    key: ApiKey
    sha256: Digest
    """Of the secret, in hex; see `schemas/resources/access.py`."""


class Erasure(_Message):
    """The value of `tidemill.secrets` under a batch id: the batch is deleted, and its lines are not to be read."""

    kind: Literal["erasure"] = "erasure"
    project: Name
    at: Time


class Secret(_Message):
    """The value of `tidemill.secrets` under a batch id, `/` and a key's id: a key of the batch, wrapped."""

    kind: Literal["secret"] = "secret"
    project: Name
    at: Time
    wrapped_by: Name
    """What it is wrapped with: a key of a file, or of a key management service."""
    wrapped: Annotated[str, StringConstraints(max_length=WRAPPED_CHARS_MAX)]
    """In base64."""


class LedgerRecord(_Message):
    """The value of `tidemill.ledger`: what a batch that is over is billed, whatever the price becomes."""

    batch_id: Id
    project: Name
    model: Name | None = None
    """None where the batch ended before its lines were looked at; then nothing was run."""
    endpoint: Word
    status: Status
    ended_at: Time
    day: Word
    """Of `ended_at`, in UTC: `2026-11-23`."""
    lines: Number
    """Those that succeeded: the others cost nothing."""
    usage: Usage
    """The sum over the lines of the output file."""
    bill: Bill
    owner: Size = 0
    """The owner of the batch's partition who wrote it: after a record of a later owner it counts for nothing."""


class AuditRecord(_Message):
    """The value of `tidemill.audit`: who asked for what, from where. It holds no secret and no line."""

    id: Id
    at: Time
    project: Name
    """Whose things it is about; empty where no key was known."""
    actor: Id
    """Id of the key that asked; `key_settings` is that of the settings, empty is none that is known."""
    action: Word
    """One of `schemas/resources/audit.py`."""
    target: Name = ""
    """Id of what it was done to."""
    address: Word = ""
    """The client's IP address, as the api saw it."""
    request_id: Id = ""
    detail: Metadata = {}
    """What else is worth knowing, like the role of a key."""


class Claim(_Message):
    """The value of `tidemill.claims`: what an api process is about to create, said before the command is sent.

    The topic has one partition, so all api processes see the claims in one order: the first claim of a batch id
    is the batch, and a repeated request finds the claim of its first try whichever process took that.
    """

    kind: Literal["claim"] = "claim"
    command: BatchCreated
    fingerprint: Digest
    """A hash of what was asked for; equal requests have equal ones."""
    is_retry: bool = False
    """Whether a client said that it had tried before."""


class UploadRecord(_Message):
    """The value of `tidemill.uploads` under an upload's id; one that is forgotten has a tombstone."""

    kind: Literal["upload"] = "upload"
    project: Name
    upload: Upload
    life_seconds: Time | None = None
    """How long the file is kept that it becomes; None is for good."""
    part_ids: Annotated[tuple[Id, ...], Field(max_length=UPLOAD_PARTS_MAX)] = ()
    """What a completed one was put together from, in order."""


class PartRecord(_Message):
    """The value of `tidemill.uploads` under `<upload id>/<part id>`."""

    kind: Literal["part"] = "part"
    part: UploadPart
    bytes: Size
    key: StoreKey
    """Where the bytes lie in the store."""


Piece = Annotated[UploadRecord | PartRecord, Field(discriminator="kind")]
