"""A stream of a direct producer or of the api: its state in the table, and its lines in memory.

The state names the parts, which hold the first lines, and has the journal: the records after these whose lines
already have places in the batch, and the verdict on these lines. The owner writes both before it publishes any of
the lines, so the lines of a record that is redelivered after a crash have the same places and the same verdict.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tidemill.ingest.files.validation import Checker
from tidemill.ingest.quota import Quotas
from tidemill.kafka.partitions.owner import Ack
from tidemill.schemas.bitmap import Bitmap
from tidemill.schemas.bounds import ANSWER_SCHEMA_CHARS_MAX, BATCH_LINES_MAX, Id, Name, Number, Size
from tidemill.schemas.log.intake import SEQ_DIGITS_MAX
from tidemill.schemas.log.messages import BatchCreated
from tidemill.schemas.ports import Clock, Monotonic, Sender, Store
from tidemill.schemas.resources.batch import Batch, ExpiresAfter

PARTS_MAX: Final = 2048
"""A stream with this many parts is sealed, and its next line begins another batch."""
JOURNAL_RECORDS_MAX: Final = 2048
"""Records of a stream that may wait for their part, however small they are."""
JOURNAL_LINES_MAX: Final = 65_536
"""Lines of a stream that may wait for their part, however short they are."""
RECORD_LINES_MAX: Final = 16_384
"""Lines of a record, blank ones included: more requests than this do not fit into a record."""
GROUP_RECORDS_MAX: Final = 1000
"""Records that are decided on together."""
GROUP_LINES_MAX: Final = 8_192
"""A group ends with the record that brings it to this many lines."""
GROUPS_MAX: Final = 16
"""Parts that a stream may get after its end is decided."""
Sequence = Annotated[int, Field(ge=-1, le=10**SEQ_DIGITS_MAX - 1)]
Place = Annotated[int, Field(ge=0, le=BATCH_LINES_MAX)]
Entry = tuple[Number, Place, Annotated[int, Field(ge=0, le=RECORD_LINES_MAX)], Sequence]
HexBitmap = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9_-]*$", max_length=(JOURNAL_LINES_MAX + GROUP_LINES_MAX + RECORD_LINES_MAX) // 4
    ),
]

PREFIX: Final = "intake/"
"""Prefix of the parts' keys in the store."""


class StreamPart(BaseModel):
    """A part of an input in the store: some lines, each with its newline."""

    model_config = ConfigDict(frozen=True)

    number: Number
    writer: Id
    """A token that no other owner of the partition has: a former owner's parts never replace this one's."""
    lines: Number
    bytes: Size


class State(BaseModel):
    """The state of a stream that its table keeps."""

    model_config = ConfigDict(frozen=True)

    partition: Number
    """Partition of `tidemill.intake`."""
    project: Name
    batch: Batch
    """The batch in its first state."""
    model: Name | None = None
    """The model of its valid lines."""
    chosen_before: Number = 0
    """The line that chose the model has a lower place."""
    kept_seq: Sequence = -1
    """The highest `seq` of the records in parts."""
    dropped: Number = 0
    """Records that were dropped as copies."""
    parts: Annotated[tuple[StreamPart, ...], Field(max_length=PARTS_MAX + GROUPS_MAX)] = ()
    journal: Annotated[tuple[Entry, ...], Field(max_length=JOURNAL_RECORDS_MAX + GROUP_RECORDS_MAX)] = ()
    """Records whose lines are in no part yet: offset, place of the first line, number of lines, `seq` or -1."""
    judged: Number = 0
    """Lines at lower places have a verdict."""
    refused: HexBitmap = "0"
    """The lines that the verdict refused; the lowest bit is the first line that is in no part."""
    ended: bool = False
    """Whether it accepts no more lines; it is sealed once the last of them is in a part."""
    sealed: bool = False
    """Whether all its lines are in parts, which are being joined to its input."""
    discarding: bool = False
    """Whether the batch was cancelled: further lines are dropped until the producer ends the stream."""
    joined: bool = False
    """Whether the batch's input is complete."""
    settled: bool = False
    """Whether a record of it is acknowledged, so that the state must be kept even without lines."""
    output_expires_after: ExpiresAfter | None = None
    answer_schema: Annotated[str, StringConstraints(max_length=ANSWER_SCHEMA_CHARS_MAX)] | None = None
    """The JSON Schema that each answer must fit, until the store has it."""

    @property
    def id(self) -> str:
        """The batch's id."""
        return self.batch.id

    @property
    def name(self) -> tuple[str, str]:
        """Project and name of the stream."""
        return self.project, self.batch.tidemill.stream or ""

    @property
    def is_of_api(self) -> bool:
        """Whether the api opened the batch, not a direct producer."""
        return self.batch.tidemill.stream == self.id

    @property
    def kept_lines(self) -> int:
        """Lines in parts."""
        return sum(part.lines for part in self.parts)

    @property
    def seq(self) -> int:
        """The highest `seq` of its records, -1 if none has any."""
        return max((seq for _, _, _, seq in reversed(self.journal) if seq >= 0), default=self.kept_seq)

    def until(self, offset: int) -> "State":
        """The state without the decisions on records behind an offset, and without the verdicts on their lines."""
        journal = tuple(entry for entry in self.journal if entry[0] <= offset)
        if journal == self.journal:
            return self
        kept = self.kept_lines
        end = journal[-1][1] + journal[-1][2] if journal else kept
        judged = min(self.judged, end)
        refused = int(self.refused, 16) & ((1 << (end - kept)) - 1)
        # A line that is not refused has the model, also if its verdict came with a later record.
        has_model = self.chosen_before <= end or refused.bit_count() < judged - kept
        return self.model_copy(
            update={
                "journal": journal,
                "ended": False,
                "judged": judged,
                "refused": f"{refused:x}",
                "model": self.model if has_model else None,
            }
        )

    def key(self, part: StreamPart) -> str:
        """The key of a part in the store."""
        return f"{PREFIX}{self.id}/{part.number:010d}-{part.writer}"


class Published(Enum):
    """The facts that a process publishes once for each stream."""

    BATCH = 1
    SCHEMA = 2
    """The JSON Schema of its answers is in the store."""
    END = 3
    """It accepts no more lines."""


@dataclass(slots=True)
class Stream:
    """A stream in memory."""

    state: State
    checker: Checker
    lines: int
    """Lines so far, with those of the journal."""
    last_record_at: float
    """When its last record arrived; this and `waiting_since` are times of the monotonic clock."""
    size: int = 0
    """Bytes of its lines so far, newlines included; lines of the journal count once they are redelivered."""
    buffer: list[bytes] = field(default_factory=list)
    """Lines that wait for their part."""
    buffer_bytes: int = 0
    buffered_offset: int = -1
    """Offset of the last record whose lines are in the buffer or in a part."""
    acks: list[Ack] = field(default_factory=list)
    """Acknowledge the records of the waiting lines."""
    waiting_since: float | None = None
    """When the oldest waiting line came."""
    awaited: set[int] = field(default_factory=set)
    """Offsets in the journal whose records Kafka has yet to redeliver; until then no tick ends the stream."""
    seq: int = -1
    """The highest `seq` of its records."""
    tried_part: int = -1
    """Number of the last part sent to the store; it may appear later even if the store refused it."""
    published: set[Published] = field(default_factory=set)
    """The facts that this process has published about it."""

    def put(self, lines: list[bytes], offset: int, ack: Ack, now: float) -> None:
        """Put the lines of the record at an offset into the buffer."""
        self.buffered_offset = offset
        self.buffer += lines
        self.buffer_bytes += sum(map(len, lines)) + len(lines)
        self.acks.append(ack)
        if self.waiting_since is None:
            self.waiting_since = now

    def note(self, offset: int, count: int, seq: int | None) -> int:
        """Give a record's lines their places in the batch; returns the place of the first line."""
        first = self.lines
        self.lines += count
        journal = (*self.state.journal, (offset, first, count, -1 if seq is None else seq))
        self.state = self.state.model_copy(update={"journal": journal})
        self.seq = self.seq if seq is None else seq
        return first

    def drop(self) -> None:
        """Count a record that is dropped as a copy."""
        self.state = self.state.model_copy(update={"dropped": self.state.dropped + 1})

    def judge(self, end: int, refused: Iterable[int]) -> None:
        """Note the verdict on the lines below a place, and the model that they have chosen."""
        state, kept, places = self.state, self.state.kept_lines, Bitmap()
        for place in refused:
            places.add(place - kept)
        update: dict[str, object] = {
            "judged": end, "refused": f"{int(state.refused, 16) | places.number:x}"
        }  # fmt: skip
        if state.model is None and self.checker.model is not None:
            update |= {"model": self.checker.model, "chosen_before": end}
        self.state = state.model_copy(update=update)

    @property
    def is_full(self) -> bool:
        """Whether its journal has to become shorter before it gets further records."""
        state = self.state
        return len(state.journal) >= JOURNAL_RECORDS_MAX or self.lines - state.kept_lines >= JOURNAL_LINES_MAX

    def keep(self, part: StreamPart, replaced: int) -> None:
        """Replace the buffer, and the last `replaced` parts, with a part that holds their lines."""
        parts = self.state.parts[: len(self.state.parts) - replaced]
        refused = f"{int(self.state.refused, 16) >> len(self.buffer):x}"
        self.state = self.state.model_copy(update={"parts": (*parts, part), "refused": refused})
        self.buffer, self.buffer_bytes = [], 0

    def settle(self) -> list[Ack]:
        """Drop the records in parts from the journal; returns their acks, to be called once the state is kept."""
        journal = tuple(entry for entry in self.state.journal if entry[0] > self.buffered_offset)
        gone = (entry[3] for entry in self.state.journal if entry[0] <= self.buffered_offset)
        seq = max(self.state.kept_seq, max(gone, default=-1))
        self.state = self.state.model_copy(
            update={"journal": journal, "kept_seq": seq, "settled": True, "answer_schema": None}
        )
        acks, self.acks, self.waiting_since = self.acks, [], None
        return acks


class BufferedBytes:
    """The bytes of waiting lines in all partitions of a process."""

    def __init__(self) -> None:
        self._sizes: dict[object, int] = {}

    def now(self, partition: object, size: int) -> int:
        """Set the bytes of one partition; returns those of all."""
        self._sizes[partition] = size
        return sum(self._sizes.values())

    def forget(self, partition: object) -> None:
        """Drop a partition."""
        self._sizes.pop(partition, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When an idle stream ends, when lines become a part, how long an input is kept; see `settings.py`."""

    idle_seconds: float
    age_seconds: float
    input_life_seconds: int
    part_bytes: int


Opening = Callable[[Mapping[str, str]], BatchCreated | None]
"""Returns the batch that a record of the api opens, given its headers; see `intake.opening`."""
Project = Callable[[str, str, float | None], Awaitable[str]]
"""Returns a credential's project, given the stream and the log's time of the record, or raises `IntakeError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The connections, clocks and settings that all partitions of a process share."""

    sender: Sender
    store: Store
    project: Project
    opening: Opening
    quotas: Quotas
    clock: Clock
    monotonic: Monotonic
    times: Times
    buffered: BufferedBytes
