"""A batch in memory while it is active: its state, its line bitmap and the lines that wait for a part."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.kafka.partitions.owner import Ack
from tidemill.results.ports import Limits
from tidemill.results.state import reducer
from tidemill.results.state.eta import Eta
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.results.state.stalls import Stalls, waiting
from tidemill.schemas.lifecycle import AT_WORK
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.part import NO_MODEL, UNKNOWN_USAGE, encode_index
from tidemill.schemas.resources.batch import Progress
from tidemill.schemas.resources.waiting import Reason, Waiting

PUBLISH_SECONDS: Final = 0.5
"""A batch at work is published at most this often; a small batch that ends sooner is published only then."""
PUBLISH_SECONDS_MAX: Final = 2.0
"""Progress by less than one line in `PUBLISH_PART` is published after this time."""
PUBLISH_PART: Final = 50

Obstacle = tuple[Reason, str]
"""Why a batch cannot go on: the reason, and a message for its user."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A batch before an event. It is taken for each event, so it holds references and copies nothing."""

    state: State
    kept: State | None
    buffers: tuple[tuple[list[Any], int, int], tuple[list[Any], int, int]]
    """For each buffer: its list of lines, the length of that list, and the bytes of the lines."""
    acks: tuple[list[Ack], int]
    times: tuple[float | None, float, float | None]
    unpublished: bool


@dataclass(slots=True)
class PartBuffer:
    """Lines that wait for a part, in the order they came."""

    lines: list[tuple[int, bytes | memoryview, tuple[int, int, int, int]]] = field(default_factory=list)
    size: int = 0
    """Bytes of the lines."""

    def add(self, mark: LineMark, line: bytes | memoryview) -> None:
        """Append a line."""
        self.lines.append((mark.index, line, UNKNOWN_USAGE if mark.usage is None else mark.usage))
        self.size += mark.size

    def clear(self) -> None:
        """Empty the buffer."""
        # A new list, since a snapshot may hold the old one.
        self.lines, self.size = [], 0

    def content(self, models: Sequence[int] = ()) -> tuple[int, bytes, bytes]:
        """The lines as a part: the first index, the encoded columns, and the lines in order.

        Args:
            models: The number of the model of each line by its index; empty if there are none.
        """
        lines = sorted(self.lines, key=lambda line: line[0])
        indices = array("I", [index for index, _, _ in lines])
        columns = encode_index(
            indices,
            array("I", [len(line) for _, line, _ in lines]),
            array("I", [models[index] for index in indices]) if models else array("I", [NO_MODEL]) * len(lines),
            array("I", [number for _, _, usage in lines for number in usage]),
        )
        return lines[0][0], columns, b"".join(line for _, line, _ in lines)


@dataclass(slots=True)
class Blockage:
    """The obstacle that blocks a batch in this process, and the time of the next attempt."""

    shown: tuple[Waiting, ...] = ()
    """The reason to show on the batch; empty if nothing blocks it."""
    is_unread: bool = False
    """Whether result lines of the batch cannot be read at the moment (`kafka/partitions/held_records.py`)."""
    refusals: int = 0
    """How often in a row the store has refused its lines."""
    again_at: float = 0.0
    """When to try again, by the monotonic clock."""


@dataclass(slots=True)
class ActiveBatch:
    """An active batch; times are those of the monotonic clock."""

    state: State
    bitmap: LineBitmap
    kept: State | None = None
    """The state that this process last wrote to the table."""
    output: PartBuffer = field(default_factory=PartBuffer)
    errors: PartBuffer = field(default_factory=PartBuffer)
    acks: list[Ack] = field(default_factory=list)
    """Acknowledge the events whose lines wait in the buffers."""
    waiting_since: float | None = None
    """When the oldest waiting line came."""
    published_at: float = 0.0
    """When this process last published the batch, or took it over."""
    ending_since: float | None = None
    """When this process learnt that the batch ends before all its lines are done."""
    eta: Eta | None = None
    compacting: bool = False
    stalls: Stalls = field(default_factory=Stalls)
    blockage: Blockage = field(default_factory=Blockage)
    tried_part: int = -1
    """Number of the last part that was sent to the store; it may appear later even if the store refused it."""
    unpublished: bool = False
    """Whether something besides grown counts is to be published."""

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """The reasons to wait that the batch shows."""
        return self.blockage.shown or (self.state.batch.tidemill.waiting if self.state.batch is not None else ())

    def block(self, obstacle: Obstacle | None, again_at: float, now: int) -> bool:
        """Mark the batch as blocked, or as free again if there is no obstacle.

        Args:
            obstacle: What blocks it.
            again_at: When it is tried again, by the monotonic clock.
            now: Unix seconds.

        Returns:
            Whether the batch has to be published because of it.
        """
        self.blockage.again_at = again_at
        since = self.blockage.shown[0].since if self.blockage.shown else now
        shown = () if obstacle is None else (waiting(*obstacle, since=since),)
        if shown == self.blockage.shown:
            return False
        self.blockage.shown, self.unpublished = shown, True
        return True

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the waiting lines."""
        return self.output.size + self.errors.size

    @property
    def next_part(self) -> int:
        """Number of the next part."""
        return max([self.tried_part, *(part.number for part in self.state.parts)]) + 1

    @property
    def total(self) -> int:
        """Lines of the batch that are asked, 0 until ingest has counted them."""
        return self.state.batch.lines_asked if self.state.batch else 0

    @property
    def next_publish_at(self) -> float:
        """When the batch may next be published."""
        much = self.unpublished or PUBLISH_PART * self.unpublished_lines >= self.total
        return self.published_at + (PUBLISH_SECONDS if much else PUBLISH_SECONDS_MAX)

    @property
    def unpublished_lines(self) -> int:
        """Final lines that are not published yet; negative while a replay still brings lines that are."""
        counts = self.state.batch.request_counts if self.state.batch else None
        return 0 if counts is None else self.bitmap.done - counts.completed - counts.failed

    def due(self, now: float, monotonic: float, limits: Limits) -> list[float]:
        """The times at which something is due without a record, Unix seconds.

        Args:
            now: Unix seconds.
            monotonic: The same moment by the monotonic clock.
            limits: The longest wait of a line for its part, and the length of the grace period.
        """
        ahead = now - monotonic
        due = [] if (due_at := reducer.next_due(self.state)) is None else [due_at]
        if due and self.ending_since is not None:
            due.append(ahead + self.ending_since + limits.grace_seconds)
        if self.waiting_since is not None:
            due.append(ahead + self.waiting_since + limits.part_age_seconds)
        if self.blockage.again_at:
            due = [max(at, ahead + self.blockage.again_at) for at in due]
        if self.unpublished or self.unpublished_lines > 0:
            due.append(ahead + self.next_publish_at)
        if not self.state.closed and self.state.ending is None:
            due += [ahead + at for at in self.stalls.due(monotonic)]
            if self.eta is not None and (quiet_at := self.eta.unpublished_quiet_at) is not None:
                due.append(ahead + quiet_at)
        return due

    def graced(self, at: float, monotonic: float, limits: Limits, *, is_current: bool) -> float:
        """The time to compare with the end of the grace period, Unix seconds.

        It is not before that end once the period has lasted by the monotonic clock: the wall clock may have been
        set back. It is minus infinity while a replay still brings lines that a former owner published: they may
        lie behind this tick. Behind a tick of this owner there are none; lines missing by then are lost.

        Args:
            at: The time of the tick, Unix seconds.
            monotonic: The present time by the monotonic clock.
            limits: The length of the grace period.
            is_current: Whether this owner has sent the tick.
        """
        if self.unpublished_lines < 0 and not is_current:
            return float("-inf")
        close_at = self.state.close_at
        if close_at is None or self.ending_since is None or monotonic < self.ending_since + limits.grace_seconds:
            return at
        return max(at, close_at)

    def progress(self, now: float, monotonic: float) -> Progress | None:
        """The progress of a batch at work, else None.

        Args:
            now: Unix seconds.
            monotonic: The same moment by the monotonic clock.
        """
        batch = self.state.batch
        if batch is None or batch.status not in AT_WORK:
            return None
        if self.eta is None:
            self.eta = Eta.start(monotonic, self.bitmap.done)
        self.eta.observe(monotonic, self.bitmap.done)
        return self.eta.progress(batch.lines_asked, batch.expires_at, now)

    def add(self, marks: list[LineMark], value: bytes, now: float, model: int | None = None) -> int:
        """Put the lines that were not final before into the buffers.

        Args:
            marks: Index, size and result of each line.
            value: The lines, one after the other.
            now: The present time by the monotonic clock.
            model: The number of the model of the lines; None in a batch with only one.

        Returns:
            How many lines were new.
        """
        view = memoryview(value)
        mark_line = self.bitmap.mark
        new = end = 0
        for mark in marks:
            start, end = end, end + mark.size
            if mark_line(mark.index, failed=mark.failed):
                (self.errors if mark.failed else self.output).add(mark, view[start:end])
                if model is not None:
                    self.bitmap.assign(mark.index, model, failed=mark.failed)
                new += 1
        if new and self.waiting_since is None:
            self.waiting_since = now
        return new

    def snapshot(self) -> Snapshot:
        """The batch as it is now."""
        return Snapshot(
            self.state,
            self.kept,
            (
                (self.output.lines, len(self.output.lines), self.output.size),
                (self.errors.lines, len(self.errors.lines), self.errors.size),
            ),
            (self.acks, len(self.acks)),
            (self.waiting_since, self.published_at, self.ending_since),
            self.unpublished,
        )

    def restore(self, was: Snapshot) -> None:
        """Undo an event that failed; a state that was written to the table meanwhile stays."""
        is_kept = self.kept is not was.kept
        for buffer, (lines, count, size) in zip((self.output, self.errors), was.buffers, strict=True):
            if is_kept and buffer.lines is not lines:
                continue  # the lines are in a part that the table names
            for index, _, _ in lines[count:]:
                self.bitmap.unmark(index, failed=buffer is self.errors)
            del lines[count:]
            buffer.lines, buffer.size = lines, size
        acks, count = was.acks
        if is_kept:
            assert self.kept is not None
            # The retry of the event finds nothing new, so it would not publish this state.
            self.state, self.unpublished = self.kept, True
            if self.acks is acks:
                del acks[count:]
            return
        del acks[count:]
        self.state, self.unpublished, self.acks = was.state, was.unpublished, acks
        self.waiting_since, self.published_at, self.ending_since = was.times

    def release(self) -> None:
        """Acknowledge the events whose lines are in parts that the table names."""
        acks, self.acks = self.acks, []
        for ack in acks:
            ack()
