"""A batch in memory while it is at work: its state, its tally and the lines that wait for a part."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.results.files.part_buffer import PartBuffer
from tidemill.results.state import reducer
from tidemill.results.state.eta import Eta
from tidemill.results.state.limits import Limits
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.results.state.stalls import Stalls
from tidemill.schemas.lifecycle import AT_WORK
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.resources.batch import Progress
from tidemill.schemas.resources.waiting import Waiting

PUBLISH_SECONDS: Final = 0.5
"""A batch at work is published at most this often, and a small one not at all that is over by then."""
PUBLISH_SECONDS_MAX: Final = 2.0
"""What has become of fewer lines than one in `PUBLISH_PART` is told after this time."""
PUBLISH_PART: Final = 50

Ack = Callable[[], None]
"""Says that an event needs no second reading."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a batch was before an event; taken for each event, so it holds references and copies nothing."""

    state: State
    kept: State | None
    shelves: tuple[tuple[list[Any], int, int], tuple[list[Any], int, int]]
    """Of each its lines, how many of them there were, and their bytes."""
    acks: tuple[list[Ack], int]
    times: tuple[float | None, float, float | None]
    unsaid: bool


@dataclass(slots=True)
class ActiveBatch:
    """One batch at work."""

    state: State
    tally: LineBitmap
    kept: State | None = None
    """The state that was kept last, by this process."""
    output: PartBuffer = field(default_factory=PartBuffer)
    errors: PartBuffer = field(default_factory=PartBuffer)
    acks: list[Ack] = field(default_factory=list)
    """Of the events whose lines wait on the shelves."""
    waiting_since: float | None = None
    """When the oldest of these lines came; this and the next one are times of a clock that nobody steps."""
    published_at: float = 0.0
    """When it was last published, or taken up."""
    ending_since: float | None = None
    """When it became known here that the batch ends before all its lines are done."""
    pace: Eta | None = None
    """Observed once lines come."""
    compacting: bool = False
    stalls: Stalls = field(default_factory=Stalls)
    blocked: tuple[Waiting, ...] = ()
    """Why it cannot go on here."""
    is_unread: bool = False
    """Whether lines that were run cannot be had at the moment (`results/held_records.py`)."""
    tries: int = 0
    """How often in a row the store has not taken its lines."""
    again_at: float = 0.0
    """Before this time there is nothing to be tried for it; a time of the clock that nobody steps."""
    tried_part: int = -1
    """Number of the last part that was tried to be written; it may appear yet, whatever was said of it."""
    unsaid: bool = False
    """Whether there is something to publish beyond counts that have grown."""

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """What is shown that it waits for."""
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
    def told_at(self) -> float:
        """When it is to be published next, if there is anything to tell, by the clock that nobody steps."""
        much = self.unsaid or PUBLISH_PART * self.untold >= self.total
        return self.published_at + (PUBLISH_SECONDS if much else PUBLISH_SECONDS_MAX)

    @property
    def untold(self) -> int:
        """Lines that are final, and were not when the batch was last published; below 0 they are to come again."""
        counts = self.state.batch.request_counts if self.state.batch else None
        return 0 if counts is None else self.tally.done - counts.completed - counts.failed

    def due(self, now: float, steady: float, limits: Limits) -> list[float]:
        """When it is to be looked at, though nothing has come, Unix seconds.

        Args:
            now: Unix seconds.
            steady: The same moment by a clock that nobody steps.
            limits: How long a line may wait for its part, and how long a grace is.
        """
        ahead = now - steady
        due = [] if (alarm := reducer.next_alarm(self.state)) is None else [alarm]
        if due and self.ending_since is not None:
            due.append(ahead + self.ending_since + limits.grace_seconds)
        if self.waiting_since is not None:
            due.append(ahead + self.waiting_since + limits.part_age_seconds)
        if self.again_at:
            due = [max(at, ahead + self.again_at) for at in due]
        if self.unsaid or self.untold > 0:
            due.append(ahead + self.told_at)
        if not self.state.closed and self.state.ending is None:
            due += [ahead + at for at in self.stalls.due(steady)]
            if self.pace is not None and (quiet_at := self.pace.untold_quiet_at) is not None:
                due.append(ahead + quiet_at)
        return due

    def graced(self, at: float, steady: float, limits: Limits, *, is_current: bool) -> float:
        """The time that counts for the end of the batch's grace: once a grace has lasted, it is over.

        Whose clock its end was reckoned by may have been ahead of ours, or ours was set back since. And a process
        before us may have told of lines that it had folded after this tick: the batch does not end before these
        have come again. Behind a tick of our own come none: what is missing by then the log has lost.

        Args:
            at: Unix seconds.
            steady: The time of the clock that nobody steps.
            limits: How long a grace is.
            is_current: Whether this owner has sent the tick.
        """
        if self.untold < 0 and not is_current:
            return float("-inf")
        close_at = self.state.close_at
        if close_at is None or self.ending_since is None or steady < self.ending_since + limits.grace_seconds:
            return at
        return max(at, close_at)

    def progress(self, now: float, steady: float) -> Progress | None:
        """How far the batch is, if it is at work.

        Args:
            now: Unix seconds.
            steady: The same moment by a clock that nobody steps.
        """
        batch = self.state.batch
        if batch is None or batch.status not in AT_WORK:
            return None
        if self.pace is None:
            self.pace = Eta.start(steady, self.tally.done)
        self.pace.observe(steady, self.tally.done)
        return self.pace.progress(batch.request_counts.total, batch.expires_at, now)

    def take(self, marks: list[LineMark], value: bytes, steady: float) -> int:
        """Put the lines on the shelves that were not final before.

        Args:
            marks: What is known of each line.
            value: The lines, one after the other.
            steady: When they came.

        Returns:
            How many lines were new.
        """
        view = memoryview(value)
        mark_line = self.tally.mark
        new = end = 0
        for mark in marks:
            start, end = end, end + mark.size
            if mark_line(mark.index, failed=mark.failed):
                (self.errors if mark.failed else self.output).add(mark, view[start:end])
                new += 1
        if new and self.waiting_since is None:
            self.waiting_since = steady
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
            self.unsaid,
        )

    def restore(self, was: Snapshot) -> None:
        """Make it what it was before an event that failed; what was kept meanwhile is in the table, and stays."""
        is_kept = self.kept is not was.kept
        for shelf, (lines, count, size) in zip((self.output, self.errors), was.shelves, strict=True):
            if is_kept and shelf.lines is not lines:
                continue  # they are in a part that the table knows
            for index, _, _ in lines[count:]:
                self.tally.unmark(index, failed=shelf is self.errors)
            del lines[count:]
            shelf.lines, shelf.size = lines, size
        acks, count = was.acks
        if is_kept:
            assert self.kept is not None
            # It may not have been told yet, and the second try finds nothing new in it.
            self.state, self.unsaid = self.kept, True
            if self.acks is acks:
                del acks[count:]
            return
        del acks[count:]
        self.state, self.unsaid, self.acks = was.state, was.unsaid, acks
        self.waiting_since, self.published_at, self.ending_since = was.times

    def release(self) -> None:
        """Acknowledge the events whose lines are in parts by now, and the state with them."""
        acks, self.acks = self.acks, []
        for ack in acks:
            ack()
