"""The door to Faust: one app whose tables are the batches, fed by `commands` and `outcomes`.

Faust starts an actor for each partition of each topic. Both actors of one number work on the same batches, so
they take turns (`_Seat.turn`). A table write belongs to the partition of the event that is being handled, and a
timer has no event; so a timer sends a `Tick` into the partition where something is due.
"""

import asyncio
import functools
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

from tidemill.configuration.security import Kafka
from tidemill.configuration.settings import Settings
from tidemill.faust import partition_table, stage_app
from tidemill.faust.partition_table import PartitionTable
from tidemill.kafka.ack_gate import AckGate
from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.freeze_guard import Lease, guarded
from tidemill.kafka.handling import Burial, handled, is_cancelled
from tidemill.kafka.producer import Log, partition_of
from tidemill.results.held_records import HeldRecords, Unread
from tidemill.results.kafka import OutcomeHistory
from tidemill.results.partition import Partition
from tidemill.results.ports import Owner
from tidemill.results.state import batch_gauges
from tidemill.results.state.limits import Limits
from tidemill.results.state.tables import Tables
from tidemill.retrying import reason, retried
from tidemill.runtime.clock_steps import ClockSteps
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.messages import Buried, Tick
from tidemill.schemas.ports import NotFound, Store
from tidemill.schemas.resources.waiting import Reason
from tidemill.sealing.keeper import Keeper
from tidemill.sealing.records import opened_outcome
from tidemill.sealing.vault import NoKey
from tidemill.sealing.wrapping import KeyUnavailable
from tidemill.storage.address import open_store

log = logging.getLogger(__name__)

NAME: Final = "tidemill-results"
TICK_SECONDS: Final = 0.1
COMPACTIONS_MAX: Final = 4
"""Batches of one process that are compacted at one time."""
TABLE_CACHE_BYTES: Final = 32 << 20
DRAIN_SECONDS_MAX: Final = 4.0
WRITER_BYTES: Final = 4
"""Of the token that tells the owners of a partition apart."""


class _Seat:
    """A partition and what its two actors share."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.aside = HeldRecords(partition.unread, time.monotonic)
        self.turn = asyncio.Lock()
        self.tick_sent = False
        self.ticking: asyncio.Future[int] | None = None
        """Held, since the event loop alone would let go of it."""


class Results:
    """The stage's app and its doors."""

    def __init__(self, settings: Settings, kafka: Kafka) -> None:
        """Set up the app; nothing is connected yet."""
        self._settings = settings
        self._lease = Lease()
        self._log = Log(kafka, lease=self._lease)
        self._keeper = Keeper(settings, kafka, self._log)
        self._history = OutcomeHistory(kafka, self._keeper.vault)
        self._store = self._keeper.store(open_store(settings.store_url, reserve_bytes=settings.disk_reserve_bytes))
        self.app = stage_app.create_app(
            NAME, settings, kafka=kafka, state=settings.data / "state" / "results", tables=True
        )
        self._log.membership = self.app.membership
        self._tables = [
            partition_table.table(self.app, name, settings.partitions, cache_bytes=TABLE_CACHE_BYTES)
            for name in ("batches", "lines")
        ]
        self._tenure = stage_app.GenerationGuard(self.app)
        self._seats: dict[int, _Seat] = {}
        self._gates: defaultdict[Any, AckGate[Any]] = defaultdict(AckGate)
        self._compactions = asyncio.Semaphore(COMPACTIONS_MAX)
        self._limits = Limits(
            part_bytes=settings.part_bytes,
            part_age_seconds=settings.part_age_seconds,
            grace_seconds=settings.grace_seconds,
            tariff_of=settings.tariff_of,
            kept_seconds=lambda: self.app.kept_seconds,
        )
        self._ticking: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None
        self._agent = self.app.agent(
            stage_app.raw_topic(self.app, topics.COMMANDS.name, topics.OUTCOMES.name), isolated_partitions=True
        )(self._fold)
        self.app.drain = self._leave
        self.app.oldest = lambda: stage_app.oldest(gate.head for gate in self._gates.values())
        self.app.on_partitions_assigned.connect(self._assigned, weak=False)

    @property
    def store(self) -> Store:
        """The store of files."""
        return self._store

    async def start(self) -> list[stage_app.StageApp]:
        """Connect, and give the app to run."""
        self._lease.start()
        await self._log.start()
        await self._keeper.start()
        self._ticking = asyncio.create_task(self._tick())
        self._tidying = asyncio.create_task(self._keeper.tidy(time.time, lambda: self.app.kept_seconds))
        batch_gauges.offer(
            lambda: (seat.partition.living for seat in self._seats.values()), time.time, time.monotonic
        )
        return [self.app]

    async def stop(self) -> None:
        """Close the doors."""
        for task in (self._ticking, self._tidying):
            if task is not None:
                task.cancel()
        await self._keeper.stop()
        await self._log.stop()
        await self._store.close()
        self._lease.stop()

    async def _fold(self, events: Any) -> None:
        async for event in events.noack().events():
            if self._tenure.holds(event.message):
                try:
                    await self._handle(event)
                except asyncio.CancelledError:
                    if is_cancelled():  # If not, Faust would end the agent, and lose what waits for it.
                        raise
                except Exception as error:
                    # Nothing is built on what may be wrong: the process ends and its successor reads again.
                    log.exception("a record of %s could not be folded", event.message.tp)
                    await self.app.crash(error)
                    raise

    async def _handle(self, event: Any) -> None:
        message = event.message
        gate = self._gates[message.tp]
        ticket = gate.admit(event)

        def ack() -> None:
            for done in gate.finish(ticket):
                done.ack()

        seat = self._seat(message.partition)
        async with seat.turn:
            await seat.partition.load()
            of = codec.lines_batch(message.headers) if message.topic == topics.OUTCOMES.name else None
            work = functools.partial(self._work, seat, event, ack)
            await seat.aside.take(of, work, len(message.value or b""))

    async def _work(self, seat: _Seat, event: Any, ack: Any) -> None:
        """Fold a record, or bury it.

        Raises:
            Unread: Its lines cannot be had at the moment.
        """
        message = event.message
        burial = await handled(
            self._log,
            message,
            lambda: self._dispatch(seat, message, ack),
            stage="results",
            undo=seat.partition.undo,
        )
        if burial is not None:
            await self._tell(seat, message, burial)
            ack()
        # Faust's rings around an event last until a collection; the lines need not.
        event.value = message.value = None

    async def _tell(self, seat: _Seat, message: Any, burial: Burial) -> None:
        """Let the batch know that a record names; where that fails too, its dead letter remains."""
        named = codec.named(message.topic, message.headers, message.value)
        if named is None or not self._belongs(message, named.batch_id):
            return
        fact = Buried(batch_id=named.batch_id, source=burial.source, reason=burial.reason, at=int(time.time()))
        seat.partition.begin()
        try:
            await seat.partition.buried(fact, named.created, ends=not burial.unreadable)
        except TRANSIENT:
            raise
        except Exception:
            log.exception("%s could not be told", named.batch_id)
            seat.partition.undo()

    def _belongs(self, message: Any, batch_id: str) -> bool:
        """Whether a record lies where its batch has its place, which is to be known by its key."""
        is_keyed = message.key == batch_id.encode() and ids.is_batch_id(batch_id)
        return is_keyed and partition_of(batch_id, self._settings.partitions) == message.partition

    def _check(self, message: Any, batch_id: str) -> None:
        if not self._belongs(message, batch_id):
            raise DecodeError("its key and its place are not those of its batch")

    async def _dispatch(self, seat: _Seat, message: Any, ack: Any) -> None:
        seat.partition.begin()
        if message.topic == topics.COMMANDS.name:
            command = codec.decode_command(message.value)
            self._check(message, codec.batch_of(command) or "")
            await seat.partition.command(command, ack)
        elif codec.kind_of(message.headers) == codec.LINES:
            value = message.value or b""
            batch_id, marks = codec.lines_marks(message.headers, len(value))
            self._check(message, batch_id)
            if not seat.partition.takes_lines(batch_id):
                # What comes late is not opened: the key of its batch may be destroyed.
                ack()
                return
            await seat.partition.lines(batch_id, marks, await self._value(message, value), ack)
        else:
            fact = codec.decode_fact(message.value)
            if isinstance(fact, Tick):
                seat.tick_sent = False
            else:
                self._check(message, codec.batch_of(fact) or "")
            await seat.partition.fact(fact, ack)

    async def _value(self, message: Any, value: bytes) -> bytes:
        """The lines of a record.

        Raises:
            DecodeError: They are gone, or damaged.
            Unread: They cannot be had at the moment.
        """
        try:
            _, value = await opened_outcome(self._keeper.vault, message.headers, value)
            if (ref := codec.lines_ref(message.headers)) is not None:
                value = await self._read(ref)
        except NoKey as error:
            raise DecodeError(str(error)) from error
        except OSError as error:
            of = Reason.KEY if isinstance(error, KeyUnavailable) else Reason.STORE
            raise Unread(reason(error), of) from error
        return value

    async def _read(self, ref: codec.LineRef) -> bytes:
        try:
            reading = self._store.read(ref.key, ref.offset, ref.offset + ref.length)
            value = b"".join([chunk async for chunk in reading])
        except (NotFound, ValueError) as error:
            raise DecodeError("what it refers to is not in the store") from error
        if len(value) != ref.length:
            raise DecodeError("what it refers to is cut short")
        return value

    async def _held(self, number: int, writer: str) -> None:
        """See `Owner`."""
        await self.app.membership.held()
        self._lease.check()
        if (seat := self._seats.get(number)) is None or seat.partition.owner.writer != writer:
            # Of an event that was under way when the partition went.
            raise asyncio.CancelledError

    def _seat(self, number: int) -> _Seat:
        if (seat := self._seats.get(number)) is None:
            writer = secrets.token_hex(WRITER_BYTES)
            partition = Partition(
                number,
                tables=Tables(*(PartitionTable(table, number) for table in self._tables)),
                sender=self._log,
                history=self._history,
                store=self._store,
                clock=time.time,
                steady=time.monotonic,
                limits=self._limits,
                compactions=self._compactions,
                owner=Owner(
                    writer=writer,
                    generation=self.app.consumer_generation_id,
                    held=functools.partial(self._held, number, writer),
                ),
            )
            seat = self._seats[number] = _Seat(partition)
        return seat

    async def _assigned(self, _: Any, assigned: Iterable[Any], **__: Any) -> None:
        """A tick into each new partition makes it take up the batches that were at work."""
        # What a frozen process had on its way to the changelog would go before its successor's state.
        producer = self.app.producer._producer  # noqa: SLF001  Faust shows it nowhere
        guarded(producer.client, self._lease.check, self.app.membership.held)
        for tp in assigned:
            if tp.topic == topics.OUTCOMES.name:
                self._start_tick(tp.partition, self._seat(tp.partition))

    async def _leave(self, revoked: set[Any]) -> None:
        """Let go of partitions: no event of theirs is under way then, and what waits comes again."""
        self._tenure.leave(revoked)
        numbers = {tp.partition for tp in revoked}
        for number in numbers & self._seats.keys():
            seat = self._seats[number]
            try:
                async with asyncio.timeout(DRAIN_SECONDS_MAX), seat.turn:
                    seat.partition.abandon()
            except TimeoutError:
                log.warning("partition %s was left in the middle of an event", number)
                seat.partition.abandon()
            del self._seats[number]
        for tp in revoked:
            self._gates.pop(tp, None)

    async def _tick(self) -> None:
        kept_seconds = self.app.kept_seconds
        steps = ClockSteps(time.time, time.monotonic)
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.time()
            if steps.seen() or self.app.kept_seconds != kept_seconds:
                kept_seconds = self.app.kept_seconds
                for seat in self._seats.values():
                    seat.partition.ring()
            for number, seat in self._seats.items():
                due_in = seat.aside.due_in
                if ((alarm := seat.partition.alarm) is not None and alarm <= now) or (due_in or 1) <= 0:
                    self._start_tick(number, seat)

    def _start_tick(self, number: int, seat: _Seat) -> None:
        """Send a tick into a partition, unless one is on its way."""
        if seat.tick_sent:
            return
        seat.tick_sent = True
        tick = Tick(at=time.time(), writer=seat.partition.owner.writer)
        send = functools.partial(
            self._log.send,
            topics.OUTCOMES.name,
            "tick",
            codec.encode(tick),
            headers=[(codec.KIND, tick.kind.encode())],
            partition=number,
        )
        seat.ticking = asyncio.ensure_future(retried("sending a tick", send))


def main(settings: Settings) -> None:
    """Run the stage until SIGTERM."""
    stage_app.run(settings, "results", Results)
