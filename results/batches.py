"""Moves batches from one state to the next: flush, keep, publish, set the timer, compact.

`results/partition.py` decides the next state; docs/reference/protocol.md has the steps, 10 to 15.
"""

import asyncio
import functools
import logging
from typing import Final

from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.partitions.dead_letters import safe_reason
from tidemill.kafka.partitions.held_records import Unavailable
from tidemill.results.bills import so_far
from tidemill.results.facts import Written
from tidemill.results.files.finalizer import Finalizer
from tidemill.results.files.garbage_collection import GarbageCollection
from tidemill.results.files.part_writer import PartWriter
from tidemill.results.publisher import Publisher
from tidemill.results.resources import Owner, Resources
from tidemill.results.result_metrics import count_ended
from tidemill.results.spans import BatchSpans
from tidemill.results.state import reducer, retention_risk
from tidemill.results.state.active_batch import ActiveBatch, Obstacle
from tidemill.results.state.active_batches import ActiveBatches
from tidemill.results.state.reducer import State
from tidemill.results.state.stalls import show
from tidemill.results.state.tables import Tables
from tidemill.results.state.timers import Timers
from tidemill.runtime.clocks import ClockSteps
from tidemill.schemas.log.messages import Compacted
from tidemill.schemas.log.part import USAGE
from tidemill.schemas.resources.waiting import Reason, Waiting
from tidemill.tasks import Background
from tidemill.wording import counted

AT_ONCE_BYTES_MAX: Final = 256 << 10
"""Lines of a batch whose files are written from memory."""
ENDED_AT_ONCE_MAX: Final = 256
RETRY_SECONDS: Final = 10.0
"""Pause of a batch whose timer failed."""

log = logging.getLogger(__name__)


class Batches:
    """The active batches of a partition, their parts, timers and compactions."""

    def __init__(
        self,
        active: ActiveBatches,
        *,
        tables: Tables,
        publisher: Publisher,
        background: Background,
        garbage: GarbageCollection,
        resources: Resources,
        owner: Owner,
    ) -> None:
        self._active = active
        self._tables = tables
        self._publisher = publisher
        self._background = background
        self._resources = resources
        self._writer = owner.writer
        self.parts = PartWriter(active, tables, resources, writer=owner.writer, block=self.block)
        self.timers = Timers()
        self._finalizer = Finalizer(resources, owner)
        self._garbage = garbage
        self._written: list[tuple[ActiveBatch, Written]] = []
        """Batches whose files are written from memory."""
        self._clock_steps = ClockSteps(resources.clock, resources.monotonic)
        self._retention_seconds = resources.limits.retention_seconds()
        self._revision = resources.limits.revision()
        self._reported_at: dict[str, float] = {}
        """When a process of each model last reported, by the monotonic clock."""

    @property
    def spans(self) -> BatchSpans:
        """The spans of its batches with a trace."""
        return self._finalizer.spans

    def check_clock(self) -> None:
        """Set all timers again if the wall clock was stepped or the retention of the log was changed."""
        retention_seconds = self._resources.limits.retention_seconds()
        if self._clock_steps.step() or retention_seconds != self._retention_seconds:
            self._retention_seconds = retention_seconds
            for active in self._active:
                self.set_timer(active)

    def check_models(self) -> None:
        """Make the timer of each batch due whose model was paused, resumed or removed."""
        limits, now = self._resources.limits, self._resources.clock()
        if (revision := limits.revision()) == self._revision:
            return
        self._revision = revision
        for active in self._active:
            if self._uncalled(active.state) != active.stalls.uncalled:
                self.timers.set(active.state.id, now)

    def undo(self) -> None:
        """Undo the changes of the current record, which failed."""
        for active in self._active.undo():
            if active.state.is_over or self._active.find(active.state.id) is None:
                self.drop(active)
            else:
                self._go_on(active)
        self.parts.recount()

    async def advance(self, active: ActiveBatch, after: State, *, due: bool = False) -> None:
        """Move a batch to its next state, and do all that follows; `due` closes it with the lines it has."""
        now = self._resources.monotonic()
        before, active.state = active.state, after
        active.stalls.look(after, active.bitmap.done, now)
        if after.ending is not None and active.ending_since is None:
            active.ending_since = now
        closing = due or reducer.is_complete(after, active.bitmap.done)
        at_once = closing and self._ends_at_once(active)
        # If the store refuses the lines, a tick tries again.
        closing = closing and not at_once and await self.parts.flush(active, keep=False)
        if closing or active.state is not before or now >= active.next_publish_at:
            active.state = reducer.counted(self.stalled(active), active.bitmap, active.retries)
        if closing:
            active.state = reducer.close(active.state, self._resources.clock(), self._writer)
        if active.state is not before or (active.unpublished and now >= active.next_publish_at):
            if active.state.is_over:
                await self.publish(active)  # before the table has the state: afterwards no owner would publish it
            await self._tables.keep(active)
            if closing and reducer.is_brief(active.state):
                active.unpublished = True
            elif not active.state.is_over:
                await self.publish(active)
        # A replayed fact must not start another compaction: a batch that is over is closed, too.
        if active.state.is_over:
            self.drop(active)
            active.release()
        else:
            self._go_on(active)
            # Only now, since the record can no longer fail and be undone.
            if at_once and not active.compacting:
                active.compacting = True
                self._background.start(self._finish_at_once(active))

    def _go_on(self, active: ActiveBatch) -> None:
        """Go on with a batch that is not over."""
        if active.state.closed and active.state.written is None:
            active.release()
            self.start_compaction(active)
        self.set_timer(active)

    def _uncalled(self, state: State) -> dict[str, Waiting]:
        """Why no process may call lines of the batch, by model."""
        only = state.batch.model if state.batch is not None else None
        found = {name: self._resources.limits.why_uncalled(name) for name in state.models or filter(None, [only])}
        return {name: why for name, why in found.items() if why is not None}

    def stalled(self, active: ActiveBatch) -> State:
        """The state of a batch with the current reasons why its lines wait."""
        active.stalls.uncalled = self._uncalled(active.state)
        return show(
            active.state,
            active.stalls.shown(
                active.state,
                active.bitmap.done,
                self._resources.monotonic(),
                self._resources.clock(),
                reported_at=self._reported_at,
            ),
        )

    def note_report(self, active: ActiveBatch, model: str) -> None:
        """Note that a process which serves a model has reported on a batch; by default the batch's only model."""
        if model := model or (active.state.batch and active.state.batch.model) or "":
            self._reported_at[model] = self._resources.monotonic()

    async def publish(self, active: ActiveBatch) -> None:
        """Publish a batch as it is."""
        active.unpublished = False
        progress = active.progress(self._resources.clock(), self._resources.monotonic())
        # While a replay still brings lines that a former owner counted, the sums lack these.
        if progress is not None and active.state.batch is not None and active.unpublished_lines >= 0:
            used = {number: one[:USAGE] for number, one in active.sums.items()}
            progress = so_far(progress, active.state.batch, used, self._resources.limits.files.tariff_of)
        await self._publisher.batch(active.state, progress, active.blockage.shown)
        if active.eta is not None:
            active.eta.published_quiet = active.eta.is_quiet
        active.published_at = self._resources.monotonic()

    async def publish_again(self, active: ActiveBatch) -> None:
        """Keep and publish a batch that is over, since the fact that ended it was redelivered."""
        if active.state.is_over:
            await self._tables.keep(active)
            await self.publish(active)

    def set_timer(self, active: ActiveBatch) -> None:
        """Set the timer of a batch for its next work."""
        limits = self._resources.limits
        due = active.due(self._resources.clock(), self._resources.monotonic(), limits)
        if (risk_at := retention_risk.risk_at(active.state, limits.retention_seconds())) is not None:
            due.append(risk_at)
        if due:
            self.timers.set(active.state.id, min(due))

    def retry_timer(self, active: ActiveBatch, at: float, why: str) -> None:
        """Show that the timer of a batch, due at a Unix time, failed, and set it for a later time."""
        self.block(active, (Reason.FILES, f"The work that is due failed: {why}."))
        active.blockage.is_of_timer = True
        self.timers.drop(active.state.id)
        self.timers.set(active.state.id, at + RETRY_SECONDS)

    def timer_done(self, active: ActiveBatch) -> None:
        """Stop showing that the timer of a batch failed, since its work is done."""
        if active.blockage.is_of_timer:
            self.block(active, None)

    def start_compaction(self, active: ActiveBatch) -> None:
        """Start to write the files of a closed batch, unless that has begun."""
        if not active.compacting:
            active.compacting = True
            self._background.start(self._compact(active))

    def _ends_at_once(self, active: ActiveBatch) -> bool:
        """Whether the files of a batch can be written, or are being written, from memory.

        The log still has all records of its lines, and they are acknowledged once the table names the files.
        """
        is_small = active.tried_part < 0 and active.is_in_memory and active.waiting_bytes <= AT_ONCE_BYTES_MAX
        return active.compacting or (is_small and reducer.finishes_at_once(active.state))

    async def _finish_at_once(self, active: ActiveBatch) -> None:
        """Write the files of a batch from memory; `end_written` does the rest, between two records."""
        try:
            with self.spans.finalizing(active):
                fact = await self._finalizer.finish_at_once(active, functools.partial(self._waits, active))
            if fact is not None and not (fact.receipt.missing or fact.receipt.double):
                self._written.append((active, Written.model_validate(fact.model_dump())))
                self._resources.wake()
                return
        except Exception:
            log.exception("%s cannot be written from memory", active.state.id)
        self._end_by_parts(active)

    def _end_by_parts(self, active: ActiveBatch) -> None:
        """Let the next tick end a batch like a large one."""
        active.compacting, active.tried_part = False, max(0, active.tried_part)
        self.timers.set(active.state.id, self._resources.clock())

    @property
    def has_written(self) -> bool:
        """Whether `end_written` has work."""
        return bool(self._written)

    async def end_written(self) -> None:
        """Close and end the batches whose files were written from memory; all share the requests to the log."""
        ready, self._written = self._written[:ENDED_AT_ONCE_MAX], self._written[ENDED_AT_ONCE_MAX:]
        batches = [active for active, _ in ready]
        before = [active.state for active in batches]
        try:
            for active, fact in ready:
                closed = reducer.close(active.state, self._resources.clock(), self._writer)
                active.state = closed.model_copy(update={"written": fact})
            await self._tables.keep(*batches)
        except TRANSIENT:
            raise
        except Exception:
            log.exception("%s cannot be ended at once", counted(len(batches), "batch"))
            for active, state in zip(batches, before, strict=True):
                active.state = state
                self._end_by_parts(active)
            return
        for active in batches:
            self.parts.written(active)
            active.release()
        await self.end(*batches)

    async def end(self, *batches: ActiveBatch) -> None:
        """End batches that are closed and written."""
        await asyncio.gather(*map(self._publish_end, batches))
        await self._tables.keep(*batches)
        for active in batches:
            self.drop(active)
            if active.tried_part >= 0:
                self._background.start(self._garbage.clear(active.state.id))

    async def _publish_end(self, active: ActiveBatch) -> None:
        assert active.state.written is not None
        await self.publish_files(active, active.state.written)
        await self.publish(active)

    async def publish_files(self, active: ActiveBatch, fact: Compacted) -> None:
        """Publish the files and the bill of a batch, and give it its final status.

        Once the table has the final status, no owner would publish them: the caller keeps it there afterwards.
        """
        after = reducer.compacted(active.state, fact)
        offset, _ = await asyncio.gather(self._publisher.files(after, fact), self._publisher.bill(after, fact))
        active.blockage.shown = ()
        active.state = after.model_copy(update={"files_offset": offset})

    async def _compact(self, active: ActiveBatch) -> None:
        """Write the files of a batch and send the fact that ends it; the timer retries after unexpected errors."""
        try:
            with self.spans.finalizing(active):
                fact = await self._finalizer.finish(active, functools.partial(self._waits, active))
                if fact is not None:
                    await self._publisher.compacted(fact, self._active.number)
        except Exception as error:
            log.exception("%s cannot be finished", active.state.id)
            active.compacting = False
            self.retry_timer(active, self._resources.clock(), safe_reason(error))

    def _waits(self, active: ActiveBatch, kind: Reason, words: str) -> None:
        self.block(active, (kind, words), active.blockage.again_at)

    def unread(self, batch_id: str, why: Unavailable | None, again_at: float) -> None:
        """Show that result lines of a batch cannot be read at the moment; see `held_records.Report`."""
        if (active := self._active.find(batch_id)) is not None:
            active.blockage.is_unread = why is not None
            words = f"Results of the batch cannot be read: {why}."
            self.block(active, None if why is None else (why.reason, words), again_at)

    def block(self, active: ActiveBatch, obstacle: Obstacle | None, again_at: float = 0.0) -> None:
        """See `ActiveBatch.block`; the next tick publishes it."""
        if active.block(obstacle, again_at, int(self._resources.clock())):
            self.set_timer(active)

    def drop(self, active: ActiveBatch) -> None:
        """Forget a batch that is over."""
        if active.state.batch is not None and self._active.find(active.state.id) is active:
            count_ended(active.state.batch, self._resources.clock())
        self._active.drop(active.state.id)
        self.spans.forget(active.state.id)
        self.parts.drop(active.state.id)
        self.timers.drop(active.state.id)
