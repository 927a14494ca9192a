"""Result lines of one batch gather into one record, so that the record's price is paid once for many.

Lines gather for a short time, and until the log has what was sent before of their batch. They go at once when
nothing more of the batch is at work here, or when the record is large enough.
"""

from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from tidemill.schemas.log.codec import LineMark, LineRef

PARCEL_BYTES_MAX: Final = 512 << 10
"""A line that is larger travels in a parcel of its own."""
PARCEL_LINES_MAX: Final = 256
LINE_BYTES_MAX: Final = 900 << 10
"""A larger result travels by reference: a record takes 1 MiB with its headers."""
LINGER_SECONDS: Final = 0.005

T = TypeVar("T")


@dataclass(slots=True)
class ResultBatch(Generic[T]):
    """What goes into one record of `outcomes`, and who waits for it to arrive."""

    batch_id: str
    lines: list[bytes] = field(default_factory=list)
    marks: list[LineMark] = field(default_factory=list)
    receipts: list[T] = field(default_factory=list)
    size: int = 0
    ref: LineRef | None = None


class _Batch(Generic[T]):
    __slots__ = ("begun_at", "gathered", "under_way")

    def __init__(self, batch_id: str) -> None:
        self.gathered: ResultBatch[T] = ResultBatch(batch_id)
        self.begun_at = 0.0
        """When the first of the lines came that have gathered."""
        self.under_way = 0


class ResultBatcher(Generic[T]):
    """Gathers the results of all batches; time is any clock in seconds that does not go back."""

    def __init__(self, *, linger_seconds: float = LINGER_SECONDS, lines_max: int = PARCEL_LINES_MAX) -> None:
        self._batches: dict[str, _Batch[T]] = {}
        self._lines_max = lines_max
        self._linger = linger_seconds

    def __len__(self) -> int:
        """Lines gathered and not sent."""
        return sum(len(batch.gathered.lines) for batch in self._batches.values())

    def add(
        self, batch_id: str, line: bytes, mark: LineMark, receipt: T, now: float, *, more: bool
    ) -> list[ResultBatch[T]]:
        """Take in a result.

        Args:
            batch_id: The line's batch.
            line: The result line.
            mark: What is said of it.
            receipt: Given back in the parcel.
            now: The time.
            more: Whether other lines of the batch are at work here.

        Returns:
            What is to be sent now.
        """
        if (batch := self._batches.get(batch_id)) is None:
            batch = self._batches[batch_id] = _Batch(batch_id)
        parcels = []
        if batch.gathered.lines and batch.gathered.size + len(line) > PARCEL_BYTES_MAX:
            parcels.append(self._send(batch))
        parcel = batch.gathered
        if not parcel.lines:
            batch.begun_at = now
        parcel.lines.append(line)
        parcel.marks.append(mark)
        parcel.receipts.append(receipt)
        parcel.size += len(line)
        full = len(parcel.lines) >= self._lines_max or parcel.size >= PARCEL_BYTES_MAX
        if full or not more:
            parcels.append(self._send(batch))
        return parcels

    def arrived(self, batch_id: str, now: float) -> list[ResultBatch[T]]:
        """The log has one of the batch's parcels; returns what is to be sent now."""
        batch = self._batches[batch_id]
        batch.under_way -= 1
        return self.due(batch_id, now)

    def due(self, batch_id: str, now: float) -> list[ResultBatch[T]]:
        """What is to be sent now of a batch."""
        if (batch := self._batches.get(batch_id)) is None:
            return []
        if not batch.gathered.lines:
            if not batch.under_way:
                del self._batches[batch_id]
            return []
        if batch.under_way or now < batch.begun_at + self._linger:
            return []
        return [self._send(batch)]

    def due_at(self, batch_id: str) -> float | None:
        """When to ask `due` again, if no parcel arrives before: None where only an arrival can change it."""
        batch = self._batches.get(batch_id)
        return None if batch is None or batch.under_way else batch.begun_at + self._linger

    def _send(self, batch: _Batch[T]) -> ResultBatch[T]:
        parcel, batch.gathered = batch.gathered, ResultBatch(batch.gathered.batch_id)
        batch.under_way += 1
        return parcel
