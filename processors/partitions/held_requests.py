"""Records whose batch key is not in memory: they are held outside the window, and their partition continues.

If the key can be fetched, the records go on in their order. If it is unavailable, a held record keeps only its
place in the log, to be read from there again once the key is available. The bound on unacknowledged records bounds
held ones, too. The batch shows why it waits. The records of a closed batch finish.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from tidemill.kafka.partitions.held_records import HeldRecords, Unavailable
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.seals import OpenedRecord
from tidemill.processors.partitions.window import Entry
from tidemill.retrying import reason
from tidemill.schemas.log.codec import DecodeError, RequestHead
from tidemill.schemas.log.messages import Stalled
from tidemill.schemas.log.stall_reports import StallReports
from tidemill.schemas.resources.waiting import Reason, Waiting

ROOM_SECONDS: Final = 0.1
"""Pause between two checks whether a window has room for the lines of a held record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRequest:
    """A held record, which is in its window as one line."""

    head: RequestHead
    entry: Entry
    message: Any
    """Without its value once the key has proved to be unavailable."""

    def drop_value(self) -> None:
        """Keep only the record's place in the log."""
        if self.message.value is not None:
            self.message.value = None
            self.entry.window.refill(self.entry, 1, 0)


@dataclass(slots=True)
class _Batch:
    records: list[HeldRequest] = field(default_factory=list)
    since: int = field(default_factory=lambda: int(time.time()))


Reopen = Callable[[Sequence[HeldRequest]], AsyncGenerator[OpenedRecord | DecodeError, None]]
"""Opens records of one batch in order; reads those without a value from the log again. Raises
`OSError` if it cannot open one yet."""
Admit = Callable[[HeldRequest, OpenedRecord | DecodeError], None]
"""Takes a record that was opened."""


class HeldRequests:
    """The held records of one model."""

    def __init__(
        self,
        *,
        reopen: Reopen,
        admit: Admit,
        report: Callable[[Stalled], Awaitable[None]],
        closed: ClosedBatches,
    ) -> None:
        """Hold nothing yet.

        Args:
            reopen: See `Reopen`.
            admit: See `Admit`.
            report: Publishes why a batch waits, or that it no longer does.
            closed: The batches whose lines are no longer called.
        """
        self._reopen = reopen
        self._admit = admit
        self._report = report
        self._batches: dict[str, _Batch] = {}
        self._closed = closed
        self._notes: list[tuple[str, Unavailable | None]] = []
        """Reports to publish."""
        self._held = HeldRecords(lambda batch_id, why, _: self._notes.append((batch_id, why)), time.monotonic)
        self._reports = StallReports("keys")
        self._news = asyncio.Event()
        self._is_crowded = False
        """Whether a batch with an available key waits for room in a window."""
        closed.listen(self._drop)

    def __len__(self) -> int:
        return sum(len(batch.records) for batch in self._batches.values())

    def __contains__(self, batch_id: str) -> bool:
        """Whether records of a batch are held."""
        return batch_id in self._batches

    def put(self, held: HeldRequest) -> None:
        """Hold a record."""
        if held.head.batch_id in self._held:
            held.drop_value()
        self._batches.setdefault(held.head.batch_id, _Batch()).records.append(held)
        self._news.set()

    def clear(self) -> None:
        """Forget all records: their partitions were revoked."""
        self._batches.clear()

    def close(self) -> None:
        """Stop listening for closed batches."""
        self._closed.unlisten(self._drop)

    async def run(self) -> None:
        """Open held records as soon as their key is available; never returns."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(ROOM_SECONDS if self._is_crowded else self._held.due_in):
                    await self._news.wait()
            self._news.clear()
            self._is_crowded = False
            for batch_id in list(self._batches):
                if batch_id not in self._held:
                    await self._held.run_or_hold(batch_id, partial(self._open, batch_id), 0)
            await self._held.retry_due()
            notes, self._notes = self._notes, []
            for batch_id, why in notes:
                if batch_id not in self._closed:
                    await self._report(self._stalled(batch_id, why))

    async def _open(self, batch_id: str) -> None:
        """Open the records of a batch, in their order, as far as their windows have room.

        Raises:
            Unavailable: They cannot be opened at the moment.
        """
        batch = None
        try:
            while (batch := self._batches.get(batch_id)) is not None and batch.records:
                if not await self._open_some(batch_id, batch):
                    self._is_crowded = True
                    return
        except Exception as error:
            for held in batch.records if batch is not None else ():
                held.drop_value()
            raise Unavailable(reason(error), Reason.KEY) from error
        self._batches.pop(batch_id, None)

    async def _open_some(self, batch_id: str, batch: _Batch) -> bool:
        """Open the records of a batch held so far; returns False if a window has no room for the next one."""
        records = list(batch.records)
        if not _has_room(records[0]):
            return self._leave_room(batch)
        async with aclosing(self._reopen(records)) as reopened:
            for held in records:
                if not _has_room(held):
                    return self._leave_room(batch)
                opened = await anext(reopened)
                if self._batches.get(batch_id) is not batch:
                    return True
                batch.records.remove(held)
                self._admit(held, opened)
        return True

    @staticmethod
    def _leave_room(batch: _Batch) -> bool:
        """Let the held records of a batch take no room themselves; otherwise room might never become free."""
        for held in batch.records:
            held.drop_value()
        return False

    def _stalled(self, batch_id: str, why: Unavailable | None) -> Stalled:
        waiting: tuple[Waiting, ...] = ()
        if why is not None and (batch := self._batches.get(batch_id)) is not None:
            lines = sum(held.head.seal.lines for held in batch.records if held.head.seal is not None)
            words = f"The key of the batch is unavailable: {why}."
            waiting = (Waiting.of(why.reason, words, lines=lines, since=batch.since),)
        return self._reports.on(batch_id, *waiting)

    def _drop(self, batch_id: str) -> None:
        if (batch := self._batches.pop(batch_id, None)) is not None:
            for held in batch.records:
                held.entry.window.finish(held.entry)


def _has_room(held: HeldRequest) -> bool:
    return held.entry.window.takes_lines
