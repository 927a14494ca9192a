"""A stream of a direct producer on its way to be a batch: what is kept of it, and what is known of it in memory.

What is kept says two things. The parts hold the first lines, for good. The journal names the records after
these whose lines were taken too, with the place of each: it is kept before any of these lines is sent to be run,
so a record that comes again after a crash has its lines at the same places, whatever has changed meanwhile.
"""

from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from tidemill.ingest.files.validation import Checker
from tidemill.kafka.partitions.owner import Ack
from tidemill.schemas.bounds import Id, Name, Number, Size
from tidemill.schemas.log.intake import SEQ_DIGITS_MAX
from tidemill.schemas.resources.batch import Batch

PIECES_MAX: Final = 2048
"""A stream of so many parts is sealed, and its next line begins another batch."""
JOURNAL_RECORDS_MAX: Final = 2048
"""Records of a stream that may wait for their part, however small they are."""
GROUP_RECORDS_MAX: Final = 1000
"""Records that are decided on together."""
GROUPS_MAX: Final = 16
"""Parts that a stream may get after it was decided that it ends."""
Sequence = Annotated[int, Field(ge=-1, le=10**SEQ_DIGITS_MAX - 1)]
Entry = tuple[Number, Number, Number, Sequence]

PREFIX: Final = "intake/"
"""Of the parts of inputs that are not whole yet."""


class Piece(BaseModel):
    """A part of an input in the store: some lines, each with its newline."""

    model_config = ConfigDict(frozen=True)

    number: Number
    writer: Id
    """Of no other owner of the partition: what a lost one still writes replaces nothing."""
    lines: Number
    bytes: Size


class State(BaseModel):
    """What is kept of a stream."""

    model_config = ConfigDict(frozen=True)

    partition: Number
    """Of `tidemill.intake`."""
    project: Name
    batch: Batch
    """Its first state."""
    model: Name | None = None
    kept_seq: Sequence = -1
    """The highest number of the records that are in parts."""
    pieces: Annotated[tuple[Piece, ...], Field(max_length=PIECES_MAX + GROUPS_MAX)] = ()
    journal: Annotated[tuple[Entry, ...], Field(max_length=JOURNAL_RECORDS_MAX + GROUP_RECORDS_MAX)] = ()
    """Records whose lines are in no part yet: offset, place of the first line, lines, `seq` or -1."""
    ended: bool = False
    """Whether it takes no more lines; it is sealed once the last of them is in a part."""
    sealed: bool = False
    """Whether all its lines are in parts, which are being joined to its input."""
    discarding: bool = False
    """Whether it was cancelled: until its producer ends it, its further lines are of no batch."""
    joined: bool = False
    """Whether its input is whole."""

    @property
    def id(self) -> str:
        """The batch's id."""
        return self.batch.id

    @property
    def name(self) -> tuple[str, str]:
        """Project and name: what a stream is known by."""
        return self.project, self.batch.tidemill.stream or ""

    @property
    def kept_lines(self) -> int:
        """Lines that are in parts."""
        return sum(piece.lines for piece in self.pieces)

    @property
    def seq(self) -> int:
        """The highest number of its records, -1 for none."""
        return max((seq for _, _, _, seq in reversed(self.journal) if seq >= 0), default=self.kept_seq)

    def until(self, offset: int) -> "State":
        """Without what was not decided for good: what follows `offset` in the journal."""
        journal = tuple(entry for entry in self.journal if entry[0] <= offset)
        return self.model_copy(update={"journal": journal, "ended": self.ended and journal == self.journal})

    def key(self, piece: Piece) -> str:
        """Where a part lies in the store."""
        return f"{PREFIX}{self.id}/{piece.number:010d}-{piece.writer}"


@dataclass(slots=True)
class Stream:
    """A stream in memory."""

    state: State
    checker: Checker
    lines: int
    """Lines so far, those of the journal included."""
    last_record_at: float
    """When its last record came; this and `waiting_since` are times of the monotonic clock."""
    size: int = 0
    """Bytes of its lines so far, newlines included; those of the journal count once they have come again."""
    buffer: list[bytes] = field(default_factory=list)
    """Lines that wait for their part."""
    buffer_bytes: int = 0
    buffered_offset: int = -1
    """Of the last record whose lines are in the buffer, or in a part; the journal has later ones."""
    acks: list[Ack] = field(default_factory=list)
    """Of the records whose lines these are."""
    waiting_since: float | None = None
    awaited: set[int] = field(default_factory=set)
    """Offsets of the journal that have not come again yet: until they have, nothing but them can be decided."""
    seq: int = -1
    """The highest number of its records."""
    tried_piece: int = -1
    """Number of the last part that was tried to be written; the store may have refused it, and keep it yet."""
    is_opened: bool = False
    """Whether this process has published that the batch is there."""

    def put(self, lines: list[bytes], offset: int, ack: Ack, now: float) -> None:
        """Put the lines of the record at an offset into the buffer."""
        self.buffered_offset = offset
        self.buffer += lines
        self.buffer_bytes += sum(map(len, lines)) + len(lines)
        self.acks.append(ack)
        if self.waiting_since is None:
            self.waiting_since = now

    def note(self, offset: int, count: int, seq: int | None) -> int:
        """Decide that a record's lines are this batch's; returns the place of the first."""
        first = self.lines
        self.lines += count
        journal = (*self.state.journal, (offset, first, count, -1 if seq is None else seq))
        self.state = self.state.model_copy(update={"journal": journal})
        self.seq = self.seq if seq is None else seq
        return first

    def keep(self, piece: Piece, replaced: int) -> None:
        """The buffer is in a part, which takes the place of the last `replaced` ones."""
        pieces = self.state.pieces[: len(self.state.pieces) - replaced]
        self.state = self.state.model_copy(update={"pieces": (*pieces, piece)})
        self.buffer, self.buffer_bytes = [], 0

    def settle(self) -> list[Ack]:
        """The buffer is in a part: returns what may be acknowledged once that is kept."""
        journal = tuple(entry for entry in self.state.journal if entry[0] > self.buffered_offset)
        gone = (entry[3] for entry in self.state.journal if entry[0] <= self.buffered_offset)
        seq = max(self.state.kept_seq, max(gone, default=-1))
        self.state = self.state.model_copy(
            update={"journal": journal, "kept_seq": seq, "model": self.checker.model}
        )
        acks, self.acks, self.waiting_since = self.acks, [], None
        return acks


class BufferedBytes:
    """How many bytes of lines wait for their parts, in all partitions of a process."""

    def __init__(self) -> None:
        self._sizes: dict[object, int] = {}

    def now(self, partition: object, size: int) -> int:
        """All of them, once a partition has so many."""
        self._sizes[partition] = size
        return sum(self._sizes.values())

    def forget(self, partition: object) -> None:
        """A partition has none any more."""
        self._sizes.pop(partition, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When a stream ends by itself, and when its lines become a part; see `settings.py`."""

    idle_seconds: float
    age_seconds: float
    part_bytes: int
