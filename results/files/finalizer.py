"""Writes the files of closed batches; if a part is gone, its lines are read from the log again.

If that fails, too, the batch shows it, and the finalizer tries again: an operator may restore an object, and a
broker may recover.
"""

import asyncio
import logging
from contextlib import aclosing
from typing import Final

from tidemill.configuration.catalog import PriceError
from tidemill.results.files.bucket_copy import BucketCopier, Waits
from tidemill.results.files.compaction import Compactor
from tidemill.results.files.part_recovery import PartRecovery
from tidemill.results.resources import Owner, Resources
from tidemill.results.spans import BatchSpans
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.retrying import pause_seconds, reason
from tidemill.schemas.log.messages import Compacted
from tidemill.schemas.log.part import PartError
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.waiting import Reason
from tidemill.wording import verb

log = logging.getLogger(__name__)

FIRST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 60.0
"""The longest pause after an attempt that found too few lines; see `pause_seconds`."""


class Unfinished(Exception):
    """The files of a batch cannot be written; the text says why."""


class Finalizer:
    """Writes the files of a partition's closed batches."""

    def __init__(self, resources: Resources, owner: Owner) -> None:
        """Take the connections of the process, and the partition's owner."""
        writer = owner.writer
        self._copier = BucketCopier(resources, owner)
        self.spans = BatchSpans()
        self._store = resources.store
        self._history = resources.history
        self._room = resources.compactions
        self._writer = writer
        self._compactor = Compactor(resources.store, resources.clock, resources.limits.files, writer)

    async def finish(self, active: ActiveBatch, waits: Waits) -> Compacted | None:
        """Write the files of a batch, and retry until that works; then copy them to the bucket that it names.

        After a crash the log may have the fact already; it is applied while the files are written again. Then the
        batch's state no longer names parts, so this uses the state from before; the parts may disappear meanwhile.

        Returns:
            The fact that ends the batch; None if it was applied meanwhile.
        """
        state, failures, fruitless = active.state, 0, 0
        while True:
            try:
                fact = await self._attempt(active, state)
                break
            except OSError as error:
                why, wait = reason(error), pause_seconds(failures)
                failures += 1
            except (PriceError, Unfinished) as error:
                why = str(error)
                wait = pause_seconds(fruitless, first=FIRST_SECONDS, longest=LONGEST_SECONDS)
                fruitless += 1
            if active.state.is_over:
                return None
            log.error("%s cannot be finished: %s; next try in %.1f s", state.id, why, wait)
            waits(Reason.FILES, f"The files of the batch cannot be written: {why}.")
            # The semaphore is free during the pause, so a failing batch does not delay others.
            await asyncio.sleep(wait)
        return await self._copier.copy(active, state, fact, waits)

    async def finish_at_once(self, active: ActiveBatch, waits: Waits) -> Compacted | None:
        """Write the files of a batch all of whose lines are in memory, and retry until that works.

        Returns:
            The fact that ends the batch; None if its lines went into a part meanwhile.
        """
        failures = 0
        while active.is_in_memory:
            try:
                async with self._room:
                    return await self._compactor.compact_buffers(active)
            except (OSError, PriceError) as error:
                why = reason(error) if isinstance(error, OSError) else str(error)
            wait = pause_seconds(failures)
            failures += 1
            log.error("%s cannot be finished: %s; next try in %.1f s", active.state.id, why, wait)
            waits(Reason.FILES, f"The files of the batch cannot be written: {why}.")
            await asyncio.sleep(wait)
        return None

    async def _attempt(self, active: ActiveBatch, state: State) -> Compacted:
        """Write the files once, from the parts or else from the log.

        Raises:
            OSError: The store or the log failed.
            PriceError: A price cannot be read.
            Unfinished: Parts and log lack lines.
        """
        try:
            return await self._compact(state, active.bitmap)
        except (OSError, PriceError):
            raise
        except Exception as error:  # noqa: BLE001  an object of the store may hold anything
            first = _reason(error)
        if active.state.is_over:
            raise Unfinished(first)
        log.warning("%s: %s; its lines are read from the log again", state.id, first)
        try:
            fact = await self._compact(await self._recovered(state), active.bitmap)
            return fact.model_copy(update={"recovered": True})
        except (OSError, PriceError):
            raise
        except Exception as error:  # noqa: BLE001  as above; the batch shows the error
            second = _reason(error)
        raise Unfinished(first if first == second else f"{first}; {second}")

    async def _compact(self, state: State, bitmap: LineBitmap) -> Compacted:
        async with self._room:
            return await self._compactor.compact(state, bitmap)

    async def _recovered(self, state: State) -> State:
        """The batch with new parts, made from its lines in the log.

        Raises:
            Unfinished: The log lacks lines.
        """
        assert state.batch is not None
        counts = state.batch.request_counts
        recovery = PartRecovery(
            state.batch,
            counts.completed + counts.failed,
            store=self._store,
            number_from=max((part.number for part in state.parts), default=-1) + 1,
            writer=self._writer,
        )
        async with self._room:
            async with aclosing(self._history(state.partition, float(state.batch.created_at))) as records:
                async for headers, value in records:
                    await recovery.add(headers, value)
                    if not recovery.missing:
                        break
            if recovery.missing:
                missing = recovery.missing
                raise Unfinished(f"{missing} of its lines {verb(missing, 'is', 'are')} no longer in the log")
            return state.model_copy(update={"parts": await recovery.parts()})


def _reason(error: Exception) -> str:
    """An error as text that names only ids."""
    match error:
        case NotFound():
            return f"{error} is not in the store"
        case PartError() | Unfinished():
            return str(error)
        case _:
            log.error("writing the files of a batch failed", exc_info=error)
            return type(error).__name__
