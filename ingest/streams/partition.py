"""One partition of `tidemill.intake`: its owner makes batches of the streams that come there.

The order of steps decides what a crash can do:

1. each record is decided on: whose it is, which batch gets its lines, at which places;
2. these decisions are kept in the journals of their streams, and the changelog has them;
3. it is told that the batch is there and how many lines it has; lines without fault are sent to be run, an
   error line is told of each other;
4. at some 8 MiB or some age the lines are written to the store as a part of the input;
5. the stream's state, which names the part, is kept, and the changelog has it;
6. the records are acknowledged.

Whatever breaks off, the records come again, and the journal says what was decided: the lines have the same places,
and what is told twice is known by them. A stream that is sealed has its parts put together as the batch's input
(`assembly.py`); only then is it told that the batch is whole, so there is no end without an input.
"""

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from tidemill.ingest.ports import Tables, Times
from tidemill.ingest.quota import Quotas
from tidemill.ingest.streams.assembly import InputAssembly
from tidemill.ingest.streams.factory import StreamFactory
from tidemill.ingest.streams.publisher import Publisher
from tidemill.ingest.streams.record import IntakeRecord, bounded, joined_bytes, split
from tidemill.ingest.streams.stream import JOURNAL_RECORDS_MAX, PIECES_MAX, Held, Stream
from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.dead_letters import bury
from tidemill.kafka.handling import handled
from tidemill.schemas.bounds import BATCH_LINES_MAX
from tidemill.schemas.log import intake
from tidemill.schemas.log.intake import IntakeError, Label
from tidemill.schemas.log.messages import Buried
from tidemill.schemas.ports import Clock, Sender, Steady

log = logging.getLogger(__name__)

HELD_BYTES_MAX: Final = 64 << 20
"""Lines of all streams of a process that may wait for their parts."""
STREAM_LINES_MAX: Final = BATCH_LINES_MAX
"""A stream with so many lines is sealed, and its next line begins another batch: what results can count."""

Project = Callable[[str, str, float | None], Awaitable[str]]
"""Finds whose lines a credential lets into a stream, given when the log got them, or raises `IntakeError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a record brings to its stream."""

    flow: Stream
    arrival: IntakeRecord
    first: int
    lines: list[bytes]
    ends: bool


class Partition:
    """The streams of one partition. Its calls never overlap; the caller sees to it."""

    def __init__(
        self,
        *,
        tables: Tables,
        sender: Sender,
        project: Project,
        nursery: StreamFactory,
        quotas: Quotas,
        publisher: Publisher,
        joiner: InputAssembly,
        clock: Clock,
        steady: Steady,
        times: Times,
        held: Held | None = None,
    ) -> None:
        self._tables = tables
        self._sender = sender
        self._project = project
        self._nursery = nursery
        self._quotas = quotas
        self._publisher = publisher
        self._joiner = joiner
        self._clock = clock
        self._steady = steady
        self._times = times
        self._held = held or Held()
        self._dead: list[tuple[IntakeRecord, IntakeError]] = []
        """Records that cannot be taken, and why."""
        self._flows: dict[tuple[str, str], Stream] = {}
        """The streams that take lines or refuse them, by project and name."""
        self._sealed: dict[str, Stream] = {}
        self._journal: dict[int, tuple[Stream, int, int]] = {}
        """Records that were decided on before and come again: their stream, the first line's place, how many."""
        self._born: Stream | None = None
        """The stream that the record at hand has begun."""
        self._decided = self._seen = -1
        """Up to where the table says that records are decided on, and up to where they have come here."""
        self._loaded = False

    @property
    def alarm(self) -> float | None:
        """When the next thing is due, by the clock that nobody steps."""
        return min((self._due(flow) for flow in self._flows.values()), default=None)

    async def load(self) -> None:
        """Take up the streams that were under way; to be called within an event, before all else.

        A decision counts once it is said that all up to it is decided, which is kept after the journals: nothing
        was told of it before.
        """
        if self._loaded:
            return
        self._loaded = True
        await self._tables.take_over()
        self._decided = self._tables.decided()
        for kept in list(self._tables.states()):
            state = kept.until(self._decided)
            if not (state.pieces or state.journal or state.joined):
                self._tables.drop(state.id)
                continue
            flow = await self._nursery.woken(state)
            # A crash can leave the local table ahead of its changelog; see results/partition.py.
            self._tables.put(state)
            if state.sealed and not state.joined:
                self._join(flow)
            if not state.sealed or state.muted:
                self._flows[state.name] = flow
            self._journal |= {offset: (flow, first, count) for offset, first, count, _ in state.journal}
        self._tables.put_decided(self._decided)
        await self._tables.delivered()
        self._tables.drop_stale()

    async def take(self, arrivals: Iterable[IntakeRecord]) -> None:
        """Take records in their order."""
        await self.load()
        works: list[Work] = []
        for arrival in arrivals:
            if (work := await self._decided_on(arrival)) is None:
                continue
            works.append(work)
            if work.ends:
                await self._commit(works)
                await self._seal(work.flow)
                works = []
        await self._commit(works)

    async def tick(self, cancelled: Callable[[str], bool]) -> None:
        """Do what is due.

        Args:
            cancelled: Whether somebody asked to cancel a batch.
        """
        await self.load()
        await self._finish(self._joiner.joined())
        now, steady = self._clock(), self._steady()
        for flow in list(self._flows.values()):
            if flow.awaited:
                continue
            is_idle = steady >= flow.heard_at + self._times.idle_seconds
            if flow.state.muted:
                if is_idle:
                    await self._unmute(flow)
            elif cancelled(flow.state.id):
                await self._seal(flow, muted=True)
            elif is_idle or now >= flow.state.batch.expires_at:
                await self._seal(flow)
            elif flow.waiting_since is not None and steady >= flow.waiting_since + self._times.age_seconds:
                await self._flush(flow)

    async def leave(self) -> None:
        """Keep all that was taken, so that nothing comes again to the partition's next owner."""
        for flow in self._flows.values():
            if flow.waiting_since is not None and not flow.awaited:
                await self._flush(flow)

    def abandon(self) -> None:
        """Let go: what is not acknowledged comes again to the next owner."""
        self._joiner.abandon()
        self._held.forget(self)
        for flow in [*self._flows.values(), *self._sealed.values()]:
            self._nursery.forget(flow)

    def _due(self, flow: Stream) -> float:
        times = [flow.heard_at + self._times.idle_seconds]
        if not flow.state.muted:
            times.append(self._steady() + flow.state.batch.expires_at - self._clock())
        if flow.waiting_since is not None:
            times.append(flow.waiting_since + self._times.age_seconds)
        # While a journal waits for its records there is nothing to decide; they are on their way.
        return max(min(times), self._steady() + 1) if flow.awaited else min(times)

    async def _decided_on(self, arrival: IntakeRecord) -> Work | None:
        """See `_decide`; a record that cannot be decided on is a dead letter, and its stream goes on."""
        found: list[Work | None] = []

        async def decide() -> None:
            self._born = None
            found.append(await self._decide(arrival))

        buried = await handled(self._sender, arrival.shown, decide, stage="ingest", undo=self._unborn)
        self._seen = max(self._seen, arrival.offset)
        if buried is not None:
            arrival.ack()
            return None
        return found[-1]

    def _unborn(self) -> None:
        """Take back the stream that a record began which could not be decided on."""
        if (flow := self._born) is not None and not flow.state.journal:
            self._flows.pop(flow.state.name, None)
            self._nursery.forget(flow)

    async def _decide(self, arrival: IntakeRecord) -> Work | None:
        """What a record brings; None where that is nothing, and then it is acknowledged."""
        if (known := self._journal.get(arrival.offset)) is not None:
            flow, first, count = known
            ends = intake.label(arrival.key, intake.named(arrival.headers)).ends
            work = self._work(arrival, flow, first, split(arrival.value or b"")[:count], ends=ends)
            flow.awaited.discard(arrival.offset)
            del self._journal[arrival.offset]
            return work
        # A consumer may bring a record twice, also before the table says that it is decided on.
        if arrival.offset > max(self._decided, self._seen):
            try:
                lines = bounded(arrival.value or b"")
                found = await self._admitted(arrival, lines)
            except IntakeError as error:
                self._dead.append((arrival, error))
                return None
            else:
                if found is not None:
                    flow, label = found
                    flow.heard_at = self._steady()
                    is_room = self._is_room(arrival, flow, lines)
                    taken = lines if is_room else []
                    first = flow.note(arrival.offset, len(taken), label.seq if is_room else None)
                    return self._work(arrival, flow, first, taken, ends=label.ends)
        arrival.ack()
        return None

    async def _bury(self) -> None:
        """Bury what cannot be taken, many at one time: whoever may write to the topic may send any number."""
        dead, self._dead = self._dead, []
        await asyncio.gather(*(self._buried(arrival, error) for arrival, error in dead))

    async def _buried(self, arrival: IntakeRecord, error: IntakeError) -> None:
        await bury(self._sender, arrival.shown, stage="ingest", reason=error)
        arrival.ack()

    def _is_room(self, arrival: IntakeRecord, flow: Stream, lines: list[bytes]) -> bool:
        """Whether the project may store the lines; else the record is a dead letter, but it may end its stream."""
        try:
            self._quotas.stores(flow.state.project, joined_bytes(lines))
        except IntakeError as error:
            # It is acknowledged with its place in the stream's journal, and not before.
            self._dead.append((dataclasses.replace(arrival, ack=lambda: None), error))
            return False
        return True

    def _work(self, arrival: IntakeRecord, flow: Stream, first: int, lines: list[bytes], *, ends: bool) -> Work:
        state, end = flow.state, first + len(lines)
        flow.size += joined_bytes(lines)
        self._quotas.grown(state.id, state.project, end, state.batch.input_file_id, flow.size)
        return Work(
            flow=flow,
            arrival=arrival,
            first=first,
            lines=lines,
            ends=ends or end >= STREAM_LINES_MAX or len(state.pieces) >= PIECES_MAX,
        )

    async def _admitted(self, arrival: IntakeRecord, lines: list[bytes]) -> tuple[Stream, Label] | None:
        """The stream that a new record belongs to; None where it has nothing for any.

        Raises:
            IntakeError: It may not be taken.
        """
        headers = intake.named(arrival.headers)
        if intake.TICK in headers and arrival.value is None:
            return None
        label = intake.label(arrival.key, headers)
        project = await self._project(intake.secret(headers), label.name, arrival.logged_at)
        flow = self._flows.get((project, label.name))
        if flow is not None and flow.state.muted:
            flow.heard_at = self._steady()
            if label.ends:
                await self._unmute(flow)
            if lines:
                raise IntakeError("its batch was cancelled, and the stream was not ended since")
            return None
        if flow is None:
            if not lines:
                return None
            wish = intake.wish(headers, self._nursery.windows)
            self._quotas.opens(project)
            self._quotas.stores(project, joined_bytes(lines))
            place = arrival.partition, arrival.offset
            flow = self._nursery.born((project, label.name), place, wish, lines)
            self._flows[flow.state.name] = self._born = flow
        elif label.seq is not None and label.seq <= flow.seq:
            return None
        return flow, label

    async def _commit(self, works: list[Work]) -> None:
        """Keep what was decided, then let it be known."""
        # Nothing says of a record that it is decided on before its letter is written.
        await self._bury()
        if not works:
            return
        touched: dict[str, list[Work]] = {}
        for work in works:
            touched.setdefault(work.flow.state.id, []).append(work)
        if works[-1].arrival.offset > self._decided:
            self._decided = works[-1].arrival.offset
            for mine in touched.values():
                self._tables.put(mine[0].flow.state)
            self._tables.put_decided(self._decided)
            await self._tables.delivered()
        for mine in touched.values():
            flow = mine[0].flow
            await self._publish(flow, mine)
            for work in mine:
                flow.put(work.lines, work.arrival.ack, self._steady())
            if flow.shelf_bytes >= self._times.part_bytes or len(flow.state.journal) >= JOURNAL_RECORDS_MAX:
                await self._flush(flow)
        while self._held.now(self, sum(flow.shelf_bytes for flow in self._flows.values())) > HELD_BYTES_MAX:
            largest = max(self._flows.values(), key=lambda flow: flow.shelf_bytes, default=None)
            if largest is None or not largest.shelf_bytes:
                break
            await self._flush(largest)

    async def _publish(self, flow: Stream, works: list[Work]) -> None:
        """Let lines be known; where that fails, record by record, so that only those are dead letters that do."""
        try:
            await self._publisher.publish(flow, [(work.first, work.lines) for work in works])
        except TRANSIENT:
            raise
        except Exception:
            log.exception("lines of %s could not be published together", flow.state.id)
        else:
            return
        for work in works:
            publish = functools.partial(self._publisher.publish, flow, [(work.first, work.lines)])
            if (burial := await handled(self._sender, work.arrival.shown, publish, stage="ingest")) is not None:
                at = int(self._clock())
                fact = Buried(batch_id=flow.state.id, source=burial.source, reason=burial.reason, at=at)
                await self._publisher.buried(fact)

    async def _flush(self, flow: Stream, **changes: bool) -> None:
        """Write the waiting lines as a part, keep the stream, and acknowledge their records."""
        replaced = await self._joiner.flush(flow, self._times.part_bytes) if flow.shelf else None
        acks = flow.settle()
        flow.state = flow.state.model_copy(update=changes)
        self._tables.put(flow.state)
        await self._tables.delivered()
        for ack in acks:
            ack()
        if replaced is not None:
            await self._joiner.remove(replaced)

    async def _seal(self, flow: Stream, *, muted: bool = False) -> None:
        await self._flush(flow, sealed=True, muted=muted)
        self._nursery.forget(flow)
        if not muted:
            del self._flows[flow.state.name]
        self._join(flow)

    def _join(self, flow: Stream) -> None:
        self._sealed[flow.state.id] = flow
        self._joiner.start(flow)

    async def _finish(self, joined: list[str]) -> None:
        """The inputs of these batches are whole, and that is told."""
        for batch_id in joined:
            flow = self._sealed.pop(batch_id)
            if flow.state.muted:
                flow.state = flow.state.model_copy(update={"joined": True, "pieces": ()})
                self._tables.put(flow.state)
            else:
                self._tables.drop(batch_id)
            self._tables.put_decided(self._decided)
            await self._tables.delivered()
            await self._joiner.clear(batch_id)

    async def _unmute(self, flow: Stream) -> None:
        """The producer of a cancelled stream has ended it, or is gone: the name is free."""
        del self._flows[flow.state.name]
        flow.state = flow.state.model_copy(update={"muted": False})
        if flow.state.joined:
            self._tables.drop(flow.state.id)
            self._tables.put_decided(self._decided)
        else:
            self._tables.put(flow.state)
        await self._tables.delivered()
