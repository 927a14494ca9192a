"""Applies events to the batches of one partition, in memory (docs/reference/protocol.md, steps 10 to 15)."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Final

from tidemill.kafka.partitions.held_records import Unavailable
from tidemill.results.expiry import StateExpiry
from tidemill.results.files.compaction import Compactor, write_part
from tidemill.results.files.finalizer import Finalizer
from tidemill.results.files.garbage_collection import GarbageCollection
from tidemill.results.ports import Limits, Outcomes, Owner
from tidemill.results.publisher import Publisher
from tidemill.results.state import reducer, retention_risk
from tidemill.results.state.active_batch import ActiveBatch, Snapshot
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.results.state.stalls import Stalls, one, waits
from tidemill.results.state.tables import Tables
from tidemill.results.state.timers import ClockSteps, Timers
from tidemill.retrying import pause_seconds, reason
from tidemill.schemas.ports import Clock, Monotonic, Sender, Store
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
        monotonic: Monotonic,
        limits: Limits,
        compactions: asyncio.Semaphore,
        owner: Owner,
    ) -> None:
        """Own a partition.

        Args:
            number: Its number in `outcomes` and `commands`.
            tables: Its tables.
            sender: The log.
            history: What the log still has.
            store: Where parts and files are written.
            clock: Unix time.
            monotonic: Seconds of a clock that is never set.
            limits: Sizes, times and prices.
            compactions: Bounds how many batches of the process are compacted at one time.
            owner: Who this is.
        """
        self.number = number
        self._tables = tables
        self._publisher = Publisher(sender, lambda: tables.owner)
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._limits = limits
        self._finalizer = Finalizer(
            Compactor(store, clock, limits.part_bytes, limits.tariff_of, owner.writer),
            store=store,
            history=history,
            room=compactions,
            writer=owner.writer,
        )
        self._garbage = GarbageCollection(store, owner.held)
        self._expiry = StateExpiry(
            tables, self._garbage, self._publisher, kept_seconds=limits.kept_seconds, now=clock()
        )
        self.owner = owner
        self._active: dict[str, ActiveBatch] = {}
        self._waiting_bytes = 0
        """Of lines that wait for their parts; a sum over thousands of batches would cost more than their lines."""
        self._put_off: dict[str, ActiveBatch] = {}
        """The batches whose lines the store has not taken."""
        self._timers = Timers()
        self._background = Background()
        self._before: dict[str, tuple[ActiveBatch, Snapshot]] = {}
        """The batches that the present event has come to, as they were."""
        self._steps = ClockSteps(clock, monotonic)
        self._kept_seconds = limits.kept_seconds()
        self._heard_at: dict[str, float] = {}
        """When a process of each model last reported."""

    @property
    def due_at(self) -> float | None:
        """When the next thing is due, Unix seconds."""
        due = (self._timers.next, self._expiry.due_at)
        return min((time for time in due if time is not None), default=None)

    @property
    def active_batches(self) -> list[ActiveBatch]:
        """The batches that are not over."""
        return list(self._active.values())

    def look(self) -> None:
        """Set all timers anew where the clock was stepped, or the log keeps its records for another time."""
        kept_seconds = self._limits.kept_seconds()
        if self._steps.has_stepped() or kept_seconds != self._kept_seconds:
            self._kept_seconds = kept_seconds
            for active in self._active.values():
                self._set_timer(active)

    def begin(self) -> None:
        """Begin a record; see `undo`."""
        self._before.clear()

    def undo(self) -> None:
        """Undo what the last record has left, which failed."""
        for active, was in self._before.values():
            active.restore(was)
            if active.state.is_over:
                self._over(active)
            else:
                self._active[active.state.id] = active
                if active.state.closed:
                    active.release()
                    self._start_compaction(active)
                self._set_timer(active)
        self._before.clear()
        self._waiting_bytes = sum(active.waiting_bytes for active in self._active.values())

    def _get(self, batch_id: str) -> ActiveBatch:
        if (active := self._active.get(batch_id)) is None:
            active = self._wake(self._tables.state(batch_id) or State(id=batch_id, partition=self.number))
        return self._touched(active)

    def _touched(self, active: ActiveBatch) -> ActiveBatch:
        if active.state.id not in self._before:
            self._before[active.state.id] = active, active.snapshot()
        return active

    def is_over(self, batch_id: str) -> bool:
        """Whether a batch is over or deleted."""
        state = None if batch_id in self._active else self._tables.state(batch_id)
        return state is not None and state.is_over

    def _wake(self, state: State) -> ActiveBatch:
        chunks = () if state.is_over else self._tables.chunks(state)
        monotonic = self._monotonic()
        since = None if state.ending is None else monotonic
        bitmap = LineBitmap.of(chunks)
        stalls = Stalls(moved_at=monotonic, moved=(state.batch and state.batch.status, bitmap.done))
        active = ActiveBatch(state=state, bitmap=bitmap, published_at=monotonic, ending_since=since, stalls=stalls)
        if not state.is_over:
            self._active[state.id] = active
        return active

    async def _turn(self, active: ActiveBatch, after: State, *, due: bool = False) -> None:
        """Bring a batch to its state after an event, and to what follows from it."""
        monotonic = self._monotonic()
        before, active.state = active.state, after
        active.stalls.look(after, active.bitmap.done, monotonic)
        if after.ending is not None and active.ending_since is None:
            active.ending_since = monotonic
        closing = due or reducer.is_complete(after, active.bitmap.done)
        # Where the store does not take the lines, a tick tries again.
        closing = closing and await self._flush(active, keep=False)
        if closing or active.state is not before or monotonic >= active.next_publish_at:
            active.state = reducer.counted(
                self._waited(active), active.bitmap.done - active.bitmap.failed, active.bitmap.failed
            )
        if closing:
            active.state = reducer.close(active.state, self._clock(), self.owner.writer)
        if active.state is not before or (active.unpublished and monotonic >= active.next_publish_at):
            if active.state.is_over:
                await self._publish(active)  # once the table has it, nothing would publish it again
            await self._tables.keep(active)
            if closing and reducer.is_brief(active.state):
                active.unpublished = True
            elif not active.state.is_over:
                await self._publish(active)
        # A batch that is over is closed too, and a fact about it may come again; its files are written for good.
        if active.state.is_over:
            self._over(active)
            active.release()
        elif active.state.closed:
            active.release()
            self._start_compaction(active)
            self._set_timer(active)
        else:
            self._set_timer(active)

    def _waited(self, active: ActiveBatch) -> State:
        """The batch with what it waits for at this time."""
        batch, monotonic = active.state.batch, self._monotonic()
        heard_at = self._heard_at.get(batch.model or "", 0.0) if batch is not None else 0.0
        waiting = active.stalls.waiting(
            active.state, active.bitmap.done, monotonic, self._clock(), heard_at=heard_at
        )
        return waits(active.state, waiting)

    def _hear(self, active: ActiveBatch) -> None:
        """Note that a process which serves the model of a batch has reported."""
        if active.state.batch is not None and (model := active.state.batch.model) is not None:
            self._heard_at[model] = self._monotonic()

    async def _bound(self) -> None:
        while self._waiting_bytes > WAITING_BYTES_MAX or self._put_off_bytes > PUT_OFF_BYTES_MAX:
            largest = max(
                (active for active in self._active.values() if active.state.id not in self._put_off),
                key=lambda active: active.waiting_bytes,
                default=None,
            )
            if self._put_off_bytes > PUT_OFF_BYTES_MAX or largest is None:
                largest = min(self._put_off.values(), key=lambda active: active.again_at)
                await asyncio.sleep(max(0.0, largest.again_at - self._monotonic()))
            await self._flush(self._touched(largest))

    @property
    def _put_off_bytes(self) -> int:
        return sum(active.waiting_bytes for active in self._put_off.values())

    async def _flush(self, active: ActiveBatch, *, keep: bool = True) -> bool:
        """Write the waiting lines as parts; with `keep`, also the state, and acknowledge their events.

        Returns:
            Whether that is done; else the store has not taken them, and they wait on.
        """
        if active.state.id in self._put_off and self._monotonic() < active.again_at:
            return False
        for buffer, failed in ((active.output, False), (active.errors, True)):
            if not buffer.lines:
                continue
            size, active.tried_part = buffer.size, active.next_part
            try:
                part = await write_part(
                    self._store,
                    active.state.id,
                    active.tried_part,
                    buffer,
                    failed=failed,
                    writer=self.owner.writer,
                )
            except OSError as error:
                self._not_taken(active, error)
                return False
            self._waiting_bytes -= size
            active.state = active.state.model_copy(update={"parts": (*active.state.parts, part)})
        active.waiting_since = None
        if self._put_off.pop(active.state.id, None) is not None:
            active.tries = 0
            if not active.is_unread:
                self._block(active, None)
        if keep:
            await self._tables.keep(active)
            active.release()
        return True

    def _not_taken(self, active: ActiveBatch, error: OSError) -> None:
        """The store has not taken the lines of a batch."""
        pause = pause_seconds(active.tries)
        active.tries += 1
        self._put_off[active.state.id] = active
        why = f"Results of the batch cannot be stored: {reason(error)}."
        log.warning("%s: %s Next try in %.1f s", active.state.id, why, pause)
        self._block(active, (Reason.STORE, why), self._monotonic() + pause)

    async def _publish(self, active: ActiveBatch) -> None:
        active.unpublished = False
        progress = active.progress(self._clock(), self._monotonic())
        await self._publisher.batch(active.state, progress, active.blocked)
        if active.eta is not None:
            active.eta.published_quiet = active.eta.is_quiet
        active.published_at = self._monotonic()

    async def _publish_again(self, active: ActiveBatch) -> None:
        """A fact that ended a batch came again: its effects may be neither in the changelog nor published."""
        if active.state.is_over:
            await self._tables.keep(active)
            await self._publish(active)

    def _set_timer(self, active: ActiveBatch) -> None:
        """Set the timer of a batch for the next thing that is due."""
        due = active.due(self._clock(), self._monotonic(), self._limits)
        if (risk_at := retention_risk.risk_at(active.state, self._limits.kept_seconds())) is not None:
            due.append(risk_at)
        if due:
            self._timers.set(active.state.id, min(due))

    def _start_compaction(self, active: ActiveBatch) -> None:
        if not active.compacting:
            active.compacting = True
            self._background.start(self._compact(active))

    async def _compact(self, active: ActiveBatch) -> None:
        """Write the files and send the fact that they are there."""

        def blocked(why: str) -> None:
            self._block(active, (Reason.FILES, f"The files of the batch cannot be written: {why}."))

        fact = await self._finalizer.finish(active, blocked)
        if fact is not None:
            await self._publisher.compacted(fact, self.number)

    def takes_lines(self, batch_id: str) -> bool:
        """Whether result lines of a batch still count."""
        active = self._active.get(batch_id)
        state = self._tables.state(batch_id) if active is None else active.state
        return state is None or state.takes_lines

    def unread(self, batch_id: str, why: Unavailable | None, again_at: float) -> None:
        """Lines of a batch that were run cannot be read at the moment; see `held_records.Report`."""
        if (active := self._active.get(batch_id)) is not None:
            active.is_unread = why is not None
            words = f"Results of the batch cannot be read: {why}."
            self._block(active, None if why is None else (why.reason, words), again_at)

    def _block(self, active: ActiveBatch, why: tuple[Reason, str] | None, again_at: float = 0.0) -> None:
        """Mark a batch as blocked, or as not blocked any more; the next tick publishes it.

        Args:
            active: The batch.
            why: Why not.
            again_at: When it is tried again, by the monotonic clock.
        """
        active.again_at = again_at
        since = active.blocked[0].since if active.blocked else int(self._clock())
        blocked = () if why is None else (one(*why, since=since),)
        if blocked != active.blocked:
            active.blocked, active.unpublished = blocked, True
            self._set_timer(active)

    def _over(self, active: ActiveBatch) -> None:
        self._active.pop(active.state.id, None)
        self._put_off.pop(active.state.id, None)
        self._timers.drop(active.state.id)


class Background:
    """Background tasks of a partition, beside its records; what one of them raises is logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Start a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in self._tasks:
            task.cancel()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task of a partition failed", exc_info=error)
