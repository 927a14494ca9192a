"""The window of a partition: its unacknowledged records and their lines, with bounds on both.

Lines finish in any order. A record finishes with its last line, and is acknowledged once all records before it
have finished. A finished line frees its room for others; a finished record still counts as unacknowledged. Lines
that failed and wait for another call count separately. So lines that are slow, that fail, or whose project has few
turns delay the others of their partition only after many records.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tidemill.kafka.partitions.ack_gate import AckGate, Ticket

LINES_MAX: Final = 16_384
BYTES_MAX: Final = 4 << 20
"""Enough for hundreds of calls in flight, and for a whole batch of 50,000 short lines in four partitions; a
process has a window for each partition of each of its models. Failed lines may take as much again."""
RECORDS_MAX: Final = 2_048
"""Unacknowledged records: Kafka delivers them again after a crash, finished or not."""


class PartitionHandle(Protocol):
    """The consumer's side of a partition."""

    def ack(self, token: Any) -> None:
        """Acknowledge the record with this token, and all records before it."""
        ...

    def pause(self) -> None:
        """Fetch no more records; may be called again while paused."""
        ...

    def resume(self) -> None:
        """Fetch records again."""
        ...


@dataclass(slots=True)
class Capacity:
    """Counts the contents of a window, which is full at a bound and resumes at three quarters of it."""

    lines_max: int = LINES_MAX
    bytes_max: int = BYTES_MAX
    records_max: int = RECORDS_MAX
    lines: int = 0
    """Unfinished lines that did not fail."""
    bytes: int = 0
    """Their bytes; all lines of a record count with its average size."""
    failed: int = 0
    """Unfinished lines that failed, up to the same bound."""
    failed_bytes: int = 0
    records: int = 0
    """Unacknowledged records."""

    @property
    def takes_lines(self) -> bool:
        """Whether lines and bytes are below their bounds."""
        return self.lines < self.lines_max and self.bytes < self.bytes_max

    @property
    def is_full(self) -> bool:
        """Whether any bound is reached."""
        return not self.takes_lines or self.records >= self.records_max

    @property
    def takes_failed(self) -> bool:
        """Whether one more failed line may count separately."""
        return self.failed < self.lines_max and self.failed_bytes < self.bytes_max

    @property
    def can_resume(self) -> bool:
        """Whether a paused partition should be resumed."""
        return (
            4 * self.lines <= 3 * self.lines_max
            and 4 * self.bytes <= 3 * self.bytes_max
            and 4 * self.records <= 3 * self.records_max
        )


@dataclass(slots=True, eq=False)
class Entry:
    """A record in its partition's window."""

    window: "PartitionWindow"
    ticket: Ticket[Any]
    lines: int
    size: int
    line_size: int = field(init=False)
    """Bytes that each line counts for; the last one counts for the rest."""
    left: int = field(init=False)
    """Unfinished lines."""
    failed: int = 0
    """Unfinished lines that count as failed."""
    published_at: float = 0.0
    """When the record was published, by the event loop's clock."""

    def __post_init__(self) -> None:
        """Count all lines as unfinished."""
        self.line_size, self.left = self.size // max(1, self.lines), self.lines


class PartitionWindow:
    """The records of one partition, from their arrival to their acknowledgement."""

    def __init__(
        self, handle: PartitionHandle, capacity: Capacity | None = None, *, number: int | None = None
    ) -> None:
        """Start empty; `number` is that of the group's partition whose owner reads this one."""
        self.number = number
        self.is_closed = False
        self.is_paused = False
        self._handle = handle
        self._capacity = capacity or Capacity()
        # It holds tokens, since an entry refers to its ticket: only a full collection would free such a cycle.
        self._gate: AckGate[Any] = AckGate()

    def __len__(self) -> int:
        return len(self._gate)

    @property
    def takes_lines(self) -> bool:
        """Whether a held record may add its lines; a closed window accepts any."""
        return self.is_closed or self._capacity.takes_lines

    @property
    def oldest(self) -> Any:
        """The token of the oldest unacknowledged record; None if there is none."""
        return self._gate.head

    def admit(self, token: Any, lines: int, size: int) -> Entry:
        """Add the partition's next record.

        Args:
            token: Identifies the record for the handle.
            lines: How many lines it has; a record without lines finishes at once.
            size: Bytes.
        """
        entry = Entry(self, self._gate.admit(token), lines, size)
        self._capacity.lines += lines
        self._capacity.bytes += size
        self._capacity.records += 1
        if not lines:
            self.finish(entry, 0)
        elif self._capacity.is_full:
            # Pauses again with each record, since Faust resumes a partition when its own queue is empty.
            self.is_paused = True
            self._handle.pause()
        return entry

    def refill(self, entry: Entry, lines: int, size: int) -> None:
        """Set the lines and bytes of a held record."""
        if not self.is_closed:
            self._capacity.lines += lines - entry.lines
            self._capacity.bytes += size - entry.size
        entry.left += lines - entry.lines
        entry.lines, entry.size, entry.line_size = lines, size, size // max(1, lines)

    def finish(self, entry: Entry, lines: int = 1) -> None:
        """Finish lines of a record: the log has their results, or they need none."""
        entry.left = left = entry.left - lines
        assert left >= 0, "a line finished twice"
        if self.is_closed:
            return
        if entry.failed > left:
            # The window does not know which lines failed, and assumes that the last ones did.
            self._uncount_failed(entry, entry.failed - left)
        capacity = self._capacity
        capacity.lines -= lines
        if left:
            capacity.bytes -= lines * entry.line_size
        else:
            self._finish_record(entry, lines)
        if self.is_paused and capacity.can_resume:
            self._resume()

    def fail(self, entry: Entry) -> None:
        """Count a line of a record separately, after its first failed call."""
        if self.is_closed or entry.failed >= entry.left or not self._capacity.takes_failed:
            return
        entry.failed += 1
        self._capacity.failed += 1
        self._capacity.failed_bytes += entry.line_size
        self._capacity.lines -= 1
        self._capacity.bytes -= entry.line_size
        if self.is_paused and self._capacity.can_resume:
            self._resume()

    def hold(self) -> None:
        """Pause the partition again if it is paused: Faust may have resumed it."""
        if self.is_paused and not self.is_closed:
            self._handle.pause()

    def close(self) -> None:
        """Stop acknowledging: the partition was revoked."""
        self.is_closed = True

    def _finish_record(self, entry: Entry, lines: int) -> None:
        """Finish a record with its last `lines` lines."""
        self._capacity.bytes -= entry.size - (entry.lines - lines) * entry.line_size
        for token in self._gate.finish(entry.ticket):
            self._capacity.records -= 1
            self._handle.ack(token)

    def _uncount_failed(self, entry: Entry, lines: int) -> None:
        """Count failed lines of a record with the others again."""
        size = lines * entry.line_size
        entry.failed -= lines
        self._capacity.failed -= lines
        self._capacity.failed_bytes -= size
        self._capacity.lines += lines
        self._capacity.bytes += size

    def _resume(self) -> None:
        self.is_paused = False
        self._handle.resume()
