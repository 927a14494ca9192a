"""Closed batches: their lines are no longer called."""

from collections.abc import Callable
from typing import Final

from tidemill.schemas.lifecycle import CANCELLABLE
from tidemill.schemas.log.messages import BatchRecord

BATCHES_MAX: Final = 200_000
"""Batches remembered; the one closed first is forgotten first, long after its records have left the log."""


class ClosedBatches:
    """Ids of closed batches, from `tidemill.batches` and `tidemill.secrets`; notifies listeners of new ones."""

    def __init__(self, batches_max: int = BATCHES_MAX) -> None:
        self._ids: dict[str, None] = {}
        self._batches_max = batches_max
        self._listeners: list[Callable[[str], None]] = []

    def __contains__(self, batch_id: object) -> bool:
        return batch_id in self._ids

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the id of each batch that is closed from now on."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[str], None]) -> None:
        """End a `listen`."""
        self._listeners.remove(listener)

    def apply(self, record: BatchRecord) -> None:
        """Close a batch if its status says so."""
        if record.batch.status not in CANCELLABLE:
            self.close(record.batch.id)

    def close(self, batch_id: str) -> None:
        """Close a batch that has ended or was deleted."""
        if batch_id in self._ids:
            return
        if len(self._ids) >= self._batches_max:
            del self._ids[next(iter(self._ids))]
        self._ids[batch_id] = None
        for listener in list(self._listeners):
            listener(batch_id)
