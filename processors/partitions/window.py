"""The window of a partition: its records that are not acknowledged, their lines, and bounds on both.

Lines end in any order. A record ends with its last line, and is acknowledged once all before it have ended. A line
that has ended takes no more room, and a record that has ended only a place among those that wait for their
acknowledgement. Lines that have failed and wait for another try count apart. So lines that are slow, that fail, or
that belong to a project with few turns hold up the others of their partition only after a long way.
"""

from typing import Any, Final, Protocol

from tidemill.kafka.partitions.ack_gate import AckGate, Ticket

LINES_MAX: Final = 16_384
BYTES_MAX: Final = 4 << 20
"""Enough for hundreds of calls in flight, and for the whole of a batch of 50,000 short lines in four partitions; a
process has a lane for each partition of each of its models. Lines that have failed may be as many again."""
RECORDS_MAX: Final = 2_048
"""Records that are not acknowledged: what comes again after a crash, done or not."""


class PartitionHandle(Protocol):
    """Where a lane's records come from."""

    def ack(self, token: Any) -> None:
        """The record of this token, and all before it, are done."""
        ...

    def pause(self) -> None:
        """Bring no more for now; may be said again."""
        ...

    def resume(self) -> None:
        """Go on."""
        ...


class Window:
    """How much a lane holds: full at a bound, and with room again at three quarters of it."""

    __slots__ = ("bytes", "bytes_max", "failed", "failed_bytes", "lines", "lines_max", "records", "records_max")

    def __init__(
        self, lines_max: int = LINES_MAX, bytes_max: int = BYTES_MAX, records_max: int = RECORDS_MAX
    ) -> None:
        self.lines_max = lines_max
        self.bytes_max = bytes_max
        self.records_max = records_max
        self.lines = 0
        """Those that are not done."""
        self.bytes = 0
        """Of the same, as if all lines of a record were of one length."""
        self.failed = self.failed_bytes = 0
        """Lines that have failed, and their bytes, which count here only."""
        self.records = 0
        """Those that are not acknowledged."""

    @property
    def is_laden(self) -> bool:
        """Whether there should be no more lines."""
        return self.lines >= self.lines_max or self.bytes >= self.bytes_max

    @property
    def is_full(self) -> bool:
        """Whether nothing more should come."""
        return self.is_laden or self.records >= self.records_max

    @property
    def holds_failed(self) -> bool:
        """Whether another line that has failed may count apart."""
        return self.failed < self.lines_max and self.failed_bytes < self.bytes_max

    @property
    def has_room(self) -> bool:
        """Whether it is worth going on."""
        return (
            4 * self.lines <= 3 * self.lines_max
            and 4 * self.bytes <= 3 * self.bytes_max
            and 4 * self.records <= 3 * self.records_max
        )


class Entry:
    """A record in its lane."""

    __slots__ = ("failed", "lane", "left", "line_size", "lines", "size", "ticket", "token")

    def __init__(self, lane: "PartitionWindow", token: Any, lines: int, size: int) -> None:
        self.lane = lane
        self.token = token
        self.lines = lines
        self.size = size
        self.line_size = size // lines if lines else 0
        """What each of its lines counts for; the last one has the rest."""
        self.left = lines
        """Those of them that are not done."""
        self.failed = 0
        """Those of them that count as failed in the window."""
        self.ticket: Ticket[Entry] | None = None


class PartitionWindow:
    """The records of one partition, from their arrival to their acknowledgement."""

    def __init__(self, tap: PartitionHandle, window: Window | None = None) -> None:
        self.is_closed = False
        self.is_paused = False
        self._tap = tap
        self._window = window or Window()
        self._gate: AckGate[Entry] = AckGate()

    def __len__(self) -> int:
        return len(self._gate)

    @property
    def is_laden(self) -> bool:
        """Whether records that wait beside it should go on doing so."""
        return self._window.is_laden and not self.is_closed

    @property
    def oldest(self) -> Any:
        """The token of the oldest record that is under way; None where there is none."""
        head = self._gate.head
        return None if head is None else head.token

    def admit(self, token: Any, lines: int, size: int) -> Entry:
        """Take in the partition's next record.

        Args:
            token: What the tap knows it by.
            lines: Lines it holds; a record of none is done at once.
            size: Its bytes.
        """
        entry = Entry(self, token, lines, size)
        entry.ticket = self._gate.admit(entry)
        self._window.lines += lines
        self._window.bytes += size
        self._window.records += 1
        if not lines:
            self.done(entry, 0)
        elif self._window.is_full:
            # Said with each record: Faust lets a partition flow again when its own queue is empty.
            self.is_paused = True
            self._tap.pause()
        return entry

    def refill(self, entry: Entry, lines: int, size: int) -> None:
        """Say how many lines a record holds, and its bytes, that was admitted with one line and no bytes."""
        if not self.is_closed:
            self._window.lines += lines - entry.lines
            self._window.bytes += size
        entry.left += lines - entry.lines
        entry.lines, entry.size, entry.line_size = lines, size, size // max(1, lines)

    def done(self, entry: Entry, lines: int = 1) -> None:
        """So many lines of a record are done: their outcomes are delivered, or none is wanted."""
        entry.left = left = entry.left - lines
        assert left >= 0, "a line was done twice"
        if self.is_closed:
            return
        if entry.failed > left:
            # Which of a record's lines have failed is not known here; the last ones are taken to be those.
            self._recall(entry, entry.failed - left)
        window = self._window
        window.lines -= lines
        if left:
            window.bytes -= lines * entry.line_size
        else:
            self._finish(entry, lines)
        if self.is_paused and window.has_room:
            self._resume()

    def fail(self, entry: Entry) -> None:
        """A line of a record has failed for the first time, and waits for another try: it counts apart."""
        if self.is_closed or entry.failed >= entry.left or not self._window.holds_failed:
            return
        entry.failed += 1
        self._window.failed += 1
        self._window.failed_bytes += entry.line_size
        self._window.lines -= 1
        self._window.bytes -= entry.line_size
        if self.is_paused and self._window.has_room:
            self._resume()

    def hold(self) -> None:
        """Pause again where it is paused: the tap may have forgotten."""
        if self.is_paused and not self.is_closed:
            self._tap.pause()

    def close(self) -> None:
        """The partition is gone: nothing is acknowledged any more."""
        self.is_closed = True

    def _finish(self, entry: Entry, lines: int) -> None:
        """A record is done with its last lines, which are so many."""
        assert entry.ticket is not None, "it was admitted"
        self._window.bytes -= entry.size - (entry.lines - lines) * entry.line_size
        for finished in self._gate.finish(entry.ticket):
            self._window.records -= 1
            self._tap.ack(finished.token)

    def _recall(self, entry: Entry, lines: int) -> None:
        """So many lines of a record count as failed no more."""
        size = lines * entry.line_size
        entry.failed -= lines
        self._window.failed -= lines
        self._window.failed_bytes -= size
        self._window.lines += lines
        self._window.bytes += size

    def _resume(self) -> None:
        self.is_paused = False
        self._tap.resume()
