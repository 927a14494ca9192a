"""Closed batches: their lines are no longer called, and calls in flight may count for a grace."""

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from tidemill.bounded_dict import BoundedDict
from tidemill.schemas import decoded
from tidemill.schemas.lifecycle import CANCELLABLE, OPEN
from tidemill.schemas.resources.batch import Status

BATCHES_MAX: Final = 200_000
"""Batches remembered; the one closed first is forgotten first, long after its records have left the log."""


class _Share(msgspec.Struct, frozen=True):
    model: str


class _Extras(msgspec.Struct, frozen=True):
    models: tuple[_Share, ...] = ()


class BatchState(msgspec.Struct, frozen=True):
    """The fields of a batch that processors need."""

    id: str
    status: Status
    model: str | None = None
    tidemill: _Extras = _Extras()

    @property
    def models(self) -> frozenset[str]:
        """The models of its lines; empty before validation."""
        shares = (share.model for share in self.tidemill.models)
        return frozenset(shares if self.model is None else [self.model])


class _Record(msgspec.Struct, frozen=True):
    batch: BatchState
    v: Literal[1] = 1


_records = msgspec.json.Decoder(_Record)


def batch_state(value: bytes) -> BatchState | None:
    """The state of a batch in a record of `tidemill.batches`; None if the record cannot be read.

    A process reads all batches when it starts, so this decodes only what it needs.
    """
    record = decoded(_records, value)
    return None if record is None else record.batch


class ClosedBatches:
    """Ids of closed batches, from `tidemill.batches` and `tidemill.secrets`; notifies listeners of new ones."""

    def __init__(self, batches_max: int = BATCHES_MAX, *, grace_seconds: float = 0.0) -> None:
        """Start without batches; the results of a cancelled batch count for `grace_seconds` more."""
        self._ids: BoundedDict[str, float] = BoundedDict(batches_max)
        """The grace of each."""
        self._grace = grace_seconds
        self._listeners: list[Callable[[str], None]] = []

    def __contains__(self, batch_id: object) -> bool:
        return batch_id in self._ids

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the id of each batch that is closed from now on; again, if its grace ends early."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[str], None]) -> None:
        """End a `listen`."""
        self._listeners.remove(listener)

    def apply(self, batch_id: str, status: Status) -> None:
        """Close a batch if its status requires it."""
        if status not in CANCELLABLE:
            self.close(batch_id, self._grace if status in OPEN else 0.0)

    def grace(self, batch_id: str) -> float:
        """For how many seconds after it is closed the results of a batch count."""
        return self._ids.get(batch_id, 0.0)

    def forget(self, batch_id: str) -> None:
        """Forget a deleted batch once the log has none of its lines: its id may be used again."""
        self._ids.pop(batch_id, None)

    def close(self, batch_id: str, grace: float = 0.0) -> None:
        """Close a batch that was cancelled, has ended or was deleted."""
        known = self._ids.get(batch_id)
        if known is not None and known <= grace:
            return
        self._ids[batch_id] = grace
        for listener in list(self._listeners):
            listener(batch_id)
