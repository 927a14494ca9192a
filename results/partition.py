"""The stage of one partition: the only owner of the batches whose facts come there.

The order of steps decides what a crash can do (docs/reference/protocol.md, steps 10 to 15):

10. a fact is folded in memory;
11. lines are flushed to the store as a part;
12. the state, which names the part, is written to its table, then the chunks of the tally;
13. the changelog has these writes;
14. the batch is published;
15. the events are acknowledged.

Whatever breaks off, the events come again. A part that no state names is an orphan and harmless. A part that a
state names although the tally lacks its lines is followed by a second one with the same lines; the merge takes
each line once. The calls of one partition never overlap; the caller sees to it.
"""

import asyncio
import logging
from typing import Final, assert_never

from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.handling import told
from tidemill.results.state import reducer, retention_risk
from tidemill.results.state.active_batch import Ack, ActiveBatch
from tidemill.results.state.batches import Batches
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
        """Take up the batches that were at work; to be called within an event, before all else.

        A crash can leave the local tables ahead of their changelog. What is built on from here has to be in both,
        or losing the disk later would lose lines whose events were acknowledged; so it is written again.
        """
        if self._loaded:
            return
        self._loaded = True
        await self._tables.take_over(self.owner.generation)
        woken = [self._wake(state) for state in self._tables.open()]
        for start in range(0, len(woken), TAKE_OVER_BATCHES):
            # Together, since what is waited for is the broker: thousands of batches may be at work.
            group = woken[start : start + TAKE_OVER_BATCHES]
            await self._tables.adopt(*group)
            await asyncio.gather(*map(self._publish, group))
        self._tables.drop_stale()
        for live in woken:
            if live.state.closed:
                self._start_compaction(live)
            else:
                self._ring(live)
        self._work.start(self._leftovers.sweep(self.is_over))

    async def buried(self, fact: Buried, created: BatchCreated | None, *, ends: bool = True) -> None:
        """Tell a batch that a record of its own is a dead letter.

        Args:
            fact: Which one, and why.
            created: The record itself, where it would have created the batch.
            ends: Whether a batch ends by it whose lines are not accepted yet.
        """
        live = self._get(fact.batch_id)
        before = reducer.bare(live.state, created) if created is not None else live.state
        await self._turn(live, reducer.buried(before, fact, ends=ends))

    async def command(self, command: Command, ack: Ack) -> None:
        """Fold a command."""
        match command:
            case BatchCreated():
                _begins(command.batch, Status.VALIDATING)
                live = self._get(command.batch.id)
                await self._begin(live, reducer.created(live.state, command, self._limits.grace_seconds), ack)
            case CancelRequested():
                live = self._get(command.batch_id)
                await self._turn(live, reducer.cancelled(live.state, command, self._limits.grace_seconds))
                ack()
            case DeleteRequested():
                live = self._get(command.batch_id)
                after = reducer.deleted(live.state, command)
                self._work.start(await self._forgetting.erase(after, command, ack))
                if after.is_over:
                    self._over(live)
            case _:
                assert_never(command)

    async def fact(self, fact: Fact, ack: Ack) -> None:
        """Fold a fact that is not about lines."""
        match fact:
            case Accepted():
                live = self._get(fact.batch_id)
                await self._begin(live, reducer.accepted(live.state, fact), ack)
                return
            case Rejected():
                live = self._get(fact.batch_id)
                await self._turn(live, reducer.rejected(live.state, fact))
                await self._publish_again(live)
            case Opened():
                _begins(fact.batch, Status.IN_PROGRESS)
                live = self._get(fact.batch.id)
                await self._turn(live, reducer.opened(live.state, fact, self._limits.grace_seconds))
            case Grown():
                live = self._get(fact.batch_id)
                await self._soon(live, reducer.grown(live.state, fact), ack)
                return
            case Sealed():
                live = self._get(fact.batch_id)
                await self._turn(live, reducer.sealed(live.state, fact))
            case Compacted():
                await self._compacted(fact)
            case Tick():
                await self._tick(fact.at, is_current=fact.writer == self.owner.writer)
            case Buried():
                live = self._get(fact.batch_id)
                await self._turn(live, reducer.buried(live.state, fact))
            case Stalled():
                await self._stalled(fact)
            case _:
                assert_never(fact)
        ack()

    async def _stalled(self, fact: Stalled) -> None:
        """Hear what lines of a batch wait for; one that is not at work here needs no remark."""
        if (live := self._live.get(fact.batch_id)) is None:
            return
        self._hear(live)
        if live.stalls.take(fact, self._steady()):
            await self._turn(self._touched(live), live.state)

    async def _begin(self, live: ActiveBatch, after: State, ack: Ack) -> None:
        """Bring a batch on its way: a small one may be over before anybody has to know of it."""
        if reducer.is_brief(after):
            await self._soon(live, after, ack)
        else:
            await self._turn(live, after)
            ack()

    async def _soon(self, live: ActiveBatch, after: State, ack: Ack) -> None:
        """Bring a batch to a state that is kept and told with what follows it, or in `PUBLISH_SECONDS`."""
        if after is live.state:
            ack()
            return
        live.state, live.unsaid = after, True
        live.acks.append(ack)
        if live.waiting_since is None:
            live.waiting_since = self._steady()
        await self._turn(live, live.state)

    async def lines(self, batch_id: str, marks: list[LineMark], value: bytes, ack: Ack) -> None:
        """Fold result lines; they are acknowledged once they are in a part."""
        live = self._get(batch_id)
        if any(mark.index >= reducer.lines_max(live.state) for mark in marks):
            raise DecodeError("its batch has no such line")
        if not live.state.takes_lines:
            ack()
            return
        before = live.waiting_bytes
        self._hear(live)
        if not live.take(marks, value, self._steady()):
            ack()
            return
        self._waiting_bytes += live.waiting_bytes - before
        live.acks.append(ack)
        if live.waiting_bytes >= self._limits.part_bytes:
            await self._flush(live)
        await self._bound()
        await self._turn(live, live.state)

    def abandon(self) -> None:
        """Let go of the partition: what is not acknowledged comes again to its next owner."""
        self._work.cancel()
        self._live.clear()
        self._alarms.clear()

    async def _tick(self, at: float, *, is_current: bool) -> None:
        """Do what was due at that time."""
        # The tick may be of another's clock, by which what is set anew here is due again at once.
        for batch_id in self._alarms.due(at):
            if (live := self._live.get(batch_id)) is None:
                continue
            self.begin()
            try:
                await self._due(self._touched(live), at, is_current=is_current)
            except TRANSIENT:
                raise
            except Exception as error:
                # Time is no record that could be buried; the other batches go on, and this one is tried again.
                log.exception("%s: what time has made due failed", batch_id)
                self.undo()
                self._block(live, (Reason.FILES, f"What is due cannot be done: {told(error)}."))
                self._alarms.drop(batch_id)
                self._alarms.set(batch_id, at + AGAIN_SECONDS)
        if (removal := self._forgetting.look(at)) is not None:
            self._work.start(removal)

    async def _due(self, live: ActiveBatch, at: float, *, is_current: bool) -> None:
        if live.state.closed:
            if live.unsaid:
                await self._publish(live)
            return
        since = live.waiting_since
        if since is not None and self._steady() >= since + self._limits.part_age_seconds:
            await self._flush(live)
        quiet_at = None if live.pace is None else live.pace.untold_quiet_at
        live.unsaid = live.unsaid or (quiet_at is not None and self._steady() >= quiet_at)
        after = self._waited(live)
        # Lines that were run before are not given up for the sake of time.
        if not (live.is_unread or reducer.is_complete(after, live.tally.done)):
            after = reducer.overdue(after, at, self._limits.grace_seconds)
        after = retention_risk.endangered(after, at, self._limits.kept_seconds())
        graced = live.graced(at, self._steady(), self._limits, is_current=is_current)
        gives_up = after.ending is Status.CANCELLED and live.untold >= 0  # else its counts would go back
        is_due = reducer.is_due(after, graced) and (gives_up or not live.is_unread)
        await self._turn(live, after, due=is_due)

    async def _compacted(self, fact: Compacted) -> None:
        live = self._get(fact.batch_id)
        if live.state.is_over or fact.closed_by != live.state.closed_by:
            # A former owner may have closed it over other lines: its files are not these.
            await self._publish_again(live)
            if live.state.is_over:
                self._work.start(self._leftovers.clear(fact.batch_id))
            return
        if not live.state.closed:
            raise DecodeError("its batch is not closed")
        after = reducer.compacted(live.state, fact, None)
        # Before the state says that the batch is over: from then on nothing would tell of these any more.
        offset, _ = await asyncio.gather(self._publisher.files(after, fact), self._publisher.bill(after, fact))
        live.blocked = ()
        live.state = after.model_copy(update={"files_offset": offset})
        await self._tables.keep(live)
        await self._publish(live)
        if live.state.is_over:
            self._over(live)
            self._work.start(self._leftovers.clear(fact.batch_id))


def _begins(batch: Batch, status: Status) -> None:
    if batch.status is not status or not ids.is_batch_id(batch.id):
        raise DecodeError("its batch is not in its first state")
