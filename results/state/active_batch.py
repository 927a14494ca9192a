"""A batch in memory while it is active: its state, its line bitmap and the lines that wait for a part."""

from array import array
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.kafka.partitions.owner import Ack
from tidemill.results.ports import Limits
from tidemill.results.state import reducer
from tidemill.results.state.eta import Eta
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.results.state.stalls import Stalls
from tidemill.schemas.lifecycle import AT_WORK
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.part import UNKNOWN_USAGE, encode_index
from tidemill.schemas.resources.batch import Progress
from tidemill.schemas.resources.waiting import Waiting

PUBLISH_SECONDS: Final = 0.5
"""A batch at work is published at most this often, and a small one not at all that is over by then."""
PUBLISH_SECONDS_MAX: Final = 2.0
"""Progress by less than one line in `PUBLISH_PART` is published after this time."""
PUBLISH_PART: Final = 50


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a batch was before an event; taken for each event, so it holds references and copies nothing."""

    state: State
    kept: State | None
    buffers: tuple[tuple[list[Any], int, int], tuple[list[Any], int, int]]
    """Of each its lines, how many of them there were, and their bytes."""
    acks: tuple[list[Ack], int]
    times: tuple[float | None, float, float | None]
    unpublished: bool


@dataclass(slots=True)
class PartBuffer:
    """Lines in the order they came; a part sorts them."""

    lines: list[tuple[int, bytes | memoryview, tuple[int, int, int, int]]] = field(default_factory=list)
    size: int = 0
    """Bytes of the lines."""

    def add(self, mark: LineMark, line: bytes | memoryview) -> None:
        """Take in a line."""
        self.lines.append((mark.index, line, UNKNOWN_USAGE if mark.usage is None else mark.usage))
        self.size += mark.size

    def clear(self) -> None:
        """Empty the buffer."""
        # A new list: who holds the old one may yet go back to it (`ActiveBatch.restore`).
        self.lines, self.size = [], 0

    def content(self) -> tuple[int, bytes, bytes]:
        """The first index, and the content of the part that the lines make, which is its columns and its lines."""
        lines = sorted(self.lines, key=lambda line: line[0])
        columns = encode_index(
            array("I", [index for index, _, _ in lines]),
            array("I", [len(line) for _, line, _ in lines]),
            array("I", [number for _, _, usage in lines for number in usage]),
        )
        return lines[0][0], columns, b"".join(line for _, line, _ in lines)


@dataclass(slots=True)
class ActiveBatch:
    """One active batch."""

    state: State
    bitmap: LineBitmap
    kept: State | None = None
    """The state that was kept last, by this process."""
    output: PartBuffer = field(default_factory=PartBuffer)
    errors: PartBuffer = field(default_factory=PartBuffer)
    acks: list[Ack] = field(default_factory=list)
    """Of the events whose lines wait in the buffers."""
    waiting_since: float | None = None
    """When the oldest of these lines came; this and the next one are times of the monotonic clock."""
    published_at: float = 0.0
    """When it was last published, or taken over."""
    ending_since: float | None = None
    """When it became known here that the batch ends before all its lines are done."""
    eta: Eta | None = None
    """Observed once lines come."""
    compacting: bool = False
    stalls: Stalls = field(default_factory=Stalls)
    blocked: tuple[Waiting, ...] = ()
    """Why it cannot go on here."""
    is_unread: bool = False
    """Whether lines that were run cannot be had at the moment (`kafka/partitions/held_records.py`)."""
    tries: int = 0
    """How often in a row the store has not taken its lines."""
    again_at: float = 0.0
    """When it is tried again, by the monotonic clock."""
    tried_part: int = -1
    """Number of the last part that was tried to be written; it may appear yet, whatever was said of it."""
    unpublished: bool = False
    """Whether there is something to publish beyond counts that have grown."""

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """What the batch shows that it waits for."""
        return self.blocked or (self.state.batch.tidemill.waiting if self.state.batch is not None else ())

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the lines that wait."""
        return self.output.size + self.errors.size

    @property
    def next_part(self) -> int:
        """Number of the next part."""
        return max([self.tried_part, *(part.number for part in self.state.parts)]) + 1

    @property
    def total(self) -> int:
        """Lines of the batch, 0 while it is not known."""
        return self.state.batch.request_counts.total if self.state.batch else 0

    @property
    def next_publish_at(self) -> float:
        """When to publish it next, if there is anything new, by the monotonic clock."""
        much = self.unpublished or PUBLISH_PART * self.unpublished_lines >= self.total
        return self.published_at + (PUBLISH_SECONDS if much else PUBLISH_SECONDS_MAX)

    @property
    def unpublished_lines(self) -> int:
        """Lines that became final since the batch was last published; below 0 if lines have yet to come again."""
        counts = self.state.batch.request_counts if self.state.batch else None
        return 0 if counts is None else self.bitmap.done - counts.completed - counts.failed

    def due(self, now: float, monotonic: float, limits: Limits) -> list[float]:
        """When it is to be looked at, though nothing has come, Unix seconds.

        Args:
            now: Unix seconds.
            monotonic: The same moment by the monotonic clock.
            limits: How long a line may wait for its part, and how long a grace is.
        """
        ahead = now - monotonic
        due = [] if (due_at := reducer.next_due(self.state)) is None else [due_at]
        if due and self.ending_since is not None:
            due.append(ahead + self.ending_since + limits.grace_seconds)
        if self.waiting_since is not None:
            due.append(ahead + self.waiting_since + limits.part_age_seconds)
        if self.again_at:
            due = [max(at, ahead + self.again_at) for at in due]
        if self.unpublished or self.unpublished_lines > 0:
            due.append(ahead + self.next_publish_at)
        if not self.state.closed and self.state.ending is None:
            due += [ahead + at for at in self.stalls.due(monotonic)]
            if self.eta is not None and (quiet_at := self.eta.unpublished_quiet_at) is not None:
                due.append(ahead + quiet_at)
        return due

    def graced(self, at: float, monotonic: float, limits: Limits, *, is_current: bool) -> float:
        """The time that counts for the end of the batch's grace: once a grace has lasted, it is over.

        Whose clock its end was reckoned by may have been ahead of ours, or ours was set back since. And a process
        before us may have published lines that it applied after this tick: the batch does not end before these
        have come again. Behind a tick of our own come none: what is missing by then the log has lost.

        Args:
            at: Unix seconds.
            monotonic: The time of the monotonic clock.
            limits: How long a grace is.
            is_current: Whether this owner has sent the tick.
        """
        if self.unpublished_lines < 0 and not is_current:
            return float("-inf")
        close_at = self.state.close_at
        if close_at is None or self.ending_since is None or monotonic < self.ending_since + limits.grace_seconds:
            return at
        return max(at, close_at)

    def progress(self, now: float, monotonic: float) -> Progress | None:
        """How far the batch is, if it is at work.

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
        return self.eta.progress(batch.request_counts.total, batch.expires_at, now)

    def take(self, marks: list[LineMark], value: bytes, monotonic: float) -> int:
        """Put the lines into the buffers that were not final before.

        Args:
            marks: What is known of each line.
            value: The lines, one after the other.
            monotonic: When they came.

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
                new += 1
        if new and self.waiting_since is None:
            self.waiting_since = monotonic
        return new

    def snapshot(self) -> Snapshot:
        """What it is now."""
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
        """Make it what it was before an event that failed; what was kept meanwhile is in the table, and stays."""
        is_kept = self.kept is not was.kept
        for buffer, (lines, count, size) in zip((self.output, self.errors), was.buffers, strict=True):
            if is_kept and buffer.lines is not lines:
                continue  # they are in a part that the table knows
            for index, _, _ in lines[count:]:
                self.bitmap.unmark(index, failed=buffer is self.errors)
            del lines[count:]
            buffer.lines, buffer.size = lines, size
        acks, count = was.acks
        if is_kept:
            assert self.kept is not None
            # It may be unpublished, and the second try finds nothing new in it.
            self.state, self.unpublished = self.kept, True
            if self.acks is acks:
                del acks[count:]
            return
        del acks[count:]
        self.state, self.unpublished, self.acks = was.state, was.unpublished, acks
        self.waiting_since, self.published_at, self.ending_since = was.times

    def release(self) -> None:
        """Acknowledge the events whose lines are in parts by now, and the state with them."""
        acks, self.acks = self.acks, []
        for ack in acks:
            ack()
