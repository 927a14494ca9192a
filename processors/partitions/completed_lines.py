"""Which lines have an outcome on the log, as far as this process knows: a bit for each."""

from typing import Final

BATCHES_MAX: Final = 50_000
"""Batches remembered at one time; the one that was longest out of use goes first."""
CHUNK_LINES: Final = 512


class CompletedLines:
    """The lines that are done.

    What it forgets does no harm: a record delivered again would then make its calls again.
    """

    def __init__(self, batches_max: int = BATCHES_MAX) -> None:
        self._batches: dict[str, dict[int, int]] = {}
        self._batches_max = batches_max

    def __len__(self) -> int:
        return len(self._batches)

    def mark(self, batch_id: str, index: int) -> None:
        """The line's outcome is on the log."""
        if (chunks := self._batches.get(batch_id)) is None:
            if len(self._batches) >= self._batches_max:
                del self._batches[next(iter(self._batches))]
            chunks = self._batches[batch_id] = {}
        chunk, bit = divmod(index, CHUNK_LINES)
        chunks[chunk] = chunks.get(chunk, 0) | 1 << bit

    def is_done(self, batch_id: str, index: int) -> bool:
        """Whether the line's outcome is on the log."""
        if (chunks := self._batches.get(batch_id)) is None:
            return False
        chunk, bit = divmod(index, CHUNK_LINES)
        return bool(chunks.get(chunk, 0) >> bit & 1)

    def touch(self, batch_id: str) -> bool:
        """Say that a batch is in use; returns whether anything of it is done."""
        if (chunks := self._batches.pop(batch_id, None)) is None:
            return False
        self._batches[batch_id] = chunks
        return True

    def forget(self, batch_id: str) -> None:
        """The batch is over."""
        self._batches.pop(batch_id, None)
