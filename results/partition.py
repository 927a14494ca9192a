"""One partition of results: the only owner of the batches whose facts come there.

The order of steps decides what a crash can do (docs/reference/protocol.md, steps 10 to 15):

10. a fact is applied in memory;
11. lines are flushed to the store as a part;
12. the state, which names the part, is written to its table, then the chunks of the bitmap;
13. the changelog has these writes;
14. the batch is published;
15. the events are acknowledged.

After a crash the events come again. A part that no state names is an orphan and harmless. A part that a
state names although the bitmap lacks its lines is followed by a second one with the same lines; the merge takes
each line once. The calls of one partition never overlap; the caller sees to it.
"""

import asyncio
import logging
from typing import Final, assert_never

from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.partitions.dead_letters import safe_reason
from tidemill.kafka.partitions.owner import Ack
from tidemill.results.batches import Batches
from tidemill.results.state import reducer, retention_risk
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.results.state.reducer import State
from tidemill.schemas import ids
from tidemill.schemas.log.codec import DecodeError, LineMark
from tidemill.schemas.log.messages import (
    Accepted,
    BatchCreated,
    Buried,
    CancelRequested,
    Command,
    Compacted,
    DeleteRequested,
    Fact,
    Grown,
    Opened,
    Rejected,
    Sealed,
    Stalled,
    Tick,
)
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.schemas.resources.waiting import Reason

log = logging.getLogger(__name__)

AGAIN_SECONDS: Final = 10.0
"""When a batch is looked at again for which time could not do what it had to."""
TAKE_OVER_BATCHES: Final = 256
"""Batches that are kept and published together when a partition is taken over."""


class Partition(Batches):
    """The batches of one partition."""

    async def load(self) -> None:
        """Take over the batches that were at work; called once, before all else.

        A crash can leave the local tables ahead of their changelog. What is built on from here has to be in both,
        or losing the disk later would lose lines whose events were acknowledged; so it is written again.
        """
        await self._tables.take_over(self.owner.generation)
        woken = [self._wake(state) for state in self._tables.open()]
        for start in range(0, len(woken), TAKE_OVER_BATCHES):
            # Together, since what is waited for is the broker: thousands of batches may be at work.
            group = woken[start : start + TAKE_OVER_BATCHES]
            await self._tables.adopt(*group)
            await asyncio.gather(*map(self._publish, group))
        self._tables.drop_stale()
        for active in woken:
            if active.state.closed:
                self._start_compaction(active)
            else:
                self._set_timer(active)
        self._background.start(self._garbage.sweep(self.is_over))

    async def buried(self, fact: Buried, created: BatchCreated | None, *, ends: bool = True) -> None:
        """Show on a batch that a record of it is a dead letter.

        Args:
            fact: Which one, and why.
            created: The record itself, if it would have created the batch.
            ends: Whether a batch ends by it whose lines are not accepted yet.
        """
        active = self._get(fact.batch_id)
        before = reducer.bare(active.state, created) if created is not None else active.state
        await self._turn(active, reducer.buried(before, fact, ends=ends))

    async def command(self, command: Command, ack: Ack) -> None:
        """Apply a command."""
        match command:
            case BatchCreated():
                _begins(command.batch, Status.VALIDATING)
                active = self._get(command.batch.id)
                await self._begin(active, reducer.created(active.state, command, self._limits.grace_seconds), ack)
            case CancelRequested():
                active = self._get(command.batch_id)
                await self._turn(active, reducer.cancelled(active.state, command, self._limits.grace_seconds))
                ack()
            case DeleteRequested():
                active = self._get(command.batch_id)
                after = reducer.deleted(active.state, command)
                self._background.start(await self._expiry.erase(after, command, ack))
                if after.is_over:
                    self._over(active)
            case _:
                assert_never(command)

    async def fact(self, fact: Fact, ack: Ack) -> None:
        """Apply a fact that is not about lines."""
        match fact:
            case Accepted():
                active = self._get(fact.batch_id)
                await self._begin(active, reducer.accepted(active.state, fact), ack)
                return
            case Rejected():
                active = self._get(fact.batch_id)
                await self._turn(active, reducer.rejected(active.state, fact))
                await self._publish_again(active)
            case Opened():
                _begins(fact.batch, Status.IN_PROGRESS)
                active = self._get(fact.batch.id)
                await self._turn(active, reducer.opened(active.state, fact, self._limits.grace_seconds))
            case Grown():
                active = self._get(fact.batch_id)
                await self._soon(active, reducer.grown(active.state, fact), ack)
                return
            case Sealed():
                active = self._get(fact.batch_id)
                await self._turn(active, reducer.sealed(active.state, fact))
            case Compacted():
                await self._compacted(fact)
            case Tick():
                await self._tick(fact.at, is_current=fact.writer == self.owner.writer)
            case Buried():
                active = self._get(fact.batch_id)
                await self._turn(active, reducer.buried(active.state, fact))
            case Stalled():
                await self._stalled(fact)
            case _:
                assert_never(fact)
        ack()

    async def _stalled(self, fact: Stalled) -> None:
        """Note what lines of a batch wait for; a batch that is not active here is ignored."""
        if (active := self._active.get(fact.batch_id)) is None:
            return
        self._hear(active)
        if active.stalls.take(fact, self._monotonic()):
            await self._turn(self._touched(active), active.state)

    async def _begin(self, active: ActiveBatch, after: State, ack: Ack) -> None:
        """Start a batch: a small one may be over before it has to be published."""
        if reducer.is_brief(after):
            await self._soon(active, after, ack)
        else:
            await self._turn(active, after)
            ack()

    async def _soon(self, active: ActiveBatch, after: State, ack: Ack) -> None:
        """Bring a batch to a state that is kept and published with the next one, or in `PUBLISH_SECONDS`."""
        if after is active.state:
            ack()
            return
        active.state, active.unpublished = after, True
        active.acks.append(ack)
        if active.waiting_since is None:
            active.waiting_since = self._monotonic()
        await self._turn(active, active.state)

    async def lines(self, batch_id: str, marks: list[LineMark], value: bytes, ack: Ack) -> None:
        """Apply result lines; they are acknowledged once they are in a part."""
        active = self._get(batch_id)
        if any(mark.index >= reducer.lines_max(active.state) for mark in marks):
            raise DecodeError("its batch has no such line")
        if not active.state.takes_lines:
            ack()
            return
        before = active.waiting_bytes
        self._hear(active)
        if not active.take(marks, value, self._monotonic()):
            ack()
            return
        self._waiting_bytes += active.waiting_bytes - before
        active.acks.append(ack)
        if active.waiting_bytes >= self._limits.part_bytes:
            await self._flush(active)
        await self._bound()
        await self._turn(active, active.state)

    def abandon(self) -> None:
        """Stop: whatever is not acknowledged comes again to the next owner."""
        self._background.cancel()
        self._active.clear()
        self._timers.clear()

    async def _tick(self, at: float, *, is_current: bool) -> None:
        """Do what was due at that time."""
        # The tick may be of another's clock, by which what is set anew here is due again at once.
        for batch_id in self._timers.due(at):
            if (active := self._active.get(batch_id)) is None:
                continue
            self.begin()
            try:
                await self._due(self._touched(active), at, is_current=is_current)
            except TRANSIENT:
                raise
            except Exception as error:
                # Time is no record that could be buried; the other batches go on, and this one is tried again.
                log.exception("%s: what time has made due failed", batch_id)
                self.undo()
                self._block(active, (Reason.FILES, f"What is due cannot be done: {safe_reason(error)}."))
                self._timers.drop(batch_id)
                self._timers.set(batch_id, at + AGAIN_SECONDS)
        if (removal := self._expiry.look(at)) is not None:
            self._background.start(removal)

    async def _due(self, active: ActiveBatch, at: float, *, is_current: bool) -> None:
        if active.state.closed:
            if active.unpublished:
                await self._publish(active)
            return
        since = active.waiting_since
        if since is not None and self._monotonic() >= since + self._limits.part_age_seconds:
            await self._flush(active)
        quiet_at = None if active.eta is None else active.eta.unpublished_quiet_at
        active.unpublished = active.unpublished or (quiet_at is not None and self._monotonic() >= quiet_at)
        after = self._waited(active)
        # Lines that were run before are not given up for the sake of time.
        if not (active.is_unread or reducer.is_complete(after, active.bitmap.done)):
            after = reducer.overdue(after, at, self._limits.grace_seconds)
        after = retention_risk.endangered(after, at, self._limits.kept_seconds())
        graced = active.graced(at, self._monotonic(), self._limits, is_current=is_current)
        gives_up = (
            after.ending is Status.CANCELLED and active.unpublished_lines >= 0
        )  # else its counts would go back
        is_due = reducer.is_due(after, graced) and (gives_up or not active.is_unread)
        await self._turn(active, after, due=is_due)

    async def _compacted(self, fact: Compacted) -> None:
        active = self._get(fact.batch_id)
        if active.state.is_over or fact.closed_by != active.state.closed_by:
            # A former owner may have closed it over other lines: its files are not these.
            await self._publish_again(active)
            if active.state.is_over:
                self._background.start(self._garbage.clear(fact.batch_id))
            return
        if not active.state.closed:
            raise DecodeError("its batch is not closed")
        after = reducer.compacted(active.state, fact, None)
        # Before the state says that the batch is over: afterwards nothing would publish them any more.
        offset, _ = await asyncio.gather(self._publisher.files(after, fact), self._publisher.bill(after, fact))
        active.blocked = ()
        active.state = after.model_copy(update={"files_offset": offset})
        await self._tables.keep(active)
        await self._publish(active)
        if active.state.is_over:
            self._over(active)
            self._background.start(self._garbage.clear(fact.batch_id))


def _begins(batch: Batch, status: Status) -> None:
    if batch.status is not status or not ids.is_batch_id(batch.id):
        raise DecodeError("its batch is not in its first state")
