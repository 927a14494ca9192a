"""One partition of results, which alone owns the batches whose records it gets.

The order of the steps decides what a crash can cause (docs/reference/protocol.md, steps 10 to 15):

10. a fact is applied in memory;
11. lines are flushed to the store as a part;
12. the state, which names the part, is written to its table, then the chunks of the bitmap;
13. the changelog has these writes;
14. the batch is published;
15. the events are acknowledged.

After a crash Kafka redelivers the events. A part that no state names is an orphan and harmless. If a state names a
part and the bitmap lacks its lines, a second part gets the same lines; the merge takes each line once. The caller
ensures that the calls of one partition never overlap.
"""

import asyncio
import logging
from typing import Final, assert_never

from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.partitions.dead_letters import safe_reason
from tidemill.kafka.partitions.owner import Ack
from tidemill.results.batches import Batches
from tidemill.results.expiry import StateExpiry
from tidemill.results.files.garbage_collection import GarbageCollection
from tidemill.results.publisher import Publisher
from tidemill.results.resources import Owner, Resources
from tidemill.results.state import reducer, retention_risk
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.results.state.active_batches import ActiveBatches
from tidemill.results.state.reducer import State
from tidemill.results.state.tables import Tables
from tidemill.schemas import ids
from tidemill.schemas.log.codec import DecodeError, LineMark
from tidemill.schemas.log.messages import (
    Accepted,
    BatchCreated,
    CancelRequested,
    Command,
    Compacted,
    DeadLettered,
    DeleteRequested,
    Ended,
    Fact,
    Grown,
    Opened,
    Rejected,
    Sealed,
    Stalled,
    Tick,
)
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.tasks import Background

log = logging.getLogger(__name__)

TAKE_OVER_BATCHES: Final = 256
"""Batches that are kept and published together when a partition is taken over."""


class Partition:
    """Applies commands, facts, lines and ticks to the batches of one partition."""

    def __init__(self, number: int, *, tables: Tables, resources: Resources, owner: Owner) -> None:
        """Own the partition with this number in `outcomes` and `commands`, in a process that is its `owner`."""
        self.owner = owner
        self.active_batches = ActiveBatches(number, tables, resources.monotonic)
        self._tables = tables
        self._resources = resources
        self._limits = resources.limits
        publisher = Publisher(
            resources.sender, lambda: tables.owner, output_life_seconds=resources.limits.output_life_seconds
        )
        self._background = Background()
        self._garbage = GarbageCollection(resources.store, owner.confirm)
        self.batches = Batches(
            self.active_batches,
            tables=tables,
            publisher=publisher,
            background=self._background,
            garbage=self._garbage,
            resources=resources,
            owner=owner,
        )
        self._expiry = StateExpiry(
            tables,
            self._garbage,
            publisher,
            kept_seconds=resources.limits.kept_seconds,
            now=resources.clock(),
        )
        self._deletions: list[tuple[DeleteRequested, Ack]] = []
        """Deletions of batches at work."""

    @property
    def due_at(self) -> float | None:
        """When the next timer is due, Unix seconds."""
        due = (self.batches.timers.next, self._expiry.due_at)
        return min((time for time in due if time is not None), default=None)

    async def load(self) -> None:
        """Take over the batches that were at work; called once, before all else.

        A crash can leave the local tables ahead of their changelog. The changelog, too, needs every state that
        later work builds on, or the loss of a disk would lose acknowledged lines. So this owner writes all of them
        again.
        """
        await self._tables.take_over(self.owner.generation)
        loaded = [self.active_batches.load(state) for state in self._tables.open()]
        for start in range(0, len(loaded), TAKE_OVER_BATCHES):
            # Many at once: each write waits for the broker, and there may be thousands.
            group = loaded[start : start + TAKE_OVER_BATCHES]
            await self._tables.adopt(*group)
            if written := [active for active in group if active.state.written is not None]:
                # Their ends may already be published: they must not appear as "finalizing" again.
                await self.batches.end(*written)
            await asyncio.gather(*(self.batches.publish(active) for active in group if not active.state.is_over))
        self._tables.drop_stale()
        for active in loaded:
            if active.state.closed and not active.state.is_over:
                self.batches.start_compaction(active)
            elif not active.state.closed:
                self.batches.set_timer(active)
        self._background.start(self._garbage.sweep(self.active_batches.is_over))

    async def dead_lettered(self, fact: DeadLettered, created: BatchCreated | None, *, ends: bool = True) -> None:
        """Show on a batch that one of its records is a dead letter: `created`, if the record created the batch.

        `ends` says whether that ends a batch whose lines are not accepted yet.
        """
        active = self.active_batches.get(fact.batch_id)
        before = reducer.bare(active.state, created) if created is not None else active.state
        await self.batches.advance(active, reducer.dead_lettered(before, fact, ends=ends))

    async def command(self, command: Command, ack: Ack) -> None:
        """Apply a command."""
        match command:
            case BatchCreated():
                _check_first(command.batch, Status.VALIDATING)
                active = self.active_batches.get(command.batch.id)
                await self._begin(active, reducer.created(active.state, command, self._limits.grace_seconds), ack)
            case CancelRequested():
                active = self.active_batches.get(command.batch_id)
                after = reducer.cancelled(active.state, command, self._limits.grace_seconds)
                await self.batches.advance(active, after)
                ack()
            case DeleteRequested():
                await self._delete(command, ack)
            case _:
                assert_never(command)

    async def _delete(self, command: DeleteRequested, ack: Ack) -> None:
        """Delete a batch; one at work is deleted once it is over.

        An api process has seen its end: a former owner published it, and died before the table had it. Until the
        end comes again the command stays unacknowledged.
        """
        active = self.active_batches.get(command.batch_id)
        after = reducer.deleted(active.state, command)
        if after.is_over:
            self._background.start(await self._expiry.erase(after, command, ack))
            self.batches.drop(active)
        else:
            log.warning("%s is still at work, so its deletion waits", command.batch_id)
            self._deletions.append((command, ack))

    @property
    def has_ended(self) -> bool:
        """Whether `settle` has work."""
        is_over = self.active_batches.is_over
        return self.batches.has_written or any(is_over(command.batch_id) for command, _ in self._deletions)

    async def settle(self) -> None:
        """End the batches whose files are written, and delete those whose deletion came before their end."""
        while self.batches.has_written:
            await self.batches.end_written()
        waiting, self._deletions = self._deletions, []
        for command, ack in waiting:
            if self.active_batches.is_over(command.batch_id):
                self.active_batches.begin()
                await self._delete(command, ack)
            else:
                self._deletions.append((command, ack))

    async def fact(self, fact: Fact, ack: Ack) -> None:
        """Apply a fact other than result lines."""
        match fact:
            case Accepted():
                active = self.active_batches.get(fact.batch_id)
                await self._begin(active, reducer.accepted(active.state, fact), ack)
                return
            case Rejected():
                active = self.active_batches.get(fact.batch_id)
                await self.batches.advance(active, reducer.rejected(active.state, fact))
                await self.batches.publish_again(active)
            case Opened():
                _check_first(fact.batch, Status.IN_PROGRESS)
                active = self.active_batches.get(fact.batch.id)
                after = reducer.created(active.state, fact, self._limits.grace_seconds)
                await self.batches.advance(active, after)
            case Grown():
                active = self.active_batches.get(fact.batch_id)
                await self._defer(active, reducer.grown(active.state, fact), ack)
                return
            case Ended() | Sealed():
                active = self.active_batches.get(fact.batch_id)
                await self.batches.advance(active, reducer.no_more_lines(active.state, fact))
            case Compacted():
                await self._compacted(fact)
            case Tick():
                await self._tick(fact)
            case DeadLettered():
                await self.dead_lettered(fact, None)
            case Stalled():
                await self._stalled(fact)
            case _:
                assert_never(fact)
        ack()

    async def _stalled(self, fact: Stalled) -> None:
        """Note why lines of a batch wait; ignore a batch that is not active."""
        if (active := self.active_batches.find(fact.batch_id)) is None:
            return
        self.batches.note_report(active, fact.model)
        if active.stalls.add(fact, self._resources.monotonic()):
            active = self.active_batches.touch(active)
            await self.batches.advance(active, self.batches.stalled(active))

    async def _begin(self, active: ActiveBatch, after: State, ack: Ack) -> None:
        """Start a batch; a small one may be over before it has to be published."""
        if reducer.is_brief(after):
            await self._defer(active, after, ack)
        else:
            await self.batches.advance(active, after)
            ack()

    async def _defer(self, active: ActiveBatch, after: State, ack: Ack) -> None:
        """Set a state, which is kept and published together with the next one, or after `PUBLISH_SECONDS`."""
        if after is active.state:
            ack()
            return
        active.state, active.unpublished = after, True
        active.acks.append(ack)
        if active.waiting_since is None:
            active.waiting_since = self._resources.monotonic()
        await self.batches.advance(active, active.state)

    async def lines(
        self, batch_id: str, marks: list[LineMark], value: bytes, ack: Ack, *, model: str = ""
    ) -> None:
        """Apply result lines of a model; they are acknowledged once they are in a part."""
        active = self.active_batches.get(batch_id)
        if not active.state.takes_lines:
            ack()
            return
        total = reducer.lines_max(active.state)
        if any(mark.index >= total for mark in marks):
            raise DecodeError("its batch has no such line")
        number = _number(active.state.models, model)
        self.batches.note_report(active, model)
        self.batches.spans.folds(batch_id)
        new = self.batches.parts.add(active, marks, value, number)
        if (batch := active.state.batch) is not None:
            name = batch.model or (model if number is not None else "")
            seconds = max(0.0, self._resources.clock() - batch.created_at)
            self._resources.metrics.folded(name, len(marks), new=new, size=len(value), seconds=seconds)
        if not new:
            ack()
            return
        active.acks.append(ack)
        if active.waiting_bytes >= self._limits.files.part_bytes:
            await self.batches.parts.flush(active)
        await self.batches.parts.bound()
        await self.batches.advance(active, active.state)

    def abandon(self) -> None:
        """Stop; the next owner gets unacknowledged records again."""
        self._background.cancel()
        self.active_batches.clear()
        self.batches.timers.clear()

    async def _tick(self, tick: Tick) -> None:
        """Do everything that was due at the time of a tick of this owner.

        A former owner's tick decides nothing: its clock may have been ahead, and lines that the log has by now may
        come after it.
        """
        if tick.writer != self.owner.writer:
            return
        at = tick.at
        for batch_id in self.batches.timers.due(at):
            if (active := self.active_batches.find(batch_id)) is None:
                continue
            self.active_batches.begin()
            try:
                await self._due(self.active_batches.touch(active), at)
                self.batches.timer_done(active)
            except TRANSIENT:
                raise
            except Exception as error:
                # A dead letter of the tick would stop the other batches: only this batch is tried again.
                log.exception("%s: its timer failed", batch_id)
                self.batches.undo()
                self.batches.retry_timer(active, at, safe_reason(error))
        if (removal := self._expiry.look(at)) is not None:
            self._background.start(removal)

    async def _due(self, active: ActiveBatch, at: float) -> None:
        if active.state.closed:
            if active.unpublished:
                await self.batches.publish(active)
            if active.state.written is None:
                self.batches.start_compaction(active)
            return
        now = self._resources.monotonic()
        if active.waiting_since is not None and now >= active.waiting_since + self._limits.part_age_seconds:
            await self.batches.parts.flush(active)
        quiet_at = None if active.eta is None else active.eta.unpublished_quiet_at
        active.unpublished = active.unpublished or (quiet_at is not None and now >= quiet_at)
        after, is_unread = self.batches.stalled(active), active.blockage.is_unread
        # The deadline does not discard results that exist but cannot be read at the moment.
        if not (is_unread or reducer.is_complete(after, active.bitmap.done)):
            after = reducer.overdue(after, at, self._limits.grace_seconds)
        after = retention_risk.endangered(after, at, self._limits.retention_seconds())
        graced = active.graced(at, now, self._limits)
        # A cancelled batch gives up unread results, unless that would decrease its published counts.
        gives_up = after.ending is Status.CANCELLED and active.unpublished_lines >= 0
        await self.batches.advance(
            active, after, due=reducer.is_due(after, graced) and (gives_up or not is_unread)
        )

    async def _compacted(self, fact: Compacted) -> None:
        active = self.active_batches.get(fact.batch_id)
        if active.state.is_over or fact.closed_by != active.state.closed_by:
            # A former owner may have closed the batch with other lines, and written other files.
            await self.batches.publish_again(active)
            if active.state.is_over:
                self._background.start(self._garbage.clear(fact.batch_id))
            return
        if not active.state.closed:
            raise DecodeError("its batch is not closed")
        await self.batches.publish_files(active, fact)
        await self._tables.keep(active)
        await self.batches.publish(active)
        if active.state.is_over:
            self.batches.drop(active)
            self._background.start(self._garbage.clear(fact.batch_id))


def _number(models: tuple[str, ...], model: str) -> int | None:
    """The number of a model of a batch; None if the lines of the batch name only one."""
    if not models:
        return None
    if model not in models:
        raise DecodeError("its batch has no line of this model")
    return models.index(model)


def _check_first(batch: Batch, status: Status) -> None:
    """Check that a new batch has a valid id and the first status of its kind."""
    if batch.status is not status or not ids.is_batch_id(batch.id):
        raise DecodeError("its batch is not in its first state")
