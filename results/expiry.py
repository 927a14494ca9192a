"""Expiry of state: when a user deletes a batch, and when the log can bring nothing more of it.

What the api shows of batches has its own place (`tidemill.batches`); this is about the state tables, and about
results too large for a record, which would be needed to make the files again. Of those that ended long ago a few
are looked at each time, so that it costs the same however many batches there ever were.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tidemill.kafka.partitions.owner import Ack
from tidemill.results.files.garbage_collection import GarbageCollection
from tidemill.results.publisher import Publisher
from tidemill.results.state.reducer import State
from tidemill.results.state.tables import Tables
from tidemill.schemas.log.messages import DeleteRequested

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 600.0
"""Between two looks."""
LOOK_BATCHES: Final = 1_000
"""Batches that are looked at each time: 20 ms."""
OUTLIVED: Final = 2
"""A broker drops whole segments, so a record may be there for twice as long as it has to be."""
ERASURES_MAX: Final = 4
"""Deleted batches whose objects are removed at one time."""


class StateExpiry:
    """Of one partition.

    Args:
        tables: Its tables.
        garbage: What its batches have left in the store.
        publisher: Withdraws what was published of them.
        kept_seconds: How long the log keeps what a batch needs; infinite while that is not known.
        now: Unix seconds.
    """

    def __init__(
        self,
        tables: Tables,
        garbage: GarbageCollection,
        publisher: Publisher,
        *,
        kept_seconds: Callable[[], float],
        now: float,
    ) -> None:
        self._tables = tables
        self._garbage = garbage
        self._publisher = publisher
        self._kept_seconds = kept_seconds
        self._look_at = now + LOOK_SECONDS
        self._last = ""
        self._cleared: list[State] = []
        self._erasures = asyncio.Semaphore(ERASURES_MAX)

    @property
    def due_at(self) -> float | None:
        """When to look again; None as long as the log keeps everything, as far as is known."""
        return None if self._kept_seconds() == float("inf") else self._look_at

    async def erase(self, state: State, command: DeleteRequested, ack: Ack) -> Coroutine[Any, Any, None]:
        """Within an event: delete a batch that is over.

        1. `secrets` revokes the right to read its lines from the log.
        2. Its state says no more than that it was deleted, so that nothing late makes it anew.
        3. Its record and those of its files are withdrawn.
        4. Its objects are removed, and then the command is acknowledged.

        Each step may be done again: the command comes until all of them are done.

        Args:
            state: The batch after the command; one that is at work is left alone.
            command: What was asked for.
            ack: Acknowledges it.

        Returns:
            The last step; it need not be awaited.
        """
        if state.deleted_at is None:
            log.warning("%s is at work and was to be deleted", command.batch_id)
        else:
            await self._publisher.erased(command)
            self._tables.erase(state)
            await self._tables.delivered()
            await self._publisher.withdrawn(command)
        return self._remove(state, command, ack)

    def look(self, now: float) -> Coroutine[Any, Any, None] | None:
        """Within an event: drop batches whose large results are gone, and look at some more.

        Returns:
            The removal of large results of the next ones, if there are any; it need not be awaited.
        """
        if self.due_at is None or now < self._look_at:
            return None
        self._look_at = now + LOOK_SECONDS
        cleared, self._cleared = self._cleared, []
        for state in cleared:
            self._tables.forget(state)
        seen = self._tables.over(self._last, LOOK_BATCHES)
        self._last = seen[-1].id if len(seen) == LOOK_BATCHES else ""
        gone_at = now - OUTLIVED * self._kept_seconds()
        due = [state for state in seen if state.ended_at < gone_at]
        return self._clear(due) if due else None

    async def _remove(self, state: State, command: DeleteRequested, ack: Ack) -> None:
        if state.deleted_at is not None:
            async with self._erasures:
                await self._garbage.erase(command.batch_id, command.files)
        ack()

    async def _clear(self, due: list[State]) -> None:
        done = await self._garbage.forget([state.id for state in due])
        self._cleared += due[:done]
