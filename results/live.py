"""A batch in memory while it is at work: its state, its tally and the lines that wait for a part."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tidemill.results import fold
from tidemill.results.fold import State
from tidemill.results.pace import Pace
from tidemill.results.shelf import Shelf
from tidemill.results.tally import Tally
from tidemill.schemas.batch import Progress, Status
from tidemill.schemas.codec import LineMark

PUBLISH_SECONDS: Final = 0.5
"""A batch at work is published at most this often, and a small one not at all that is over by then."""

Ack = Callable[[], None]
"""Says that an event needs no second reading."""


@dataclass(slots=True)
class Live:
    """One batch at work."""

    state: State
    tally: Tally
    output: Shelf = field(default_factory=Shelf)
    errors: Shelf = field(default_factory=Shelf)
    acks: list[Ack] = field(default_factory=list)
    """Of the events whose lines wait on the shelves."""
    waiting_since: float | None = None
    """When the oldest of these lines came, Unix seconds."""
    published_at: float = 0.0
    """When it was last published, or taken up, Unix seconds."""
    pace: Pace | None = None
    """Observed once lines come."""
    compacting: bool = False
    stuck: str | None = None
    """Why it cannot come to its end."""
    unsaid: bool = False
    """Whether there is something to publish beyond counts that have grown."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the lines that wait."""
        return self.output.size + self.errors.size

    @property
    def next_part(self) -> int:
        """Number of the next part."""
        return max((part.number for part in self.state.parts), default=-1) + 1

    @property
    def total(self) -> int:
        """Lines of the batch, 0 while it is not known."""
        return self.state.batch.request_counts.total if self.state.batch else 0

    def due(self, part_age_seconds: float) -> list[float | None]:
        """When it is to be looked at, though nothing has come, Unix seconds; None where it is not.

        Args:
            part_age_seconds: How long a line may wait for its part.
        """
        counts = self.state.batch.request_counts if self.state.batch else None
        is_unsaid = self.unsaid or (counts is not None and counts.completed + counts.failed < self.tally.done)
        return [
            fold.next_alarm(self.state),
            None if self.waiting_since is None else self.waiting_since + part_age_seconds,
            self.published_at + PUBLISH_SECONDS if is_unsaid else None,
        ]

    def progress(self, now: float) -> Progress | None:
        """How far the batch is, if it is at work."""
        batch = self.state.batch
        if batch is None or batch.status not in (Status.IN_PROGRESS, Status.CANCELLING):
            return None
        if self.pace is None:
            self.pace = Pace.start(now, self.tally.done)
        self.pace.observe(now, self.tally.done)
        return self.pace.progress(batch.request_counts.total, batch.expires_at)

    def take(self, marks: list[LineMark], value: bytes, now: float) -> int:
        """Put the lines on the shelves that were not final before.

        Args:
            marks: What is known of each line.
            value: The lines, one after the other.
            now: Unix seconds.

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
            self.waiting_since = now
        return new

    def release(self) -> None:
        """Acknowledge the events whose lines are in parts by now, and the state with them."""
        acks, self.acks = self.acks, []
        for ack in acks:
            ack()
