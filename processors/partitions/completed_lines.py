"""Completed lines: those whose results are on the log, as far as this process knows."""

from typing import Final

from tidemill.bounded_dict import BoundedDict
from tidemill.schemas.bitmap import Bitmap

BATCHES_MAX: Final = 50_000
"""Batches remembered; the one unused for longest is forgotten first. Its lines would then be called again, if
Kafka delivered their records again."""


class CompletedLines:
    """A bitmap for each batch."""

    def __init__(self, batches_max: int = BATCHES_MAX) -> None:
        self._batches: BoundedDict[str, Bitmap] = BoundedDict(batches_max)

    def __len__(self) -> int:
        return len(self._batches)

    def mark(self, batch_id: str, index: int) -> None:
        """Note that the log has a line's result."""
        if (bitmap := self._batches.get(batch_id)) is None:
            bitmap = self._batches[batch_id] = Bitmap()
        bitmap.add(index)

    def is_done(self, batch_id: str, index: int) -> bool:
        """Whether the log has a line's result."""
        return (bitmap := self._batches.get(batch_id)) is not None and index in bitmap

    def touch(self, batch_id: str) -> bool:
        """Note that a batch is in use; returns whether it has completed lines."""
        return self._batches.use(batch_id) is not None

    def forget(self, batch_id: str) -> None:
        """Forget a closed batch."""
        self._batches.pop(batch_id, None)
