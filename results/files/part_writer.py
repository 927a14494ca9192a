"""Writes waiting lines as parts; lines that the store refuses wait in memory, up to a bound."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from tidemill.results.files.compaction import write_part
from tidemill.results.resources import Resources
from tidemill.results.state.active_batch import ActiveBatch, Obstacle, PartBuffer
from tidemill.results.state.active_batches import ActiveBatches
from tidemill.results.state.tables import Tables
from tidemill.retrying import pause_seconds, reason
from tidemill.schemas.log.codec import LineMark
from tidemill.sealing.wrapping import wait_reason

WAITING_BYTES_MAX: Final = 24 << 20
"""Lines that may wait for their parts; the partitions of a process share this bound, and the next, equally."""
REFUSED_BYTES_MAX: Final = 16 << 20
"""Further lines that may wait if the store refuses the parts of their batches; above this the partition waits."""
SHARE_BYTES_MIN: Final = 1 << 20
"""The smallest share: smaller ones would make too many parts."""

log = logging.getLogger(__name__)

Block = Callable[[ActiveBatch, Obstacle | None, float], None]
"""Shows on a batch its obstacle and the time of the next attempt; None shows that it is free again."""


class PartWriter:
    """The buffers of a partition's active batches."""

    def __init__(
        self, active_batches: ActiveBatches, tables: Tables, resources: Resources, *, writer: str, block: Block
    ) -> None:
        self._active_batches = active_batches
        self._tables = tables
        self._store = resources.store
        self._monotonic = resources.monotonic
        self._partitions = resources.limits.partitions
        self._writer = writer
        self._block = block
        self._waiting_bytes = 0
        """A running sum: adding up thousands of batches for each record would cost more than its lines do."""
        self._refused: dict[str, ActiveBatch] = {}
        """The batches whose last part the store has refused."""

    def add(self, active: ActiveBatch, marks: list[LineMark], value: bytes, model: int | None) -> int:
        """Put new lines of a batch into its buffers; returns how many were new. See `ActiveBatch.add`."""
        before = active.waiting_bytes
        new = active.add(marks, value, self._monotonic(), model)
        self._waiting_bytes += active.waiting_bytes - before
        return new

    async def flush(self, active: ActiveBatch, *, keep: bool = True) -> bool:
        """Write the waiting lines of a batch as parts; with `keep`, also its state, and acknowledge their records.

        Returns:
            Whether that was done; if not, the store refused the lines, and they still wait.
        """
        if active.state.id in self._refused and self._monotonic() < active.blockage.again_at:
            return False
        for buffer, failed in ((active.output, False), (active.errors, True)):
            if not buffer:
                continue
            active.tried_part = active.next_part
            try:
                part = await write_part(
                    self._store,
                    active.state.id,
                    active.tried_part,
                    buffer,
                    failed=failed,
                    writer=self._writer,
                    models=active.bitmap.models,
                )
            except OSError as error:
                self._refuse(active, error)
                return False
            active.set_buffer(PartBuffer(), failed=failed)
            self._waiting_bytes -= buffer.size
            parts, sums = (*active.state.parts, part), active.state.sums.plus(buffer.sums, failed=failed)
            active.state = active.state.model_copy(update={"parts": parts, "sums": sums})
        active.waiting_since = None
        if self._refused.pop(active.state.id, None) is not None:
            active.blockage.refusals = 0
            if not active.blockage.is_unread:
                self._block(active, None, 0.0)
        if keep:
            await self._tables.keep(active)
            active.release()
        return True

    async def bound(self) -> None:
        """Flush the largest buffers while too many bytes wait, and wait for the store if it refuses too many."""
        partitions = self._partitions()
        waiting_max = max(WAITING_BYTES_MAX // partitions, SHARE_BYTES_MIN)
        refused_max = max(REFUSED_BYTES_MAX // partitions, SHARE_BYTES_MIN)
        while (refused := self.refused_bytes) > refused_max or self._waiting_bytes - refused > waiting_max:
            if refused > refused_max:
                active = min(self._refused.values(), key=lambda active: active.blockage.again_at)
                await asyncio.sleep(max(0.0, active.blockage.again_at - self._monotonic()))
            else:
                free = (active for active in self._active_batches if active.state.id not in self._refused)
                active = max(free, key=lambda active: active.waiting_bytes)
            await self.flush(self._active_batches.touch(active))

    @property
    def refused_bytes(self) -> int:
        """Waiting bytes of the batches whose parts the store refuses."""
        return sum(active.waiting_bytes for active in self._refused.values())

    def written(self, active: ActiveBatch) -> None:
        """Forget the waiting lines of a batch: they are in its files."""
        self._waiting_bytes -= active.waiting_bytes
        for failed in (False, True):
            active.set_buffer(PartBuffer(), failed=failed)
        active.waiting_since = None

    def drop(self, batch_id: str) -> None:
        """Forget a batch that is over."""
        self._refused.pop(batch_id, None)

    def recount(self) -> None:
        """Count the waiting bytes again, after a record was undone."""
        self._waiting_bytes = sum(active.waiting_bytes for active in self._active_batches)

    def _refuse(self, active: ActiveBatch, error: OSError) -> None:
        pause = pause_seconds(active.blockage.refusals)
        active.blockage.refusals += 1
        self._refused[active.state.id] = active
        why = f"Results of the batch cannot be stored: {reason(error)}."
        log.warning("%s: %s Next try in %.1f s", active.state.id, why, pause)
        self._block(active, (wait_reason(error), why), self._monotonic() + pause)
