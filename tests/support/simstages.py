"""The stages on a log and a store in memory: their own modules, composed as their processes compose them.

This code replaces only product code that talks to Faust and Kafka: fetching, committing, rebalancing
(`simlog.py`), the tables, and the order in which `app.py` of each stage calls its parts.
"""

import asyncio
import itertools
from functools import partial

from support.simlog import Group, MemoryLog, Place, Record, Seat
from support.simstore import MemoryStore, MemoryTable
from support.simtime import Process

from tidemill.configuration.settings import Settings
from tidemill.kafka.partitions import owner as partition_owner
from tidemill.kafka.partitions.held_records import Unavailable
from tidemill.kafka.partitions.owner import PartitionOwners
from tidemill.kafka.producer import partition_of
from tidemill.processors.backends.servers import Servers
from tidemill.processors.calls.caller import Caller
from tidemill.processors.calls.endpoint_probe import EndpointProbe
from tidemill.processors.calls.forms import Forms
from tidemill.processors.dispatcher import Dispatcher as ProcessorsStage
from tidemill.processors.dispatcher import Services
from tidemill.processors.joined.joiner import joiner
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.partitions import seals
from tidemill.processors.partitions.assignment import Assignment, PlacedRecord
from tidemill.processors.partitions.closed_batches import ClosedBatches, batch_state
from tidemill.processors.partitions.seals import SealedOutbox
from tidemill.processors.partitions.window import PartitionWindow
from tidemill.processors.scheduling.prefix_groups import prefixes
from tidemill.results.partition import Partition
from tidemill.results.record_handler import BOUNDS, RecordHandler
from tidemill.results.resources import Limits, Owner, Resources
from tidemill.results.state.tables import Tables, TornError
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.sealing.records import open_outcome
from tidemill.sealing.store import SealedStore
from tidemill.sealing.vault import Vault

MODELS = ("m", "other")
"""Every fourth run has batches with lines of both; the others have the first one alone."""
REQUESTS, OTHER_REQUESTS = (topics.requests(model).name for model in MODELS)
OUTCOMES = topics.OUTCOMES.name
COMMANDS = topics.COMMANDS.name
BATCHES = topics.BATCHES.name
SECRETS = topics.SECRETS.name
QUEUE = topics.QUEUE.name
DRAIN_SECONDS_MAX = 5.0


class Base:
    """A process of any stage."""

    def __init__(self, world, group: Group) -> None:
        self.world = world
        self.process = Process(world.loop, world.chance)
        self.store = MemoryStore(world.objects, self.process, world.refuses)
        self.log: MemoryLog = world.log
        self.group = group
        self._secrets_seen = 0
        self.vault = Vault(
            _Secrets(self), wrapper=world.wrapper, seals=world.wrapper is not None, caught_up=self._catch_up
        )
        if world.wrapper is not None:
            self.store = SealedStore(self.store, self.vault)

    @property
    def seat(self) -> Seat:
        return self.group.seat(self)

    async def send(self, topic, key, value, *, headers=(), partition=None) -> int:
        """See `ports.Sender`."""
        return (await self.append(topic, key, value, headers, partition)).offset

    async def _catch_up(self) -> None:
        await self.process.pass_time()
        records = self.log.records[Place(SECRETS, 0)]
        while self._secrets_seen < len(records):
            record = records[self._secrets_seen]
            self._secrets_seen += 1
            self.vault.apply(record.key, record.value)

    async def append(self, topic, key, value, headers=(), partition=None) -> Record:
        """Append to the log, as an effect of the process."""
        return await self.process.perform(
            lambda: self.log.append(topic, key, value, headers, partition, time=self.process.now())
        )


class _Secrets:
    """The topic of keys, as a process writes it."""

    def __init__(self, process: Base) -> None:
        self._process = process

    async def send(self, topic, key, value, *, headers=()) -> int:
        return (await self._process.append(topic, key, value, headers)).offset


class _Tap:
    def __init__(self, owner: "ProcessorsProcess", generation: int) -> None:
        self._owner = owner
        self._generation = generation

    def ack(self, token: Record) -> None:
        self._owner.group.ack(self._owner.seat, self._generation, token)

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class ProcessorsProcess(Base):
    """`processors/models.py` with one model, without Faust."""

    def __init__(self, world, group: Group, settings: Settings, name: str) -> None:
        super().__init__(world, group)
        model = settings.models[name]
        servers = Servers(self.process.now, self.process.loop.time)
        servers.apply(settings.serving)
        fleet = servers.pools[name]
        self._closed = ClosedBatches(grace_seconds=settings.grace_seconds)
        caller = Caller(
            pool=fleet,
            endpoint_probe=EndpointProbe(name, fleet, world.upstream(self.process)),
            upstream=world.upstream(self.process),
            store=self.store,
            forms=Forms(self.store, LineBudget()),
            clock=self.process.now,
            seconds_max=model.timeout_seconds,
        )
        services = Services(
            budget=LineBudget(),
            outbox=SealedOutbox(self, self.vault, self._closed),
            store=self.store,
            closed=self._closed,
            clock=self.process.now,
            chance=world.chance.random,
        )
        self.stage = ProcessorsStage(caller, services, prefixes=prefixes(model, fleet), joiner=joiner(name, model))
        self.stage.set_part(1.0)
        self._partitions = len(self.log.places(OUTCOMES))
        self._assignment = Assignment(self._closed, lambda key: partition_of(key, self._partitions))
        self._wanted = asyncio.Event()
        self._learning: asyncio.Task[None] | None = None
        self._caught_up = asyncio.Event()
        self.process.start(self._follow())

    async def assign(self, places: list[Place]) -> None:
        await self._caught_up.wait()
        tap = _Tap(self, self.seat.generation)
        self._assignment.assign(self.process.now())
        ends = {place: len(self.log.records[place]) for place in places}
        self._assignment.add({place: PartitionWindow(tap) for place in places}, ends)
        self._wanted.clear()
        self.stage.resume()
        if self._learning is not None:
            self._learning.cancel()
        self._learning = self.process.start(self._learn())

    async def take(self, record: Record) -> None:
        place = Place(record.topic, record.partition)
        if (window := self._assignment.window(place)) is None:
            return
        opened = await seals.open_record(record, self._closed, self.vault)
        if window.is_closed:
            return
        if isinstance(opened, DecodeError):
            entry = window.admit(record, 1, 0)
            entry.window.finish(entry)
            return
        head, texts = opened
        entry = window.admit(record, len(texts), len(record.value))
        held = PlacedRecord(
            tp=place, offset=record.offset, time=record.time, entry=entry, head=head, texts=texts,
            enqueue=self.stage.enqueue,
        )  # fmt: skip
        if not self._assignment.take(held):
            self._wanted.set()

    async def revoke(self) -> None:
        if not await self.stage.drain(DRAIN_SECONDS_MAX):
            self.world.outlasted(self.process)
        self._assignment.leave()
        self.stage.forget_waiting()

    async def send(self, batch_id: str, value: bytes, headers) -> None:
        await self.append(OUTCOMES, batch_id, value, headers)
        self.world.arrived(headers, value)

    async def _learn(self) -> None:
        await self.process.pass_time()
        while True:
            if not self._assignment.release():
                await self._wanted.wait()
            self._wanted.clear()
            wanted = self._assignment.wanted()
            await self.process.pass_time()
            for partition, since in wanted.items():
                self._read_back(partition, since)
            self._assignment.recovered(wanted, self._assignment.handovers)

    def _read_back(self, partition: int, since: float) -> None:
        later = itertools.dropwhile(
            lambda record: record.time < since, self.log.records[Place(OUTCOMES, partition)]
        )
        for record in later:
            if codec.kind_of(record.headers) == codec.LINES:
                try:
                    batch_id, marks = codec.lines_marks(record.headers, len(record.value))
                except DecodeError:
                    continue
                for mark in marks:
                    if batch_id not in self._closed:
                        self.stage.lines.completed.mark(batch_id, mark.index)

    async def _follow(self) -> None:
        """Apply the batches, a while after they are published."""
        offset = 0
        while True:
            records = self.log.records[Place(BATCHES, 0)]
            while offset < len(records):
                await self.process.pass_time()
                if (value := records[offset].value) is None:
                    self._closed.close(records[offset].key)
                elif (batch := batch_state(value)) is not None:
                    self._closed.apply(batch.id, batch.status)
                offset += 1
            self._caught_up.set()
            await self.log.growth()


class _Handler(RecordHandler):
    """A handler whose encryption keys the world may withhold."""

    def __init__(self, process: "ResultsProcess", partition: Partition) -> None:
        super().__init__(
            partition,
            resources=process.resources,
            vault=process.vault,
            partitions=len(process.log.places(OUTCOMES)),
        )
        self._refuses = process.world.refuses

    async def _content(self, record, value):
        if self._refuses(f"key of {codec.lines_batch(record.headers)}"):
            raise Unavailable("refused")
        return await super()._content(record, value)


class ResultsProcess(Base):
    """`results/app.py` without Faust."""

    def __init__(self, world, group: Group, limits: Limits) -> None:
        super().__init__(world, group)
        self.resources = Resources(
            sender=self,
            history=self.outcomes,
            store=self.store,
            clock=self.process.now,
            monotonic=world.loop.time,
            limits=limits,
            compactions=asyncio.Semaphore(2),
            wake=self._wake,
        )
        self._tables: dict[int, Tables] = {}
        self._owners = PartitionOwners(self._handler, BOUNDS, crash=self._crash, start=self.process.start)
        self.process.start(self._owners.run_timers())
        self.process.start(self._tidy())

    def _wake(self) -> None:
        self._owners.wake()

    async def assign(self, places: list[Place]) -> None:
        self._tables = {}
        for number in {place.partition for place in places}:
            tables = []
            for name in ("states", "chunks"):
                # The tables are read one after the other, and a former owner may still write.
                await self.process.pass_time()
                tables.append(MemoryTable(self.process, self.world.changelogs[name, number]))
            self._tables[number] = Tables(*tables)
        self._owners.assign(self._tables)

    async def take(self, record: Record) -> None:
        read = partition_owner.Record(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            key=record.key.encode(),
            value=record.value,
            headers=record.headers,
            timestamp=record.time,
        )
        await self._owners.put(read, partial(self.group.ack, self.seat, self.seat.generation, record))

    async def revoke(self) -> None:
        for feed in self.seat.feeds:
            feed.cancel()
        await self._owners.leave(list(self._tables))

    async def outcomes(self, partition: int, since: float):
        """See `ports.Outcomes`."""
        for record in list(self.log.records[Place(OUTCOMES, partition)]):
            await self.process.pass_time()
            if record.time >= since:
                yield await open_outcome(self.vault, record.headers, record.value)

    def _handler(self, number: int) -> _Handler:
        owner = Owner(writer=self.world.token(), generation=self.seat.generation, confirm=self.process.wait_owned)
        partition = Partition(number, tables=self._tables[number], resources=self.resources, owner=owner)
        return _Handler(self, partition)

    async def _crash(self, error: Exception) -> None:
        if isinstance(error, TornError):
            self.world.tear(self)
        elif self.process.is_alive:
            self.process.errors.append(error)

    async def _tidy(self) -> None:
        while True:
            await self._catch_up()
            await self.vault.destroy_due_keys(float("-inf"), lambda _: True)
            await self.log.growth()
