"""Gathers result lines of one batch for one record, so that many lines share the cost of a record.

Lines gather for a short time, and until the log has the previous record of the same batch: the client sends one
request at a time to a partition anyway. They go at once when no other line of the batch is pending in this
process, or when the record is full.
"""

from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from tidemill.schemas.log.codec import LineMark, LineRef

RECORD_BYTES_MAX: Final = 512 << 10
"""A larger line has a record of its own."""
RECORD_LINES_MAX: Final = 256
LINE_BYTES_MAX: Final = 900 << 10
"""A larger result goes to the object store, and its record refers to it; a record has at most 1 MiB."""
LINGER_SECONDS: Final = 0.005

T = TypeVar("T")


@dataclass(slots=True)
class ResultBatch(Generic[T]):
    """The result lines of one record of `outcomes`, and a receipt for each."""

    batch_id: str
    lines: list[bytes] = field(default_factory=list)
    marks: list[LineMark] = field(default_factory=list)
    receipts: list[T] = field(default_factory=list)
    size: int = 0
    ref: LineRef | None = None


@dataclass(slots=True, eq=False)
class _Batch(Generic[T]):
    gathered: ResultBatch[T]
    began_at: float = 0.0
    """When the first of the gathered lines arrived."""
    in_flight: int = 0


class ResultBatcher(Generic[T]):
    """Gathers the results of all batches; times are seconds of the event loop's clock."""

    def __init__(self, *, linger_seconds: float = LINGER_SECONDS, lines_max: int = RECORD_LINES_MAX) -> None:
        self._batches: dict[str, _Batch[T]] = {}
        self.lines_max = lines_max
        """This many lines are sent at once if no record of their batch is in flight."""
        self._linger = linger_seconds

    def __len__(self) -> int:
        """Lines that were gathered and not handed out."""
        return sum(len(batch.gathered.lines) for batch in self._batches.values())

    def add(
        self, batch_id: str, line: bytes, mark: LineMark, receipt: T, now: float, *, more: bool
    ) -> list[ResultBatch[T]]:
        """Add the result of a line, with its mark; returns the records to send now, each with its lines' receipts.

        `more` says that other lines of the batch are pending in this process.
        """
        if (batch := self._batches.get(batch_id)) is None:
            batch = self._batches[batch_id] = _Batch(ResultBatch(batch_id))
        records = []
        if batch.gathered.lines and batch.gathered.size + len(line) > RECORD_BYTES_MAX:
            records.append(self._send(batch))
        record = batch.gathered
        if not record.lines:
            batch.began_at = now
        record.lines.append(line)
        record.marks.append(mark)
        record.receipts.append(receipt)
        record.size += len(line)
        is_full = len(record.lines) >= RECORD_LINES_MAX or record.size >= RECORD_BYTES_MAX
        if is_full or not more or (not batch.in_flight and len(record.lines) >= self.lines_max):
            records.append(self._send(batch))
        return records

    def arrived(self, batch_id: str, now: float) -> list[ResultBatch[T]]:
        """Note that the log has a record of a batch; returns the records to send now."""
        batch = self._batches[batch_id]
        batch.in_flight -= 1
        return self.due(batch_id, now)

    def due(self, batch_id: str, now: float) -> list[ResultBatch[T]]:
        """The records of a batch to send now."""
        if (batch := self._batches.get(batch_id)) is None:
            return []
        if not batch.gathered.lines:
            if not batch.in_flight:
                del self._batches[batch_id]
            return []
        if batch.in_flight:
            return []
        if len(batch.gathered.lines) < self.lines_max and now < batch.began_at + self._linger:
            return []
        return [self._send(batch)]

    def due_at(self, batch_id: str) -> float | None:
        """When to call `due` again; None while a record is in flight."""
        batch = self._batches.get(batch_id)
        return None if batch is None or batch.in_flight else batch.began_at + self._linger

    def _send(self, batch: _Batch[T]) -> ResultBatch[T]:
        record, batch.gathered = batch.gathered, ResultBatch(batch.gathered.batch_id)
        batch.in_flight += 1
        return record
