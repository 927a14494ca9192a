"""Writes the files of closed batches; if a part is gone, reads its lines from the log again.

A failure of that is shown on the batch and tried again: an object may be put back, a broker may come back.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from tidemill.results.files.compaction import Compactor
from tidemill.results.files.part_recovery import PartRecovery
from tidemill.results.ports import Outcomes
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.retrying import pause_seconds, reason
from tidemill.schemas.log.messages import Compacted
from tidemill.schemas.log.part import PartError, PartRef
from tidemill.schemas.ports import NotFound, Store

log = logging.getLogger(__name__)

FIRST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 60.0
"""Pauses after a try that came to nothing; see `pause_seconds`."""

Blocked = Callable[[str], None]
"""Called with the reason why a batch cannot be finished; it is tried again all the same."""


class LinesLost(Exception):
    """Lines are neither in the store nor in the log; the text says how many."""


class Unfinished(Exception):
    """The files of a batch cannot be written; the text says why."""


class Finalizer:
    """Finishes closed batches."""

    def __init__(
        self, compactor: Compactor, *, store: Store, history: Outcomes, room: asyncio.Semaphore, writer: str
    ) -> None:
        """Finish nothing yet.

        Args:
            compactor: Writes files.
            store: Where parts are.
            history: What the log still has.
            room: Bounds how many batches of the process are compacted at one time.
            writer: See `PartRef`.
        """
        self._compactor = compactor
        self._store = store
        self._history = history
        self._room = room
        self._writer = writer

    async def finish(self, active: ActiveBatch, blocked: Blocked) -> Compacted | None:
        """Write the files of a batch, however often that has to be tried.

        After a crash the log may have the fact already; it is applied while the files are written again. Then the
        state names no parts any more, so it is taken as it was, and the parts themselves may go at any time.

        Returns:
            The fact that ends the batch; None where that was applied meanwhile.
        """
        state, failures, fruitless = active.state, 0, 0
        while True:
            try:
                return await self._made(active, state)
            except OSError as error:
                why, wait = reason(error), pause_seconds(failures)
                failures += 1
            except Unfinished as error:
                why = str(error)
                wait = pause_seconds(fruitless, first=FIRST_SECONDS, longest=LONGEST_SECONDS)
                fruitless += 1
            if active.state.is_over:
                return None
            log.error("%s cannot be finished: %s; next try in %.1f s", state.id, why, wait)
            blocked(why)
            # Without a place among those that are compacted: what fails for one batch holds up no other.
            await asyncio.sleep(wait)

    async def _made(self, active: ActiveBatch, state: State) -> Compacted:
        """Try once.

        Raises:
            OSError: The store or the log failed.
            Unfinished: What is there does not suffice.
        """
        try:
            return await self._compact(state, active.bitmap)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  whatever was read from the store may be anything
            first = _told(error)
        if active.state.is_over:
            raise Unfinished(first)
        log.warning("%s: %s; its lines are read from the log again", state.id, first)
        try:
            fact = await self._compact(await self._gathered(state), active.bitmap)
            return fact.model_copy(update={"mended": True})
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  as above; what it is stands on the batch
            second = _told(error)
        raise Unfinished(first if first == second else f"{first}; {second}")

    async def _compact(self, state: State, bitmap: LineBitmap) -> Compacted:
        async with self._room:
            return await self._compactor.compact(state, bitmap)

    async def _gathered(self, state: State) -> State:
        """The batch with parts that are made of what the log has.

        Raises:
            LinesLost: That is not all it had.
        """
        async with self._room:
            parts = await self._parts(state)
        return state.model_copy(update={"parts": parts})

    async def _parts(self, state: State) -> tuple[PartRef, ...]:
        assert state.batch is not None
        counts = state.batch.request_counts
        number = max((part.number for part in state.parts), default=-1) + 1
        recovery = PartRecovery(
            state.id,
            counts.completed + counts.failed,
            store=self._store,
            number_from=number,
            writer=self._writer,
        )
        records = self._history.outcomes(state.partition, float(state.batch.created_at))
        async with aclosing(records):
            async for headers, value in records:
                await recovery.take(headers, value)
                if not recovery.missing:
                    return await recovery.parts()
        if recovery.missing:
            raise LinesLost(f"{recovery.missing} of its lines are in the log no more")
        return await recovery.parts()


def _told(error: Exception) -> str:
    """An error in words that hold nothing but ids."""
    match error:
        case NotFound():
            return f"{error} is not in the store"
        case PartError() | LinesLost():
            return str(error)
        case _:
            log.error("the work on a batch broke off", exc_info=error)
            return type(error).__name__
