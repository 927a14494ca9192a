"""The partitions that this process reads, and the records held until outcomes are recovered.

Steps 5 and 6 of docs/reference/protocol.md, without I/O: `wanted` names the outcomes to read, and `recovered` says
that they have been read.

The previous owner may have called some lines of the records after its last commit and before the partition's end
at the assignment. It may also have called copies of those lines beyond that end, which a restarted ingest
publishes. No other process has called lines that lie beyond the end and belong to a batch younger than the
assignment.

Any other record waits until the outcomes of its batch have been read. All of them are in one partition of
`outcomes`, and none is older than the batch. So one number for each partition is enough: the time since which it
has been read. The previous owner delivered its outcomes before it left the partition, or died; so a read after the
assignment finds all of them, and later outcomes of these lines come from this process.

A call that was in flight when its process died left no outcome, and is made again.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.window import Entry, PartitionWindow
from tidemill.schemas.bounds import CLOCK_SKEW_SECONDS
from tidemill.schemas.log.codec import RequestHead

Enqueue = Callable[[Entry, RequestHead, list[bytes]], None]
"""Takes the lines of a record once earlier outcomes of its batch are known."""

NEVER: Final = float("inf")


@dataclass(slots=True, kw_only=True)
class PlacedRecord:
    """A record in its window, and when and where it was published."""

    tp: Any
    offset: int
    time: float
    """When it was published, Unix seconds."""
    entry: Entry
    head: RequestHead
    texts: list[bytes]
    enqueue: Enqueue
    """The method of the record's model."""

    @property
    def since(self) -> float:
        """The earliest time of an outcome of its lines: ingest may have published the lines earlier, too."""
        return self.time if self.head.created is None else min(self.time, float(self.head.created))


class Assignment:
    """Windows by partition, and the records that wait for recovery."""

    def __init__(self, closed: ClosedBatches, partition_of: Callable[[str], int]) -> None:
        """Start without partitions.

        Args:
            closed: The batches whose lines are no longer called.
            partition_of: Maps a batch id to its partition of `outcomes`.
        """
        self._closed = closed
        self._partition_of = partition_of
        self._windows: dict[Any, PartitionWindow] = {}
        self._ends: dict[Any, int] = {}
        """The end offset of each partition, read after the assignment."""
        self._held: list[PlacedRecord] = []
        """In order of arrival; the windows bound them."""
        self._read: dict[tuple[int, int], float] = {}
        """Since when each partition of `outcomes` has been read, after the hand-over with this number."""
        self._wanted: dict[int, float] = {}
        self._assigned_at = NEVER
        self.handovers = 0
        """Hand-overs of partitions after the assignment."""
        self._added_after: dict[Any, int] = {}
        """The number of hand-overs before each partition was added."""

    @property
    def windows(self) -> Iterable[PartitionWindow]:
        """The windows of the assigned partitions."""
        return self._windows.values()

    def window(self, tp: Any) -> PartitionWindow | None:
        """The window of a partition; None if it is not assigned."""
        return self._windows.get(tp)

    def assign(self, now: float) -> None:
        """Begin without partitions; those that are added were assigned at `now`, in Unix seconds."""
        self.leave()
        # Other processes may have called lines of these partitions.
        self._read.clear()
        self._wanted.clear()
        self._assigned_at = now

    def hand_over(self) -> None:
        """Others have delivered outcomes that the partitions added from now on need; earlier reads lack them."""
        self.handovers += 1

    def add(self, windows: Mapping[Any, PartitionWindow], ends: Mapping[Any, int]) -> None:
        """Add partitions, with end offsets that were read after the assignment."""
        self._windows.update(windows)
        self._ends.update(ends)
        self._added_after |= dict.fromkeys(windows, self.handovers)

    def remove(self, tps: Iterable[Any]) -> None:
        """Remove partitions; their held records are read again after an `add`."""
        gone = set(tps)
        for tp in gone:
            if (window := self._windows.pop(tp, None)) is not None:
                window.close()
            self._ends.pop(tp, None)
            self._added_after.pop(tp, None)
        self._held = [record for record in self._held if record.tp not in gone]

    def leave(self) -> None:
        """Close all windows and forget held records: Kafka delivers them to the next owner."""
        for window in self._windows.values():
            window.close()
        self._windows = {}
        self._ends = {}
        self._added_after = {}
        self._held = []

    def take(self, record: PlacedRecord) -> bool:
        """Enqueue the lines of a record, or hold it until the outcomes of its batch are known; False if held."""
        if self._is_known(record):
            record.enqueue(record.entry, record.head, record.texts)
            return True
        self._held.append(record)
        return False

    def release(self) -> bool:
        """Enqueue held records whose outcomes are known now; returns whether any record is still held."""
        held, self._held = self._held, []
        for record in held:
            self.take(record)
        return bool(self._held)

    def wanted(self) -> dict[int, float]:
        """The partitions of `outcomes` to read, each from a Unix time on."""
        return dict(self._wanted)

    def recovered(self, since: dict[int, float], handovers: int) -> None:
        """Note that these partitions of `outcomes` have been read, and their lines marked as completed.

        The read began after so many `handovers`.
        """
        for partition, time in since.items():
            for number in range(handovers + 1):
                self._read[partition, number] = min(time, self._read.get((partition, number), time))
            if self._wanted.get(partition, time) >= time:
                self._wanted.pop(partition, None)

    def _is_known(self, record: PlacedRecord) -> bool:
        """Whether no other process can have called the record's lines, or their outcomes have been read.

        If not, these outcomes are wanted. A record beyond its partition's end at the assignment may hold lines
        that another process called: a restarted ingest publishes all lines of a batch again. So the batch must be
        younger than the assignment, too.
        """
        if record.head.batch_id in self._closed:
            return True
        if (end := self._ends.get(record.tp)) is None:
            return False  # the partition was revoked while the record was opened
        created = record.head.created
        if record.offset >= end and created is not None and created >= self._assigned_at:
            return True
        partition = self._partition_of(record.head.batch_id)
        # If clocks differ, a result may seem older than its request.
        since = record.since - CLOCK_SKEW_SECONDS
        if self._read.get((partition, self._added_after[record.tp]), NEVER) <= since:
            return True
        self._wanted[partition] = min(since, self._wanted.get(partition, since))
        return False
