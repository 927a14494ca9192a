"""The app of direct producers: an owner for each partition of `tidemill.intake`, and the table of its streams.

A table write belongs to the partition of the event that is being handled. Each partition has a worker of its own,
which is begun while an event of it is handled and so is in that event's context for good; the event is held as
long as the worker lives. So the worker may also write when time alone makes something due.
"""

import asyncio
import functools
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tidemill.configuration import signing_keys
from tidemill.configuration.security import Kafka
from tidemill.configuration.settings import Settings
from tidemill.faust import partition_table, stage_app
from tidemill.faust.partition_table import PartitionTable
from tidemill.ingest.kafka import RequestProducer
from tidemill.ingest.ports import Times
from tidemill.ingest.quota import Quotas
from tidemill.ingest.sqlite import Sizes
from tidemill.ingest.streams.assembly import InputAssembly
from tidemill.ingest.streams.factory import StreamFactory
from tidemill.ingest.streams.keyring import Keyring
from tidemill.ingest.streams.partition import Partition
from tidemill.ingest.streams.publisher import Publisher
from tidemill.ingest.streams.record import IntakeRecord
from tidemill.ingest.streams.stream import GROUP_RECORDS_MAX, Held
from tidemill.ingest.streams.tables import Streams
from tidemill.kafka.ack_gate import AckGate, Ticket
from tidemill.kafka.follower import Follower
from tidemill.kafka.freeze_guard import guarded
from tidemill.kafka.producer import Log
from tidemill.retrying import retried
from tidemill.schemas.log import codec, intake, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.intake import IntakeError
from tidemill.schemas.ports import Store
from tidemill.schemas.resources.batch import Cut, Status
from tidemill.sealing.vault import Vault

log = logging.getLogger(__name__)

NAME: Final = "tidemill-intake"
GROUP_LINES_MAX: Final = 8_192
GROUP_BYTES_MAX: Final = 4 << 20
"""With `GROUP_RECORDS_MAX`, what is decided on together, and so what a partition holds of records that wait."""
TABLE_CACHE_BYTES: Final = 8 << 20
DRAIN_SECONDS_MAX: Final = 4.0
WRITER_BYTES: Final = 4
LOG_APPEND_TIME: Final = 1
"""Kafka's `timestamp_type` of a record whose time is the broker's."""
BUFFER_EVENTS_MAX: Final = 16
"""Records of a partition that Faust may hold: a producer's has up to 1 MiB, those of the other topics 64 KiB."""


class Cancels:
    """The batches of streams that somebody asked to cancel, as the log of batches tells."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._ids: set[str] = set()

    def __contains__(self, batch_id: str) -> bool:
        return batch_id in self._ids

    def apply(self, key: str, value: bytes | None, offset: int) -> None:
        """Take a record of `tidemill.batches`."""
        if value is None or b'"stream":' not in value:
            return
        try:
            batch = codec.decode_batch(value).batch
        except DecodeError as error:
            log.warning("record %d of the batches cannot be read (%s)", offset, type(error).__name__)
            return
        if batch.status is Status.CANCELLING:
            self._ids.add(key)
            self._tell()
        else:
            self._ids.discard(key)


Learn = Callable[[Iterable[str]], Awaitable[None]]
"""Finds out which of some credentials are keys."""


class _Seat:
    """A partition, its worker, and the records that wait for it."""

    def __init__(self, partition: Partition, cancels: Cancels, held: Any, learn: Learn) -> None:
        self.partition = partition
        self.gate: AckGate[Any] = AckGate()
        self.news = asyncio.Event()
        self.room = asyncio.Event()
        self.is_leaving = False
        self.task: asyncio.Task[None] | None = None
        self._cancels = cancels
        self._held = held
        self._learn = learn
        self._waiting: deque[IntakeRecord] = deque()
        self._bytes = self._lines = 0
        self.room.set()

    def put(self, arrival: IntakeRecord) -> None:
        """Have a record wait for its turn."""
        self._waiting.append(arrival)
        self._bytes += len(arrival.value or b"")
        self._lines += 1 + (arrival.value or b"").count(b"\n")
        if (
            len(self._waiting) >= GROUP_RECORDS_MAX
            or self._bytes >= GROUP_BYTES_MAX
            or self._lines >= GROUP_LINES_MAX
        ):
            self.room.clear()
        self.news.set()

    async def work(self, follow: Callable[[], Any]) -> None:
        """Take records and do what is due, until it is said to leave."""
        await follow()
        while not self.is_leaving:
            self.news.clear()
            group, self._waiting, self._bytes, self._lines = self._waiting, deque(), 0, 0
            self.room.set()
            if group:
                await self._learn(_secrets(group))
                await self.partition.take(group)
            await self.partition.tick(self._cancels.__contains__)
            if not self._waiting:
                await self._sleep()
        await self.partition.leave()

    async def _sleep(self) -> None:
        alarm = self.partition.alarm
        try:
            async with asyncio.timeout(None if alarm is None else max(0.0, alarm - time.monotonic())):
                await self.news.wait()
        except TimeoutError:
            pass


class StreamApp:
    """The app and its doors."""

    def __init__(
        self,
        settings: Settings,
        kafka: Kafka,
        *,
        log_door: Log,
        store: Store,
        outlet: RequestProducer,
        vault: Vault | None = None,
    ) -> None:
        """Set up the app; nothing is connected yet."""
        self._log, self._store = log_door, store
        state = settings.data / "state" / "intake"
        self.app = stage_app.create_app(
            NAME, settings, kafka=kafka, state=state, tables=True, buffer=BUFFER_EVENTS_MAX
        )
        self._table = partition_table.table(
            self.app, "streams", settings.partitions, cache_bytes=TABLE_CACHE_BYTES
        )
        self._keyring = Keyring(
            signing_keys.verifier(settings),
            time.time,
            fixed=settings.api_key_digest,
            takes_keys=bool(settings.intake_api_keys),
        )
        self._cancels = Cancels(self._wake)
        scratch = Path(str(self.app.conf.datadir))
        self._sizes = Sizes(scratch / "sizes")
        self._kept = Sizes(scratch / "batches")
        self._quotas = Quotas(settings.limits_of, self._sizes, self._kept)
        self._followers = (
            Follower(kafka, topics.KEYS.name, self._keyring.apply),
            Follower(kafka, topics.BATCHES.name, self._heard, applied=self._kept.commit),
            Follower(kafka, topics.FILES.name, self._quotas.file, applied=self._sizes.commit),
        )
        self._keyring.abreast = self._followers[0].abreast
        self._nursery = _nursery(settings, store, scratch / "ids")
        self._publisher = Publisher(sender=log_door, outlet=outlet, store=store, quotas=self._quotas, vault=vault)
        self._times = Times(
            idle_seconds=settings.intake_idle_seconds,
            age_seconds=settings.part_age_seconds,
            part_bytes=settings.part_bytes,
        )
        self._held = Held()
        self._tenure = stage_app.GenerationGuard(self.app)
        self._seats: dict[int, _Seat] = {}
        self._ticking: set[asyncio.Future[int]] = set()
        self._agent = self.app.agent(stage_app.raw_topic(self.app, topics.INTAKE.name), isolated_partitions=True)(
            self._consume
        )
        self.app.drain = self._leave
        self.app.oldest = lambda: stage_app.oldest(seat.gate.head for seat in self._seats.values())
        self.app.on_partitions_assigned.connect(self._assigned, weak=False)

    async def start(self) -> stage_app.StageApp:
        """Begin to follow keys and batches, and give the app to run."""
        for follower in self._followers:
            await follower.start()
        return self.app

    async def stop(self) -> None:
        """Stop following; the app has stopped."""
        for follower in self._followers:
            await follower.stop()
        self._sizes.close()
        self._kept.close()

    async def _consume(self, events: Any) -> None:
        async for event in events.noack().events():
            message = event.message
            if not self._tenure.holds(message):
                continue
            seat = self._seats.get(message.partition) or self._seated(event)
            ticket = seat.gate.admit(event)
            seat.put(
                IntakeRecord(
                    topic=message.topic,
                    partition=message.partition,
                    offset=message.offset,
                    key=message.key,
                    value=message.value,
                    headers=tuple(message.headers or ()),
                    ack=functools.partial(_acknowledge, seat, ticket),
                    logged_at=message.timestamp if message.timestamp_type == LOG_APPEND_TIME else None,
                )
            )
            await seat.room.wait()

    def _seated(self, event: Any) -> _Seat:
        number = event.message.partition
        joiner = InputAssembly(
            store=self._store,
            sender=self._log,
            publisher=self._publisher,
            clock=time.time,
            writer=secrets.token_hex(WRITER_BYTES),
            wake=self._wake,
        )
        partition = Partition(
            tables=Streams(PartitionTable(self._table, number), self.app.consumer_generation_id),
            sender=self._log,
            project=self._keyring.project,
            nursery=self._nursery(),
            quotas=self._quotas,
            publisher=self._publisher,
            joiner=joiner,
            clock=time.time,
            steady=time.monotonic,
            times=self._times,
            held=self._held,
        )
        seat = self._seats[number] = _Seat(partition, self._cancels, event, self._keyring.learn)
        seat.task = asyncio.create_task(self._work(seat), name=f"intake {number}")
        return seat

    async def _work(self, seat: _Seat) -> None:
        try:
            await seat.work(self._caught_up)
        except Exception as error:
            # Nothing is built on what may be wrong: the process ends and its successor reads again.
            log.error("a partition of the intake broke off: %s", type(error).__name__)  # noqa: TRY400
            await self.app.crash(error)
            raise

    def _heard(self, key: str, value: bytes | None, offset: int) -> None:
        self._cancels.apply(key, value, offset)
        self._quotas.batch(key, value, offset)

    async def _caught_up(self) -> None:
        for follower in self._followers:
            await follower.caught_up()

    def _wake(self) -> None:
        for seat in self._seats.values():
            seat.news.set()

    async def _assigned(self, _: Any, assigned: Iterable[Any], **__: Any) -> None:
        """A record makes an owner take up the streams of a partition, also where no producer says anything."""
        producer = self.app.producer._producer  # noqa: SLF001  Faust shows it nowhere
        guarded(producer.client, lambda: None, self.app.membership.held)
        for tp in assigned:
            if tp.topic == topics.INTAKE.name:
                send = functools.partial(
                    self._log.send, tp.topic, "tick", None, headers=[(intake.TICK, b"1")], partition=tp.partition
                )
                sending = asyncio.ensure_future(retried("sending a tick", send))
                self._ticking.add(sending)
                sending.add_done_callback(self._ticking.discard)

    async def _leave(self, revoked: set[Any]) -> None:
        """Let go of partitions: what was taken is kept within a bound of time, the rest comes again."""
        self._tenure.leave(revoked)
        seats = [
            seat for tp in revoked
            if tp.topic == topics.INTAKE.name and (seat := self._seats.pop(tp.partition, None)) is not None
        ]  # fmt: skip
        tasks = [seat.task for seat in seats if seat.task is not None]
        for seat in seats:
            seat.is_leaving = True
            seat.news.set()
            seat.room.set()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=DRAIN_SECONDS_MAX)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        for seat in seats:
            seat.partition.abandon()


def _nursery(settings: Settings, store: Store, folder: Path) -> Callable[[], StreamFactory]:
    return functools.partial(
        StreamFactory,
        store=store,
        models={name: model.endpoints for name, model in settings.models.items()},
        windows=settings.windows,
        cut=Cut(lines_max=settings.file_lines_max, bytes_max=settings.file_bytes_max),
        folder=folder,
        clock=time.time,
        steady=time.monotonic,
        reply_bytes_max=settings.reply_bytes_max,
    )


def _secrets(group: Iterable[IntakeRecord]) -> Iterator[str]:
    """The credentials of records, as far as they can be read."""
    for arrival in group:
        with suppress(IntakeError):
            yield intake.secret(intake.named(arrival.headers))


def _acknowledge(seat: _Seat, ticket: Ticket[Any]) -> None:
    for done in seat.gate.finish(ticket):
        done.ack()
