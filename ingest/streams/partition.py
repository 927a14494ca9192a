"""One partition of `tidemill.intake`: its owner turns the streams in it into batches.

The order of the steps decides what a crash can cause:

1. the owner decides on each record: its project, its batch, and the places of its lines; it checks these lines;
2. it keeps these decisions and verdicts in the journals of their streams, and the changelog has them;
3. it publishes the batch and its number of lines; valid lines become requests, invalid lines error results;
4. after some 8 MiB or some seconds it writes the lines to the store as a part of the input;
5. it keeps the stream's state, which names the part, and the changelog has it;
6. it acknowledges the records.

After a crash Kafka redelivers the records, and the journal has the decisions and verdicts on them: the lines have
the same places, so readers recognise copies, and none is both a request and an error result. The parts of a sealed
stream are joined to the batch's input (`assembly.py`); only then is the batch published as complete, so no batch
ends without an input.
"""

import functools
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from tidemill.ingest.streams.assembly import InputAssembly
from tidemill.ingest.streams.decisions import Decision, Decisions, without_credential
from tidemill.ingest.streams.factory import StreamFactory
from tidemill.ingest.streams.held_streams import HeldStreams
from tidemill.ingest.streams.publisher import Checked, LineRun, Publisher
from tidemill.ingest.streams.stream import Published, Resources, Stream
from tidemill.ingest.streams.tables import Streams
from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.partitions.dead_letters import handle_record
from tidemill.kafka.partitions.held_records import Unavailable
from tidemill.kafka.partitions.owner import Record
from tidemill.schemas.log.messages import DeadLettered

log = logging.getLogger(__name__)

FORGET_SECONDS: Final = 1.0
"""Pause between two looks for batches of streams that are over."""
BUFFER_BYTES_MAX: Final = 64 << 20
"""Lines of all streams of a process that may wait for their parts."""


@dataclass(slots=True)
class _Delivery:
    """The decisions on some records of one stream, and how far their lines are checked and published.

    Either none of the lines has come with a verdict, or all have.
    """

    stream: Stream
    decisions: list[Decision]
    checked: Checked = field(default_factory=Checked)
    is_kept: bool = False
    """Whether the changelog has the verdict on the lines."""
    is_begun: bool = False
    """Whether their check has begun; it ends by the same rules."""
    is_published: bool = False
    parts: "list[_Delivery]" = field(default_factory=list)
    """Its records one by one, if they cannot be published together."""

    def split(self) -> None:
        """Go on record by record."""
        for decision in self.decisions:
            places = range(decision.first, decision.first + len(decision.lines))
            part = _Delivery(self.stream, [decision], self.checked.part(places), self.is_kept, is_begun=True)
            self.parts.append(part)


class Partition:
    """The streams of one partition. The caller ensures that its calls never overlap."""

    def __init__(
        self,
        *,
        tables: Streams,
        factory: StreamFactory,
        publisher: Publisher,
        assembly: InputAssembly,
        resources: Resources,
    ) -> None:
        self._tables = tables
        self._factory = factory
        self._publisher = publisher
        self._assembly = assembly
        self._resources = resources
        self._clock = resources.clock
        self._monotonic = resources.monotonic
        self._times = resources.times
        self._decisions = Decisions(resources, factory, stop_discarding=self._stop_discarding)
        self._held = HeldStreams(publisher, resources)
        self._sealed: dict[str, Stream] = {}

    @property
    def due_at(self) -> float | None:
        """When the next work is due, by the monotonic clock; None if there is none."""
        times = [self._due(stream) for stream in self._decisions.streams.values() if stream not in self._held]
        if any(stream not in self._held and not stream.awaited for stream in self._decisions.ended.values()):
            times.append(self._monotonic())
        if any(stream.state.joined for stream in self._decisions.known.values()):
            times.append(self._monotonic() + FORGET_SECONDS)
        if (due_in := self._held.due_in) is not None:
            times.append(self._monotonic() + due_in)
        return min(times, default=None)

    async def load(self) -> None:
        """Take over the previous owner's streams; called once, before all else.

        A decision counts once the table has the offset up to which every record is decided on. An owner writes it
        after the journals and before it publishes anything.
        """
        decided, states = await self._tables.take_over()
        self._decisions.kept = decided
        for kept in states:
            state = kept.until(decided)
            if not (state.parts or state.journal or state.joined or state.settled):
                self._tables.drop(state.id)
                continue
            stream = await self._factory.restore(state)
            # A crash can leave the local table ahead of its changelog; see results/partition.py.
            self._tables.put(state)
            if state.sealed and not state.joined:
                self._join(stream)
            self._decisions.restore(stream)
        self._tables.put_decided(decided)
        await self._tables.delivered()
        self._tables.drop_stale()

    async def take(self, records: Iterable[Record]) -> None:
        """Handle records in their order."""
        await self._held.wait_for_room()
        decided = [
            decision for record in records if (decision := await self._decisions.decide(record)) is not None
        ]
        # A record counts as decided on only after its dead letter is written, and its batch shows it.
        await self._decisions.send_dead_letters(self._show_dead_letter)
        if decided:
            await self._commit(decided)
        await self._held.publish()

    async def tick(self, cancelled: Callable[[str], bool]) -> None:
        """Do the work that is due.

        Args:
            cancelled: Whether a user asked to cancel a batch.
        """
        await self._finish(self._assembly.joined())
        await self._held.again()
        await self._forget_known()
        now, monotonic = self._clock(), self._monotonic()
        for stream in list(self._decisions.streams.values()):
            if stream.awaited or stream in self._held:
                continue
            is_idle = monotonic >= stream.last_record_at + self._times.idle_seconds
            if stream.state.discarding:
                if is_idle:
                    await self._stop_discarding(stream)
            elif cancelled(stream.state.id) or is_idle or now >= stream.state.batch.expires_at:
                self._decisions.end(stream, discarding=cancelled(stream.state.id))
                self._tables.put(stream.state)
            elif stream.waiting_since is not None and monotonic >= stream.waiting_since + self._times.age_seconds:
                await self._held.do(stream, functools.partial(self._flush, stream))
        for stream in list(self._decisions.ended.values()):
            if not stream.awaited and stream not in self._held:
                await self._held.do(stream, functools.partial(self._seal, stream))
        await self._held.publish()

    async def leave(self) -> None:
        """Write the waiting lines, so that the next owner does not get their records again."""
        for stream in self._decisions.streams.values():
            if stream.waiting_since is not None and not stream.awaited and stream not in self._held:
                await self._held.do(stream, functools.partial(self._flush, stream))

    def abandon(self) -> None:
        """Stop; the next owner gets unacknowledged records again."""
        self._assembly.abandon()
        self._resources.buffered.forget(self)
        for stream in {id(stream): stream for stream in self._all}.values():
            self._factory.forget(stream)

    @property
    def _all(self) -> Iterator[Stream]:
        yield from self._decisions.streams.values()
        yield from self._decisions.ended.values()
        yield from self._sealed.values()

    def _due(self, stream: Stream) -> float:
        times = [stream.last_record_at + self._times.idle_seconds]
        if not stream.state.discarding:
            times.append(self._monotonic() + stream.state.batch.expires_at - self._clock())
        if stream.waiting_since is not None:
            times.append(stream.waiting_since + self._times.age_seconds)
        # A stream that awaits records of its journal can do nothing before Kafka redelivers them.
        return max(min(times), self._monotonic() + 1) if stream.awaited else min(times)

    async def _commit(self, decided: list[Decision]) -> None:
        """Keep decisions and verdicts, then publish the lines."""
        touched: dict[tuple[str, bool], list[Decision]] = {}
        for decision in decided:
            touched.setdefault((decision.stream.state.id, decision.is_judged), []).append(decision)
        deliveries = [
            _Delivery(mine[0].stream, mine, is_kept=is_judged) for (_, is_judged), mine in touched.items()
        ]
        await self._check_early(deliveries)
        if decided[-1].record.offset > self._decisions.kept:
            self._decisions.kept = decided[-1].record.offset
            for delivery in deliveries:
                self._tables.put(delivery.stream.state)
            self._tables.put_decided(self._decisions.kept)
            await self._tables.delivered()
            for delivery in deliveries:
                delivery.is_kept = delivery.is_kept or delivery.checked.total is not None
        for delivery in deliveries:
            size = sum(len(line) for decision in delivery.decisions for line in decision.lines)
            await self._held.do(delivery.stream, functools.partial(self._deliver, delivery), size)
        await self._bound()

    async def _check_early(self, deliveries: list[_Delivery]) -> None:
        """Check lines as far as possible now: one write to the changelog then keeps decisions and verdicts."""
        for delivery in deliveries:
            if delivery.stream not in self._held:
                with suppress(Unavailable):
                    await self._together(delivery, self._check)

    async def _bound(self) -> None:
        """Write the largest buffers, while the process has more than `BUFFER_BYTES_MAX`."""
        buffered = self._resources.buffered
        while buffered.now(self, sum(stream.buffer_bytes for stream in self._all)) > BUFFER_BYTES_MAX:
            free = (stream for stream in self._decisions.streams.values() if stream not in self._held)
            largest = max(free, key=lambda stream: stream.buffer_bytes, default=None)
            if largest is None or not largest.buffer_bytes:
                break
            await self._held.do(largest, functools.partial(self._flush, largest))

    async def _deliver(self, delivery: _Delivery) -> None:
        """Publish lines and buffer them for a part; a later call resumes work that was held."""
        stream = delivery.stream
        if delivery.decisions[-1].ends:
            await self._publish_end(stream)
        if not delivery.is_published:
            await self._publish(delivery)
            delivery.is_published = True
            for decision in delivery.decisions:
                stream.put(decision.lines, decision.record.offset, decision.record.ack, self._monotonic())
        if delivery.decisions[-1].ends:
            await self._seal(stream)
        elif stream.buffer_bytes >= self._times.part_bytes or stream.is_full:
            await self._flush(stream)

    async def _publish(self, delivery: _Delivery) -> None:
        """Publish lines; if that fails, record by record, so that only records that fail become dead letters."""
        stream = delivery.stream
        await self._together(delivery, self._check_and_publish)
        for part in delivery.parts:
            if part.is_published:
                continue
            alone = functools.partial(self._check_and_publish, part)
            record = without_credential(part.decisions[0].record)
            if (letter := await handle_record(self._resources.sender, record, alone, stage="ingest")) is not None:
                await self._show_dead_letter(stream.state.id, letter.source, letter.reason)
            part.is_published = True

    async def _together(self, delivery: _Delivery, work: Callable[[_Delivery], Awaitable[object]]) -> None:
        """Do work on all lines of a delivery, unless it is split; if the work fails, split it."""
        if delivery.parts:
            return
        try:
            await work(delivery)
        except TRANSIENT:
            raise
        except Exception:
            log.exception("lines of %s could not be published together", delivery.stream.state.id)
            delivery.split()

    async def _show_dead_letter(self, batch_id: str, source: str, reason: str) -> None:
        at = int(self._clock())
        await self._publisher.send_fact(DeadLettered(batch_id=batch_id, source=source, reason=reason, at=at))

    async def _check(self, delivery: _Delivery) -> bool:
        """See `Publisher.check`."""
        if not delivery.is_begun:
            self._factory.renew(delivery.stream)
            delivery.is_begun = True
        runs = [self._run(decision) for decision in delivery.decisions]
        return await self._publisher.check(delivery.stream, runs, delivery.checked)

    async def _check_and_publish(self, delivery: _Delivery) -> None:
        if not await self._check(delivery):
            return
        if not delivery.is_kept:
            self._tables.put(delivery.stream.state)
            await self._tables.delivered()
            delivery.is_kept = True
        await self._publisher.publish(delivery.stream, delivery.checked)

    def _run(self, decision: Decision) -> LineRun:
        record, since = decision.record, int(self._clock())
        if decision.is_known:
            began = decision.stream.state.batch.created_at
            # A producer's clock may be ahead.
            since = min(since, max(int(record.timestamp), began) if record.is_logged_at else began)
        return LineRun(decision.first, decision.lines, decision.fault, since, decision.is_judged)

    async def _flush(self, stream: Stream, *, sealed: bool = False) -> None:
        """Write the waiting lines as a part, keep the stream, and acknowledge their records.

        Raises:
            Unavailable: The store refuses the part.
        """
        replaced = await self._assembly.flush(stream, self._times.part_bytes) if stream.buffer else None
        acks = stream.settle()
        stream.state = stream.state.model_copy(update={"sealed": sealed})
        self._tables.put(stream.state)
        await self._tables.delivered()
        for ack in acks:
            ack()
        if replaced is not None:
            await self._assembly.remove(replaced)

    async def _publish_end(self, stream: Stream) -> None:
        """Publish at once that a stream accepts no more lines.

        The api then refuses appends, and a stream of this name may begin in another partition.
        """
        if Published.END not in stream.published:
            # Publish only decisions that the changelog has.
            await self._tables.delivered()
            await self._publisher.ended(stream)
            stream.published.add(Published.END)

    async def _seal(self, stream: Stream) -> None:
        await self._publish_end(stream)
        await self._flush(stream, sealed=True)
        self._factory.forget(stream)
        self._decisions.ended.pop(stream.state.id, None)
        self._join(stream)

    def _join(self, stream: Stream) -> None:
        self._sealed[stream.state.id] = stream
        self._assembly.start(stream)

    async def _finish(self, joined: list[str]) -> None:
        """Drop the streams whose inputs are complete and published."""
        for batch_id in joined:
            stream = self._sealed.pop(batch_id)
            stream.state = stream.state.model_copy(update={"joined": True, "parts": ()})
            self._keep_or_drop(stream)
            self._tables.put_decided(self._decisions.kept)
            await self._tables.delivered()
            await self._assembly.clear(batch_id)

    async def _stop_discarding(self, stream: Stream) -> None:
        """Free the name of a cancelled stream that its producer has ended or left."""
        del self._decisions.streams[stream.state.name]
        stream.state = stream.state.model_copy(update={"discarding": False})
        self._keep_or_drop(stream)
        self._tables.put_decided(self._decisions.kept)
        await self._tables.delivered()

    def _keep_or_drop(self, stream: Stream) -> None:
        """Write the row of a stream, or delete it if the stream is over.

        A stream of the api is over only once `tidemill.batches` has its batch; before, a repeated create could
        open it again.
        """
        state = stream.state
        if state.discarding or not state.joined or (state.is_of_api and not self._is_known(state.id)):
            self._tables.put(state)
            return
        self._decisions.known.pop(state.id, None)
        self._tables.drop(state.id)

    def _is_known(self, batch_id: str) -> bool:
        return self._resources.quotas.knows(batch_id) or self._publisher.is_erased(batch_id)

    async def _forget_known(self) -> None:
        """Delete the rows of streams of the api that are over."""
        joined = [stream for stream in self._decisions.known.values() if stream.state.joined]
        over = [stream for stream in joined if not stream.state.discarding and self._is_known(stream.state.id)]
        for stream in over:
            self._keep_or_drop(stream)
        if over:
            self._tables.put_decided(self._decisions.kept)
            await self._tables.delivered()
