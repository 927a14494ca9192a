"""Applies events to the batches of one partition, in memory (docs/reference/protocol.md, steps 10 to 15)."""

import asyncio
import logging
from typing import Final

from tidemill.results.files.compaction import Compactor, write_part
from tidemill.results.files.finalizer import Finalizer
from tidemill.results.files.garbage_collection import GarbageCollection
from tidemill.results.files.work import Work
from tidemill.results.held_records import Unread
from tidemill.results.ports import Outcomes, Owner
from tidemill.results.publisher import Publisher
from tidemill.results.state import reducer, retention_risk
from tidemill.results.state.active_batch import ActiveBatch, Snapshot
from tidemill.results.state.expiry import StateExpiry
from tidemill.results.state.limits import Limits
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.results.state.stalls import Stalls, one, waits
from tidemill.results.state.tables import Tables
from tidemill.results.state.timers import Timers
from tidemill.retrying import pause_seconds, reason
from tidemill.schemas.ports import Clock, Sender, Steady, Store
from tidemill.schemas.resources.waiting import Reason

WAITING_BYTES_MAX: Final = 64 << 20
"""Lines of all batches of a partition that may wait for their parts."""
PUT_OFF_BYTES_MAX: Final = 32 << 20
"""Of these, those of batches whose parts the store does not take; beyond it the partition waits."""

log = logging.getLogger(__name__)


class Batches:
    """The batches of a partition; `results/partition.py` brings the events."""

    def __init__(
        self,
        number: int,
        *,
        tables: Tables,
        sender: Sender,
        history: Outcomes,
        store: Store,
        clock: Clock,
        steady: Steady,
        limits: Limits,
        compactions: asyncio.Semaphore,
        owner: Owner,
    ) -> None:
        """Take over a partition.

        Args:
            number: Its number in `outcomes` and `commands`.
            tables: Its tables.
            sender: The log.
            history: What the log still has.
            store: Where parts and files are written.
            clock: Unix time.
            steady: What lasts is measured by it.
            limits: Sizes, times and prices.
            compactions: Bounds how many batches of the process are compacted at one time.
            owner: Who this is.
        """
        self.number = number
        self._tables = tables
        self._publisher = Publisher(sender, lambda: tables.owner)
        self._store = store
        self._clock = clock
        self._steady = steady
        self._limits = limits
        self._finisher = Finalizer(
            Compactor(store, clock, limits.part_bytes, limits.tariff_of, owner.writer),
            store=store,
            history=history,
            room=compactions,
            writer=owner.writer,
        )
        self._leftovers = GarbageCollection(store, owner.held)
        self._forgetting = StateExpiry(
            tables, self._leftovers, self._publisher, kept_seconds=limits.kept_seconds, now=clock()
        )
        self.owner = owner
        self._live: dict[str, ActiveBatch] = {}
        self._waiting_bytes = 0
        """Of lines that wait for their parts; a sum over thousands of batches would cost more than their lines."""
        self._put_off: dict[str, ActiveBatch] = {}
        """The batches whose lines the store has not taken."""
        self._alarms = Timers()
        self._work = Work()
        self._before: dict[str, tuple[ActiveBatch, Snapshot]] = {}
        """The batches that the present event has come to, as they were."""
        self._loaded = False
        self._heard: dict[str, float] = {}
        """When a process of each model was heard of last."""

    @property
    def alarm(self) -> float | None:
        """When the next thing is due, Unix seconds."""
        due = (self._alarms.next, self._forgetting.due_at)
        return min((time for time in due if time is not None), default=None)

    @property
    def living(self) -> list[ActiveBatch]:
        """The batches that are not over."""
        return list(self._live.values())

    def ring(self) -> None:
        """Set all alarms anew: the clock was stepped, or how long the log keeps its records has changed."""
        for live in self._live.values():
            self._ring(live)

    def begin(self) -> None:
        """A record is tried; see `undo`."""
        self._before.clear()

    def undo(self) -> None:
        """Take back what the record has left that was tried last and failed."""
        for live, was in self._before.values():
            live.restore(was)
            if live.state.is_over:
                self._over(live)
            else:
                self._live[live.state.id] = live
                if live.state.closed:
                    live.release()
                    self._start_compaction(live)
                self._ring(live)
        self._before.clear()
        self._waiting_bytes = sum(live.waiting_bytes for live in self._live.values())

    def _get(self, batch_id: str) -> ActiveBatch:
        if (live := self._live.get(batch_id)) is None:
            live = self._wake(self._tables.state(batch_id) or State(id=batch_id, partition=self.number))
        return self._touched(live)

    def _touched(self, live: ActiveBatch) -> ActiveBatch:
        if live.state.id not in self._before:
            self._before[live.state.id] = live, live.snapshot()
        return live

    def is_over(self, batch_id: str) -> bool:
        """Whether a batch is over or deleted."""
        state = None if batch_id in self._live else self._tables.state(batch_id)
        return state is not None and state.is_over

    def _wake(self, state: State) -> ActiveBatch:
        chunks = () if state.is_over else self._tables.chunks(state)
        steady = self._steady()
        since = None if state.ending is None else steady
        tally = LineBitmap.of(chunks)
        stalls = Stalls(moved_at=steady, moved=(state.batch and state.batch.status, tally.done))
        live = ActiveBatch(state=state, tally=tally, published_at=steady, ending_since=since, stalls=stalls)
        if not state.is_over:
            self._live[state.id] = live
        return live

    async def _turn(self, live: ActiveBatch, after: State, *, due: bool = False) -> None:
        """Bring a batch to its state after an event, and to what follows from it."""
        steady = self._steady()
        before, live.state = live.state, after
        live.stalls.look(after, live.tally.done, steady)
        if after.ending is not None and live.ending_since is None:
            live.ending_since = steady
        closing = due or reducer.is_complete(after, live.tally.done)
        # Where the store does not take the lines, a tick tries again.
        closing = closing and await self._flush(live, keep=False)
        if closing or live.state is not before or steady >= live.told_at:
            live.state = reducer.counted(
                self._waited(live), live.tally.done - live.tally.failed, live.tally.failed
            )
        if closing:
            live.state = reducer.close(live.state, self._clock(), self.owner.writer)
        if live.state is not before or (live.unsaid and steady >= live.told_at):
            if live.state.is_over:
                await self._publish(live)  # once the table has it, nothing would tell of it again
            await self._tables.keep(live)
            if closing and reducer.is_brief(live.state):
                live.unsaid = True
            elif not live.state.is_over:
                await self._publish(live)
        # A batch that is over is closed too, and a fact about it may come again; its files are written for good.
        if live.state.is_over:
            self._over(live)
            live.release()
        elif live.state.closed:
            live.release()
            self._start_compaction(live)
            self._ring(live)
        else:
            self._ring(live)

    def _waited(self, live: ActiveBatch) -> State:
        """The batch with what it waits for at this time."""
        batch, steady = live.state.batch, self._steady()
        heard_at = self._heard.get(batch.model or "", 0.0) if batch is not None else 0.0
        waiting = live.stalls.waiting(live.state, live.tally.done, steady, self._clock(), heard_at=heard_at)
        return waits(live.state, waiting)

    def _hear(self, live: ActiveBatch) -> None:
        """A process that serves the model of a batch has said something."""
        if live.state.batch is not None and (model := live.state.batch.model) is not None:
            self._heard[model] = self._steady()

    async def _bound(self) -> None:
        while self._waiting_bytes > WAITING_BYTES_MAX or self._put_off_bytes > PUT_OFF_BYTES_MAX:
            largest = max(
                (live for live in self._live.values() if live.state.id not in self._put_off),
                key=lambda live: live.waiting_bytes,
                default=None,
            )
            if self._put_off_bytes > PUT_OFF_BYTES_MAX or largest is None:
                largest = min(self._put_off.values(), key=lambda live: live.again_at)
                await asyncio.sleep(max(0.0, largest.again_at - self._steady()))
            await self._flush(self._touched(largest))

    @property
    def _put_off_bytes(self) -> int:
        return sum(live.waiting_bytes for live in self._put_off.values())

    async def _flush(self, live: ActiveBatch, *, keep: bool = True) -> bool:
        """Write the waiting lines as parts; with `keep`, also the state, and acknowledge their events.

        Returns:
            Whether that is done; else the store has not taken them, and they wait on.
        """
        if live.state.id in self._put_off and self._steady() < live.again_at:
            return False
        for shelf, failed in ((live.output, False), (live.errors, True)):
            if not shelf.lines:
                continue
            size, live.tried_part = shelf.size, live.next_part
            try:
                part = await write_part(
                    self._store, live.state.id, live.tried_part, shelf, failed=failed, writer=self.owner.writer
                )
            except OSError as error:
                self._not_taken(live, error)
                return False
            self._waiting_bytes -= size
            live.state = live.state.model_copy(update={"parts": (*live.state.parts, part)})
        live.waiting_since = None
        if self._put_off.pop(live.state.id, None) is not None:
            live.tries = 0
            if not live.is_unread:
                self._block(live, None)
        if keep:
            await self._tables.keep(live)
            live.release()
        return True

    def _not_taken(self, live: ActiveBatch, error: OSError) -> None:
        """The store has not taken the lines of a batch."""
        pause = pause_seconds(live.tries)
        live.tries += 1
        self._put_off[live.state.id] = live
        why = f"Results of the batch cannot be stored: {reason(error)}."
        log.warning("%s: %s Next try in %.1f s", live.state.id, why, pause)
        self._block(live, (Reason.STORE, why), self._steady() + pause)

    async def _publish(self, live: ActiveBatch) -> None:
        live.unsaid = False
        progress = live.progress(self._clock(), self._steady())
        await self._publisher.batch(live.state, progress, live.blocked)
        if live.pace is not None:
            live.pace.told_quiet = live.pace.is_quiet
        live.published_at = self._steady()

    async def _publish_again(self, live: ActiveBatch) -> None:
        """A fact that ended a batch came again: what it led to may not be in the changelog, nor published."""
        if live.state.is_over:
            await self._tables.keep(live)
            await self._publish(live)

    def _ring(self, live: ActiveBatch) -> None:
        """Set the alarm of a batch for the next thing that is due."""
        due = live.due(self._clock(), self._steady(), self._limits)
        if (risk_at := retention_risk.risk_at(live.state, self._limits.kept_seconds())) is not None:
            due.append(risk_at)
        if due:
            self._alarms.set(live.state.id, min(due))

    def _start_compaction(self, live: ActiveBatch) -> None:
        if not live.compacting:
            live.compacting = True
            self._work.start(self._compact(live))

    async def _compact(self, live: ActiveBatch) -> None:
        """Write the files and send the fact that they are there."""

        def blocked(why: str) -> None:
            self._block(live, (Reason.FILES, f"The files of the batch cannot be written: {why}."))

        fact = await self._finisher.finish(live, blocked)
        if fact is not None:
            await self._publisher.compacted(fact, self.number)

    def takes_lines(self, batch_id: str) -> bool:
        """Whether result lines of a batch still count."""
        live = self._live.get(batch_id)
        state = self._tables.state(batch_id) if live is None else live.state
        return state is None or state.takes_lines

    def unread(self, batch_id: str, why: Unread | None, again_at: float) -> None:
        """Lines of a batch that were run cannot be had at the moment; see `held_records.Tell`."""
        if (live := self._live.get(batch_id)) is not None:
            live.is_unread = why is not None
            words = f"Results of the batch cannot be read: {why}."
            self._block(live, None if why is None else (why.reason, words), again_at)

    def _block(self, live: ActiveBatch, why: tuple[Reason, str] | None, again_at: float = 0.0) -> None:
        """Have it shown on a batch that it cannot go on, or that it can; the next tick publishes it.

        Args:
            live: The batch.
            why: Why not.
            again_at: When it is tried again, by the clock that nobody steps.
        """
        live.again_at = again_at
        since = live.blocked[0].since if live.blocked else int(self._clock())
        blocked = () if why is None else (one(*why, since=since),)
        if blocked != live.blocked:
            live.blocked, live.unsaid = blocked, True
            self._ring(live)

    def _over(self, live: ActiveBatch) -> None:
        self._live.pop(live.state.id, None)
        self._put_off.pop(live.state.id, None)
        self._alarms.drop(live.state.id)
