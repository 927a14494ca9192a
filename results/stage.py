"""The stage of one partition: the only owner of the batches whose facts come there.

The order of steps decides what a crash can do (docs/protocol.md, steps 10 to 15):

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
from collections.abc import Coroutine
from typing import Final, assert_never

from tidemill.results import fold, peril
from tidemill.results.alarms import Alarms
from tidemill.results.compaction import Compactor, write_part
from tidemill.results.finish import Finisher
from tidemill.results.fold import State
from tidemill.results.forgetting import Forgetting
from tidemill.results.leftovers import Leftovers
from tidemill.results.limits import Limits
from tidemill.results.live import Ack, Live
from tidemill.results.ports import History, Sender
from tidemill.results.publisher import Publisher
from tidemill.results.tables import Tables
from tidemill.results.tally import Tally
from tidemill.schemas.bounds import BATCH_LINES_MAX
from tidemill.schemas.codec import DecodeError, LineMark
from tidemill.schemas.messages import (
    Accepted,
    BatchCreated,
    CancelRequested,
    Command,
    Compacted,
    DeleteRequested,
    Fact,
    Grown,
    Opened,
    Rejected,
    Sealed,
    Tick,
)
from tidemill.schemas.ports import Clock, Steady, Store

log = logging.getLogger(__name__)

WAITING_BYTES_MAX: Final = 64 << 20
"""Lines of all batches of a partition that may wait for their parts."""
TAKE_OVER_BATCHES: Final = 256
"""Batches that are kept and published together when a partition is taken over."""


class Partition:
    """The batches of one partition."""

    def __init__(
        self,
        number: int,
        *,
        tables: Tables,
        sender: Sender,
        history: History,
        store: Store,
        clock: Clock,
        steady: Steady,
        limits: Limits,
        compactions: asyncio.Semaphore,
        writer: str,
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
            writer: Of no other owner of a partition, now or before; part of the keys of its parts.
        """
        self.number = number
        self._tables = tables
        self._publisher = Publisher(sender)
        self._store = store
        self._clock = clock
        self._steady = steady
        self._limits = limits
        self._finisher = Finisher(
            Compactor(store=store, clock=clock, part_bytes=limits.part_bytes, tariff_of=limits.tariff_of),
            store=store,
            history=history,
            room=compactions,
            writer=writer,
        )
        self._leftovers = Leftovers(store)
        self._forgetting = Forgetting(
            tables, self._leftovers, self._publisher, kept_seconds=limits.kept_seconds, now=clock()
        )
        self._writer = writer
        self._live: dict[str, Live] = {}
        self._waiting_bytes = 0
        """Of lines that wait for their parts; a sum over thousands of batches would cost more than their lines."""
        self._alarms = Alarms()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loaded = False

    @property
    def alarm(self) -> float | None:
        """When the next thing is due, Unix seconds."""
        due = (self._alarms.next, self._forgetting.due_at)
        return min((time for time in due if time is not None), default=None)

    @property
    def living(self) -> list[Live]:
        """The batches that are not over."""
        return list(self._live.values())

    def ring(self) -> None:
        """Set all alarms anew: the clock was stepped, or how long the log keeps its records has changed."""
        for live in self._live.values():
            self._ring(live)

    async def load(self) -> None:
        """Take up the batches that were at work; to be called within an event, before all else.

        A crash can leave the local tables ahead of their changelog. What is built on from here has to be in both,
        or losing the disk later would lose lines whose events were acknowledged; so it is written again.
        """
        if self._loaded:
            return
        self._loaded = True
        woken = [self._wake(state) for state in self._tables.open()]
        for start in range(0, len(woken), TAKE_OVER_BATCHES):
            # Together, since what is waited for is the broker: thousands of batches may be at work.
            group = woken[start : start + TAKE_OVER_BATCHES]
            for live in group:
                live.tally.touch_all()
            await self._tables.keep(*group)
            await asyncio.gather(*map(self._publish, group))
        for live in woken:
            if live.state.closed:
                self._start_compaction(live)
            else:
                self._ring(live)
        self._start(self._leftovers.sweep(self._is_over))

    async def command(self, command: Command, ack: Ack) -> None:
        """Fold a command."""
        match command:
            case BatchCreated():
                live = self._get(command.batch.id)
                await self._begin(live, fold.created(live.state, command, self._limits.grace_seconds), ack)
            case CancelRequested():
                live = self._get(command.batch_id)
                await self._turn(live, fold.cancelled(live.state, command, self._limits.grace_seconds))
                ack()
            case DeleteRequested():
                live = self._get(command.batch_id)
                self._start(await self._forgetting.erase(fold.deleted(live.state, command), command, ack))
            case _:
                assert_never(command)

    async def fact(self, fact: Fact, ack: Ack) -> None:
        """Fold a fact that is not about lines."""
        match fact:
            case Accepted():
                live = self._get(fact.batch_id)
                await self._begin(live, fold.accepted(live.state, fact), ack)
                return
            case Rejected():
                live = self._get(fact.batch_id)
                await self._turn(live, fold.rejected(live.state, fact))
                await self._publish_again(live)
            case Opened():
                live = self._get(fact.batch.id)
                await self._turn(live, fold.opened(live.state, fact, self._limits.grace_seconds))
            case Grown():
                live = self._get(fact.batch_id)
                await self._soon(live, fold.grown(live.state, fact), ack)
                return
            case Sealed():
                live = self._get(fact.batch_id)
                await self._turn(live, fold.sealed(live.state, fact))
            case Compacted():
                await self._compacted(fact)
            case Tick():
                await self._tick(fact.at)
            case _:
                assert_never(fact)
        ack()

    async def _begin(self, live: Live, after: State, ack: Ack) -> None:
        """Bring a batch on its way: a small one may be over before anybody has to know of it."""
        if fold.is_brief(after):
            await self._soon(live, after, ack)
        else:
            await self._turn(live, after)
            ack()

    async def _soon(self, live: Live, after: State, ack: Ack) -> None:
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
        if any(mark.index >= BATCH_LINES_MAX for mark in marks):
            raise DecodeError("its batch has no such line")
        if not live.state.takes_lines:
            ack()
            return
        before = live.waiting_bytes
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
        for task in self._tasks:
            task.cancel()
        self._live.clear()
        self._alarms.clear()

    def _get(self, batch_id: str) -> Live:
        if (live := self._live.get(batch_id)) is not None:
            return live
        return self._wake(self._tables.state(batch_id) or State(id=batch_id, partition=self.number))

    def _is_over(self, batch_id: str) -> bool:
        state = self._tables.state(batch_id)
        return state is not None and state.is_over

    def _wake(self, state: State) -> Live:
        chunks = () if state.is_over else self._tables.chunks(state.id, state.chunks)
        steady = self._steady()
        since = None if state.ending is None else steady
        tally = Tally.of(chunks)
        live = Live(state=state, tally=tally, taken_at=steady, published_at=steady, ending_since=since)
        if not state.is_over:
            self._live[state.id] = live
        return live

    async def _turn(self, live: Live, after: State, *, due: bool = False) -> None:
        """Bring a batch to its state after an event, and to what follows from it."""
        steady = self._steady()
        before, live.state = live.state, after
        if after.ending is not None and live.ending_since is None:
            live.ending_since = steady
        closing = due or fold.is_complete(after, live.tally.done)
        if closing or live.state is not before or steady >= live.told_at:
            live.state = fold.counted(live.state, live.tally.done - live.tally.failed, live.tally.failed)
        if closing:
            await self._flush(live, keep=False)
            live.state = fold.close(live.state, self._clock())
        if live.state is not before or (live.unsaid and steady >= live.told_at):
            await self._tables.keep(live)
            if closing and fold.is_brief(live.state):
                live.unsaid = True
            else:
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

    async def _tick(self, at: float) -> None:
        """Do what was due at that time."""
        # The tick may be of another's clock, by which what is set anew here is due again at once.
        for batch_id in self._alarms.due(at):
            live = self._live[batch_id]
            if live.state.closed:
                if live.unsaid:
                    await self._publish(live)
                continue
            since = live.waiting_since
            if since is not None and self._steady() >= since + self._limits.part_age_seconds:
                await self._flush(live)
            after = fold.overdue(live.state, at, self._limits.grace_seconds)
            after = peril.endangered(after, at, self._limits.kept_seconds())
            graced = live.graced(at, self._steady(), self._limits)
            await self._turn(live, after, due=fold.is_due(after, graced))
        if (removal := self._forgetting.look(at)) is not None:
            self._start(removal)

    async def _bound(self) -> None:
        while self._waiting_bytes > WAITING_BYTES_MAX:
            await self._flush(max(self._live.values(), key=lambda live: live.waiting_bytes))

    async def _flush(self, live: Live, *, keep: bool = True) -> None:
        """Write the waiting lines as parts; with `keep`, also the state, and acknowledge their events."""
        live.waiting_since = None
        self._waiting_bytes -= live.waiting_bytes
        for shelf, failed in ((live.output, False), (live.errors, True)):
            if shelf.lines:
                number = live.next_part
                part = await write_part(
                    self._store, live.state.id, number, shelf, failed=failed, writer=self._writer
                )
                live.state = live.state.model_copy(update={"parts": (*live.state.parts, part)})
        if keep:
            await self._tables.keep(live)
            live.release()

    async def _publish(self, live: Live) -> None:
        live.unsaid = False
        await self._publisher.batch(live.state, live.progress(self._clock(), self._steady()), live.stuck)
        live.published_at = self._steady()

    async def _publish_again(self, live: Live) -> None:
        """A fact that ended a batch came again: what it led to may not be in the changelog, nor published."""
        if live.state.is_over:
            await self._tables.keep(live)
            await self._publish(live)

    def _ring(self, live: Live) -> None:
        """Set the alarm of a batch for the next thing that is due."""
        due = live.due(self._clock() - self._steady(), self._limits)
        if (risk_at := peril.risk_at(live.state, self._limits.kept_seconds())) is not None:
            due.append(risk_at)
        if due:
            self._alarms.set(live.state.id, min(due))

    def _start_compaction(self, live: Live) -> None:
        if not live.compacting:
            live.compacting = True
            self._start(self._compact(live))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("work on a batch broke off for good", exc_info=error)

    async def _compact(self, live: Live) -> None:
        """Write the files and send the fact that they are there."""
        fact = await self._finisher.finish(live, lambda why: self._stuck(live, why))
        if fact is not None:
            await self._publisher.compacted(fact, self.number)

    def _stuck(self, live: Live, why: str) -> None:
        """Have it shown on a batch that it cannot come to its end; the next tick publishes it."""
        if why != live.stuck:
            live.stuck, live.unsaid = why, True
            self._ring(live)

    async def _compacted(self, fact: Compacted) -> None:
        live = self._get(fact.batch_id)
        if live.state.is_over:
            await self._publish_again(live)
            return
        after = fold.compacted(live.state, fact, None)
        # Before the state says that the batch is over: from then on nothing would tell of these any more.
        offset, _ = await asyncio.gather(self._publisher.files(after, fact), self._publisher.bill(after, fact))
        live.stuck = None
        live.state = after.model_copy(update={"files_offset": offset})
        await self._tables.keep(live)
        await self._publish(live)
        if live.state.is_over:
            self._over(live)
            self._start(self._leftovers.clear(fact.batch_id))

    def _over(self, live: Live) -> None:
        self._live.pop(live.state.id, None)
        self._alarms.drop(live.state.id)
