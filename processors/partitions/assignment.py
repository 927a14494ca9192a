"""The partitions of a model that are ours, and the records of them whose past is not known yet.

Steps 5 and 6 of docs/reference/protocol.md, without I/O: what it cannot decide by itself it wants to be told
(`wanted`, `read`), and until then it holds the record.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.outcome_recovery import OutcomeRecovery
from tidemill.processors.partitions.window import Entry, PartitionWindow
from tidemill.schemas.log.codec import RequestHead

Enqueue = Callable[[Entry, RequestHead, list[bytes]], None]
"""Takes the lines of a record whose past is known."""

NEVER: Final = float("inf")


@dataclass(slots=True, kw_only=True)
class Record:
    """A record in its lane, and what decides whether it may be called."""

    tp: Any
    offset: int
    time: float
    """When it was published, Unix seconds."""
    entry: Entry
    head: RequestHead
    texts: list[bytes]

    @property
    def since(self) -> float:
        """The earliest time that an outcome of its lines may have: ingest may have published them before."""
        return self.time if self.head.created is None else min(self.time, float(self.head.created))


class Assignment:
    """What a process holds of a model's topic."""

    def __init__(self, ended: ClosedBatches, enqueue: Enqueue, partition_of: Callable[[str], int]) -> None:
        """Hold nothing yet.

        Args:
            ended: The batches that are over.
            enqueue: Takes the records whose past is known.
            partition_of: The partition of `outcomes` that a batch falls into.
        """
        self._ended = ended
        self._enqueue = enqueue
        self._partition_of = partition_of
        self._lanes: dict[Any, PartitionWindow] = {}
        self._ends: dict[Any, int] = {}
        """Where the partitions ended at the assignment, once that is known."""
        self._held: list[Record] = []
        """In the order they came; the windows of the lanes bound them."""
        self._recall = OutcomeRecovery()
        self._assigned_at = NEVER

    @property
    def partitions(self) -> list[Any]:
        """Those that are ours."""
        return list(self._lanes)

    @property
    def lanes(self) -> Iterable[PartitionWindow]:
        """Of all of them."""
        return self._lanes.values()

    def lane(self, tp: Any) -> PartitionWindow | None:
        """The lane of a partition that is ours."""
        return self._lanes.get(tp)

    def assign(self, lanes: dict[Any, PartitionWindow], now: float) -> None:
        """These partitions are ours from `now` on, Unix seconds, and no others."""
        self.leave()
        self._lanes = lanes
        self._recall.reset()
        self._assigned_at = now

    def leave(self) -> None:
        """Let go of all: what is held comes again to its next owner."""
        for lane in self._lanes.values():
            lane.close()
        self._lanes = {}
        self._ends = {}
        self._held = []

    def end(self, ends: dict[Any, int]) -> None:
        """Where the partitions ended after they were assigned."""
        self._ends = ends

    def take(self, record: Record) -> bool:
        """Hand over the record of a lane of ours, or hold it; says whether its past was known."""
        if self._is_known(record):
            self._enqueue(record.entry, record.head, record.texts)
            return True
        self._held.append(record)
        return False

    def release(self) -> bool:
        """Hand over the held records whose past has become known; says whether any is held still."""
        held, self._held = self._held, []
        for record in held:
            self.take(record)
        return bool(self._held)

    def wanted(self) -> dict[int, float]:
        """The partitions of `outcomes` to read back, and from which Unix time on."""
        return self._recall.wanted()

    def read(self, since: dict[int, float]) -> None:
        """These have been read back, and the ledger knows."""
        self._recall.read(since)

    def _is_known(self, record: Record) -> bool:
        """Whether nobody has worked on the record's lines before us, or what came of them is known.

        A record beyond the end that its partition had at the assignment may still hold lines that others have
        worked on: where ingest is started again, it publishes all of a batch again. So the batch has to be younger
        than the assignment, too.
        """
        if record.head.batch_id in self._ended:
            return True
        if (end := self._ends.get(record.tp)) is None:
            return False
        created = record.head.created
        if record.offset >= end and created is not None and created >= self._assigned_at:
            return True
        return self._recall.knows(self._partition_of(record.head.batch_id), record.since)
