"""The stages on a log and a store in memory: their own modules, composed as their processes compose them.

This code replaces only product code that talks to Faust and Kafka: fetching, committing, rebalancing
(`simlog.py`), the tables, and the order in which `app.py` of each stage calls its parts.
"""

import asyncio
from functools import partial

from support.simlog import Group, MemoryLog, Place, Record, Seat
from support.simstore import MemoryStore, MemoryTable
from support.simtime import Process

from tidemill.kafka.partitions import owner as partition_owner
from tidemill.kafka.partitions.held_records import Unavailable
from tidemill.kafka.partitions.owner import PartitionOwners
from tidemill.results.partition import Partition
from tidemill.results.record_handler import BOUNDS, RecordHandler
from tidemill.results.resources import Limits, Owner, Resources
from tidemill.results.state.tables import Tables, TornError
from tidemill.schemas.log import codec, topics
from tidemill.sealing.records import open_outcome
from tidemill.sealing.store import SealedStore
from tidemill.sealing.vault import Vault
from tidemill.storage.buckets import Buckets

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
            buckets=Buckets({}),
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
        else:
            self.process.fail(error)

    async def _tidy(self) -> None:
        while True:
            await self._catch_up()
            await self.vault.destroy_due_keys(float("-inf"), lambda _: True)
            await self.log.growth()
