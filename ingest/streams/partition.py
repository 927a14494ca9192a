"""One partition of `tidemill.intake`: its owner makes batches of the streams that come there.

The order of steps decides what a crash can do:

1. each record is decided on: whose it is, which batch gets its lines, at which places;
2. these decisions are kept in the journals of their streams, and the changelog has them;
3. the batch and its number of lines are published; lines without fault become requests, and each other line
   becomes a result with its error;
4. at some 8 MiB or some age the lines are written to the store as a part of the input;
5. the stream's state, which names the part, is kept, and the changelog has it;
6. the records are acknowledged.

After a crash the records come again, and the journal says what was decided: the lines have the same places, so
readers recognise copies. The parts of a sealed stream are joined to the batch's input (`assembly.py`); only then
is the batch published as complete, so no batch ends without an input.
"""

import functools
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from tidemill.ingest.quota import Quotas
from tidemill.ingest.streams.assembly import InputAssembly
from tidemill.ingest.streams.decisions import Decision, Decisions, Project
from tidemill.ingest.streams.factory import StreamFactory
from tidemill.ingest.streams.publisher import Checked, Publisher
from tidemill.ingest.streams.record import shown
from tidemill.ingest.streams.stream import JOURNAL_RECORDS_MAX, BufferedBytes, Stream, Times
from tidemill.ingest.streams.tables import Streams
from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.partitions.dead_letters import handle_record
from tidemill.kafka.partitions.held_records import HeldRecords, Unavailable
from tidemill.kafka.partitions.owner import Record
from tidemill.schemas.log.messages import Buried, Stalled
from tidemill.schemas.ports import Clock, Monotonic, Sender
from tidemill.schemas.resources.waiting import MESSAGE_CHARS_MAX, Waiting

log = logging.getLogger(__name__)

BUFFER_BYTES_MAX: Final = 64 << 20
"""Lines of all streams of a process that may wait for their parts."""
STALLED_SECONDS: Final = 60
"""How long a batch shows why its lines wait, unless that is sent again: longer than the longest pause."""


@dataclass(slots=True)
class _Delivery:
    """Records of one stream that were decided on together, and how far they have come."""

    stream: Stream
    decisions: list[Decision]
    checked: Checked | None = None
    is_published: bool = False


class Partition:
    """The streams of one partition. Its calls never overlap; the caller sees to it."""

    def __init__(
        self,
        *,
        tables: Streams,
        sender: Sender,
        project: Project,
        factory: StreamFactory,
        quotas: Quotas,
        publisher: Publisher,
        assembly: InputAssembly,
        clock: Clock,
        monotonic: Monotonic,
        times: Times,
        buffered: BufferedBytes | None = None,
    ) -> None:
        self._tables = tables
        self._sender = sender
        self._factory = factory
        self._publisher = publisher
        self._assembly = assembly
        self._clock = clock
        self._monotonic = monotonic
        self._times = times
        self._buffered = buffered or BufferedBytes()
        self._decisions = Decisions(
            sender=sender,
            project=project,
            factory=factory,
            quotas=quotas,
            monotonic=monotonic,
            stop_discarding=self._stop_discarding,
        )
        self._held = HeldRecords(self._note, monotonic)
        self._blocked: dict[str, tuple[Stream, int]] = {}
        """Streams whose work is held, and since when, Unix seconds."""
        self._notes: list[tuple[str, Unavailable | None]] = []
        """What held work waits for, as far as it is not published."""
        self._source = f"intake-{secrets.token_hex(8)}"
        self._sent = 0
        self._sealed: dict[str, Stream] = {}

    @property
    def due_at(self) -> float | None:
        """When the next thing is due, by the monotonic clock; None without any."""
        times = [self._due(stream) for stream in self._decisions.streams.values() if self._is_free(stream)]
        if any(self._is_free(stream) and not stream.awaited for stream in self._decisions.ended.values()):
            times.append(self._monotonic())
        if (due_in := self._held.due_in) is not None:
            times.append(self._monotonic() + due_in)
        return min(times, default=None)

    async def load(self) -> None:
        """Take over the streams that were under way; called once, before all else.

        A decision counts once the table says that all records up to it are decided on. That is written after the
        journals, and nothing is published before.
        """
        await self._tables.take_over()
        decided = self._decisions.kept = self._tables.decided()
        for kept in list(self._tables.states()):
            state = kept.until(decided)
            if not (state.pieces or state.journal or state.joined):
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
        """Take records in their order."""
        await self._held.wait_while(self._is_full)
        decided = [
            decision for record in records if (decision := await self._decisions.decide(record)) is not None
        ]
        # A record counts as decided on only after its dead letter is written.
        await self._decisions.bury()
        if decided:
            await self._commit(decided)
        await self._publish_notes()

    async def tick(self, cancelled: Callable[[str], bool]) -> None:
        """Do what is due.

        Args:
            cancelled: Whether a user asked to cancel a batch.
        """
        await self._finish(self._assembly.joined())
        await self._held.retry_due()
        now, monotonic = self._clock(), self._monotonic()
        for stream in list(self._decisions.streams.values()):
            if stream.awaited or not self._is_free(stream):
                continue
            is_idle = monotonic >= stream.last_record_at + self._times.idle_seconds
            if stream.state.discarding:
                if is_idle:
                    await self._stop_discarding(stream)
            elif cancelled(stream.state.id) or is_idle or now >= stream.state.batch.expires_at:
                self._decisions.end(stream, discarding=cancelled(stream.state.id))
                self._tables.put(stream.state)
            elif stream.waiting_since is not None and monotonic >= stream.waiting_since + self._times.age_seconds:
                await self._do(stream, functools.partial(self._flush, stream))
        for stream in list(self._decisions.ended.values()):
            if not stream.awaited and self._is_free(stream):
                await self._do(stream, functools.partial(self._seal, stream))
        await self._publish_notes()

    async def leave(self) -> None:
        """Write the lines that wait, so that they do not come again to the next owner."""
        for stream in self._decisions.streams.values():
            if stream.waiting_since is not None and not stream.awaited and self._is_free(stream):
                await self._do(stream, functools.partial(self._flush, stream))

    def abandon(self) -> None:
        """Stop: whatever is not acknowledged comes again to the next owner."""
        self._assembly.abandon()
        self._buffered.forget(self)
        for stream in {id(stream): stream for stream in self._all}.values():
            self._factory.forget(stream)

    @property
    def _all(self) -> Iterator[Stream]:
        yield from self._decisions.streams.values()
        yield from self._decisions.ended.values()
        yield from self._sealed.values()

    def _is_free(self, stream: Stream) -> bool:
        """Whether nothing of a stream is held."""
        return stream.state.id not in self._held

    def _is_full(self) -> bool:
        """Whether the journal of a stream whose work is held can take no further records."""
        blocked = (stream for stream, _ in self._blocked.values() if not self._is_free(stream))
        return any(len(stream.state.journal) >= JOURNAL_RECORDS_MAX for stream in blocked)

    def _due(self, stream: Stream) -> float:
        times = [stream.last_record_at + self._times.idle_seconds]
        if not stream.state.discarding:
            times.append(self._monotonic() + stream.state.batch.expires_at - self._clock())
        if stream.waiting_since is not None:
            times.append(stream.waiting_since + self._times.age_seconds)
        # While a journal waits for its records there is nothing to decide; they are on their way.
        return max(min(times), self._monotonic() + 1) if stream.awaited else min(times)

    async def _commit(self, decided: list[Decision]) -> None:
        """Keep decisions, then publish the lines."""
        touched: dict[str, list[Decision]] = {}
        for decision in decided:
            touched.setdefault(decision.stream.state.id, []).append(decision)
        if decided[-1].record.offset > self._decisions.kept:
            self._decisions.kept = decided[-1].record.offset
            for mine in touched.values():
                self._tables.put(mine[0].stream.state)
            self._tables.put_decided(self._decisions.kept)
            await self._tables.delivered()
        for mine in touched.values():
            delivery = _Delivery(mine[0].stream, mine)
            size = sum(len(line) for decision in mine for line in decision.lines)
            await self._do(delivery.stream, functools.partial(self._deliver, delivery), size)
        await self._bound()

    async def _do(self, stream: Stream, work: Callable[[], Awaitable[None]], size: int = 0) -> None:
        """Do work on a stream, or hold it."""
        await self._held.run_or_hold(stream.state.id, work, size)
        if not self._is_free(stream):
            self._blocked.setdefault(stream.state.id, (stream, int(self._clock())))

    async def _bound(self) -> None:
        """Write the largest buffers, as long as the process has more than `BUFFER_BYTES_MAX`."""
        while self._buffered.now(self, sum(stream.buffer_bytes for stream in self._all)) > BUFFER_BYTES_MAX:
            free = filter(self._is_free, self._decisions.streams.values())
            largest = max(free, key=lambda stream: stream.buffer_bytes, default=None)
            if largest is None or not largest.buffer_bytes:
                break
            await self._do(largest, functools.partial(self._flush, largest))

    async def _deliver(self, delivery: _Delivery) -> None:
        """Publish lines and buffer them for a part; called again, it goes on where it was held."""
        stream = delivery.stream
        if not delivery.is_published:
            await self._publish(delivery)
            delivery.is_published = True
            for decision in delivery.decisions:
                stream.put(decision.lines, decision.record.offset, decision.record.ack, self._monotonic())
        if delivery.decisions[-1].ends:
            await self._seal(stream)
        elif stream.buffer_bytes >= self._times.part_bytes or len(stream.state.journal) >= JOURNAL_RECORDS_MAX:
            await self._flush(stream)

    async def _publish(self, delivery: _Delivery) -> None:
        """Publish lines; if that fails, record by record, so that only records that fail become dead letters."""
        stream, decisions = delivery.stream, delivery.decisions
        try:
            if delivery.checked is None:
                stretches = [(decision.first, decision.lines) for decision in decisions]
                delivery.checked = await self._publisher.check(stream, stretches)
            if delivery.checked is not None:
                await self._publisher.publish(stream, delivery.checked)
        except TRANSIENT:
            raise
        except Exception:
            log.exception("lines of %s could not be published together", stream.state.id)
        else:
            return
        for decision in decisions:
            alone = functools.partial(self._publish_alone, decision)
            if (
                letter := await handle_record(self._sender, shown(decision.record), alone, stage="ingest")
            ) is not None:
                at = int(self._clock())
                fact = Buried(batch_id=stream.state.id, source=letter.source, reason=letter.reason, at=at)
                await self._publisher.buried(fact)

    async def _publish_alone(self, decision: Decision) -> None:
        checked = await self._publisher.check(decision.stream, [(decision.first, decision.lines)])
        if checked is not None:
            await self._publisher.publish(decision.stream, checked)

    def _note(self, batch_id: str, why: Unavailable | None, again_at: float) -> None:
        """See `held_records.Report`."""
        del again_at
        self._notes.append((batch_id, why))

    async def _publish_notes(self) -> None:
        """Show on batches what their lines wait for, or that they do not wait any more."""
        notes, self._notes = self._notes, []
        for batch_id, why in notes:
            if batch_id not in self._blocked:
                continue  # it was held for a moment only
            stream, since = self._blocked[batch_id]
            waiting: tuple[Waiting, ...] = ()
            if why is not None:
                words = f"Lines of the stream wait: {why}."[:MESSAGE_CHARS_MAX]
                waiting = (Waiting(reason=why.reason, lines=stream.lines, message=words, since=since),)
            elif self._is_free(stream):
                del self._blocked[batch_id]
            self._sent += 1
            fact = Stalled(
                batch_id=batch_id,
                source=self._source,
                number=self._sent,
                waiting=waiting,
                hold_seconds=STALLED_SECONDS,
            )
            await self._publisher.stalled(stream, fact)

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

    async def _seal(self, stream: Stream) -> None:
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
            if stream.state.discarding:
                stream.state = stream.state.model_copy(update={"joined": True, "pieces": ()})
                self._tables.put(stream.state)
            else:
                self._tables.drop(batch_id)
            self._tables.put_decided(self._decisions.kept)
            await self._tables.delivered()
            await self._assembly.clear(batch_id)

    async def _stop_discarding(self, stream: Stream) -> None:
        """The producer of a cancelled stream has ended it, or is gone: the name is free."""
        del self._decisions.streams[stream.state.name]
        stream.state = stream.state.model_copy(update={"discarding": False})
        if stream.state.joined:
            self._tables.drop(stream.state.id)
            self._tables.put_decided(self._decisions.kept)
        else:
            self._tables.put(stream.state)
        await self._tables.delivered()
