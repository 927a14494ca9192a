"""The lines of a model: pending ones, whose results the log does not have yet, and completed ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from opentelemetry.trace import Span

from tidemill.processors.answer_check import AnswerCheck
from tidemill.processors.backends.backend import Backend
from tidemill.processors.failures import FailureKind, History
from tidemill.processors.partitions.completed_lines import CompletedLines
from tidemill.processors.partitions.window import Entry
from tidemill.schemas.log.codec import RequestHead


@dataclass(slots=True, eq=False)
class Line:
    """A pending line; times are seconds of the event loop's clock."""

    head: RequestHead
    index: int
    text: bytes
    """The input line; empty if it is in the store (`head.ref`)."""
    entries: list[Entry]
    """Its records: several if the log has copies of the line."""
    attempts: int = 0
    """Calls made, including the one in flight."""
    since: float = 0.0
    """When it was first called, or last failed."""
    history: History | None = None
    """Its failed calls, if any."""
    began_at: float = 0.0
    """When its last call began."""
    seconds: float = 0.0
    """How long that took."""
    inputs_max: int = 0
    """Inputs of its next call, after larger ones were refused (`joined/joiner.py`); 0 for no bound."""
    avoid: Backend | None = None
    """The server that failed it last."""
    backend: Backend | None = None
    """The server that its result comes from."""
    check: AnswerCheck | None = None
    """The check of its answer, once it is called, if its batch has a schema."""
    span: Span | None = None
    """The span of its call in flight, if it has one (`calls/spans.py`)."""
    reason: tuple[FailureKind, str, int | None] | None = None
    """Why it waits for another call: kind, server and status of its last failure (`FailedLines`)."""

    @property
    def is_lost(self) -> bool:
        """Whether this process has left the partitions of all its records: another one may call it."""
        return all(entry.window.is_closed for entry in self.entries)

    @property
    def size(self) -> int:
        """Bytes of the input line."""
        return len(self.text) if self.head.ref is None else self.head.ref.length


@dataclass(slots=True, eq=False)
class Pending:
    """The lines of one batch by their index."""

    lines: dict[int, Line] = field(default_factory=dict)
    open: int = 0
    """Lines without a result."""
    settled: int = 0
    """Results so far."""


class PendingLines:
    """The pending lines of all batches of a model."""

    def __init__(self, completed: CompletedLines) -> None:
        self.batches: dict[str, Pending] = {}
        self.completed = completed

    def __len__(self) -> int:
        return sum(len(batch.lines) for batch in self.batches.values())

    def __iter__(self) -> Iterator[Line]:
        return (line for batch in self.batches.values() for line in batch.lines.values())

    def __contains__(self, line: Line) -> bool:
        batch = self.batches.get(line.head.batch_id)
        return batch is not None and batch.lines.get(line.index) is line

    def add(self, entry: Entry, head: RequestHead, texts: Sequence[bytes]) -> tuple[list[Line], int]:
        """Add the lines of a record; a line that is pending already waits for both records.

        Returns:
            The new lines, and the number of completed ones.
        """
        batch = self.batches.setdefault(head.batch_id, Pending())
        fresh = []
        completed = 0
        is_known = self.completed.touch(head.batch_id)
        for index, text in zip(head.places(len(texts)), texts, strict=True):
            if (twin := batch.lines.get(index)) is not None:
                twin.entries.append(entry)
            elif is_known and self.completed.is_done(head.batch_id, index):
                completed += 1
            else:
                line = batch.lines[index] = Line(head, index, text, [entry])
                fresh.append(line)
        batch.open += len(fresh)
        if not batch.lines:
            del self.batches[head.batch_id]
        return fresh, completed

    def is_done(self, line: Line) -> bool:
        """Whether the log has the result of a pending line: another process called it, too."""
        return self.completed.is_done(line.head.batch_id, line.index)

    def settle(self, line: Line) -> bool:
        """Note that a line has a result; returns whether others of its batch have none."""
        batch = self.batches[line.head.batch_id]
        batch.open -= 1
        batch.settled += 1
        return batch.open > 0

    def arrive(self, line: Line) -> None:
        """Note that the log has the result of a line."""
        self.completed.mark(line.head.batch_id, line.index)
        self._remove(line)

    def forget(self, line: Line) -> None:
        """Remove a line that has no result."""
        self.batches[line.head.batch_id].open -= 1
        self._remove(line)

    def _remove(self, line: Line) -> None:
        batch = self.batches[line.head.batch_id]
        del batch.lines[line.index]
        if not batch.lines:
            del self.batches[line.head.batch_id]
