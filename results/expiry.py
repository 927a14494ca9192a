"""Removes the state of batches that a user deletes, or whose records the log has dropped.

This concerns the state tables and large results, which a rebuild of the files needs; the records of batches that
the api shows stay in `tidemill.batches`. Each look examines a bounded number of batches that are over.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tidemill.kafka.partitions.owner import Ack
from tidemill.results.files.garbage_collection import GarbageCollection
from tidemill.results.publisher import Publisher
from tidemill.results.state.reducer import State
from tidemill.results.state.tables import Tables
from tidemill.retrying import retry
from tidemill.schemas.log.messages import DeleteRequested

LOOK_SECONDS: Final = 600.0
"""Pause between two looks."""
LOOK_BATCHES: Final = 1_000
"""Batches examined by a look, in some 20 ms."""
OUTLIVED: Final = 2
"""A broker drops whole segments, so a record may live for twice its retention."""
ERASURES_MAX: Final = 4
"""Deleted batches whose objects are removed at once."""


class StateExpiry:
    """Removes the state of one partition's batches.

    `kept_seconds` is the longest time that the log keeps a record; infinite while it is unknown.
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
        """When to look again; None while the retention is infinite or unknown."""
        return None if self._kept_seconds() == float("inf") else self._look_at

    async def erase(self, state: State, command: DeleteRequested, ack: Ack) -> Coroutine[Any, Any, None]:
        """Delete a batch that is over.

        1. Revoke the key of its lines in the log.
        2. Reduce its state to the time of its deletion, so that late facts cannot create it again.
        3. Withdraw its record and those of its files.
        4. Remove its objects, and acknowledge the command; returns this step, for a background task.

        Every step may be repeated: Kafka redelivers the command until all of them are done.
        """
        await self._publisher.erased(command)
        self._tables.erase(state)
        await self._tables.delivered()
        await self._publisher.withdrawn(command)
        return self._remove(command, ack)

    def look(self, now: float) -> Coroutine[Any, Any, None] | None:
        """Drop batches whose large results are removed, and examine some more.

        Returns:
            The removal of the next batches' large results, for a background task; None if none is due.
        """
        if self.due_at is None or now < self._look_at:
            return None
        self._look_at = now + LOOK_SECONDS
        cleared, self._cleared = self._cleared, []
        for state in cleared:
            self._tables.forget(state)
        seen, self._last = self._tables.over(self._last, LOOK_BATCHES)
        gone_at = now - OUTLIVED * self._kept_seconds()
        due = [state for state in seen if state.ended_at < gone_at]
        return self._clear(due) if due else None

    async def _remove(self, command: DeleteRequested, ack: Ack) -> None:
        await retry(f"removing the objects of {command.batch_id}", lambda: self._erase(command))
        ack()

    async def _erase(self, command: DeleteRequested) -> None:
        # The semaphore is free before the next attempt, so a batch that fails holds up no other.
        async with self._erasures:
            await self._garbage.erase(command.batch_id, command.files)

    async def _clear(self, due: list[State]) -> None:
        done = await self._garbage.forget([state.id for state in due])
        self._cleared += due[:done]
