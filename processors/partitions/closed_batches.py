"""The batches whose lines are not called any more, as the log of batches tells."""

from collections.abc import Callable
from typing import Final

from tidemill.schemas.lifecycle import CANCELLABLE
from tidemill.schemas.log.messages import BatchRecord

BATCHES_MAX: Final = 200_000
"""Batches remembered; the first to end goes first. Its records are long past their retention by then."""


class ClosedBatches:
    """Says of a batch whether its lines are still wanted, and tells whoever asked at the moment they are not."""

    def __init__(self, batches_max: int = BATCHES_MAX) -> None:
        self._ids: dict[str, None] = {}
        self._batches_max = batches_max
        self._tell: list[Callable[[str], None]] = []

    def __contains__(self, batch_id: object) -> bool:
        return batch_id in self._ids

    def listen(self, tell: Callable[[str], None]) -> None:
        """Have each batch that ends from now on told."""
        self._tell.append(tell)

    def apply(self, record: BatchRecord) -> None:
        """Take in a record of the log."""
        if record.batch.status not in CANCELLABLE:
            self.end(record.batch.id)

    def end(self, batch_id: str) -> None:
        """A batch is over, or deleted."""
        if batch_id in self._ids:
            return
        if len(self._ids) >= self._batches_max:
            del self._ids[next(iter(self._ids))]
        self._ids[batch_id] = None
        for tell in self._tell:
            tell(batch_id)
