"""A process of processors on simulated time: its own modules, and the group as Kafka and Faust show it to them."""

import asyncio
from collections.abc import Callable, Collection, Iterable
from types import SimpleNamespace
from typing import Any

from faust.types import TP
from support.simgroup import HEARTBEAT_SECONDS, Coordinator, ProcessorsGroup
from support.simlog import Place, Record
from support.simstages import BATCHES, OUTCOMES, Base

from tidemill.configuration.settings import Settings
from tidemill.kafka.freeze_guard import Membership
from tidemill.kafka.producer import partition_of
from tidemill.processors.backends.servers import Servers
from tidemill.processors.calls.caller import Caller
from tidemill.processors.calls.endpoint_probe import EndpointProbe
from tidemill.processors.calls.forms import Forms
from tidemill.processors.dispatcher import Dispatcher, Services
from tidemill.processors.joined.joiner import joiner
from tidemill.processors.member import Member
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.models import OpenBatches
from tidemill.processors.partitions import seals
from tidemill.processors.partitions.assignment import Assignment, PlacedRecord
from tidemill.processors.partitions.closed_batches import ClosedBatches, batch_state
from tidemill.processors.partitions.completed_lines import CompletedLines
from tidemill.processors.partitions.seals import SealedOutbox
from tidemill.processors.partitions.window import PartitionWindow
from tidemill.processors.scheduling.prefix_groups import prefixes
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import DecodeError

STOP_SECONDS = (2.0, 7.0, 20.0)
CLOCK_SECONDS = 0.001
"""Timers may be due a little early."""


class _Handle:
    """A partition, as a window reaches it."""

    def __init__(self, owner: "ProcessorsProcess", generation: int) -> None:
        self._owner = owner
        self._generation = generation

    def ack(self, token: Record) -> None:
        self._owner.group.ack(self._owner.seat, self._generation, token)

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class _App:
    """The part of `StageApp` that a `Member` uses."""

    def __init__(self, owner: "ProcessorsProcess", coordinator: Coordinator) -> None:
        self._process = owner.process
        self.stop_seconds: float = owner.world.chance.choice(STOP_SECONDS)
        self.membership = Membership(owner.process.loop.time)
        self.consumer = SimpleNamespace(
            _thread=SimpleNamespace(_consumer=SimpleNamespace(_coordinator=coordinator))
        )
        self.drain: Any = None
        self.finish: Any = None
        self.oldest: Any = None
        self.assigned: Any = None
        self.on_partitions_assigned = self

    def connect(self, assigned: Callable[..., Any], *, weak: bool) -> None:
        """Note what an assignment calls."""
        del weak
        self.assigned = assigned

    def topic(self, *names: str, **_: Any) -> Any:
        """A topic of the app."""
        return names

    def agent(self, topic: Any) -> Callable[[Any], Any]:
        """Records come through `ProcessorsProcess.take`."""
        del topic
        return lambda take: take

    def timer(self, seconds: float) -> Callable[[Any], Any]:
        """Call a function again and again."""

        async def tick(work: Any) -> None:
            while True:
                await asyncio.sleep(seconds)
                await work()

        return lambda work: self._process.start(tick(work))

    async def crash(self, error: BaseException) -> None:
        """Note an error of a task."""
        self._process.fail(error)


class _OneModel:
    """`processors/models.py` with one model, which never sleeps."""

    def __init__(self, owner: "ProcessorsProcess", name: str, dispatcher: Dispatcher) -> None:
        self._owner = owner
        self.name = name
        self.dispatcher = dispatcher
        self.held_requests: dict[str, Any] = {}
        self.at_work = [self]
        self.open_batches = OpenBatches()
        self._unread: set[int] = set()
        self._news = asyncio.Event()

    def halt(self) -> None:
        self.dispatcher.halt()

    def resume(self) -> None:
        self.dispatcher.resume()

    def begin(self, numbers: Collection[int], part: float) -> None:
        self._unread = set(numbers)
        self.dispatcher.set_part(part)
        self.dispatcher.resume()
        self._news.set()

    def extend(self, numbers: Collection[int], part: float) -> None:
        self._unread |= set(numbers)
        self.dispatcher.set_part(part)
        self._news.set()

    async def run(self) -> None:
        while True:
            self._news.clear()
            await self._owner.process.pass_time()
            numbers, self._unread = self._unread, set()
            self._owner.read(numbers)
            await self._news.wait()


class _Recovery:
    """`processors/recovery.py` on the log in memory."""

    def __init__(
        self, owner: "ProcessorsProcess", assignment: Assignment, mark: Callable[[str, int], None]
    ) -> None:
        self._owner = owner
        self._assignment = assignment
        self._mark = mark
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None

    def start(self, crash: Any) -> None:
        del crash
        self._wanted.clear()
        self._task = self._owner.process.start(self._run())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def wake(self) -> None:
        self._wanted.set()

    async def _run(self) -> None:
        await self._owner.process.pass_time()
        while True:
            if not self._assignment.release():
                await self._wanted.wait()
            self._wanted.clear()
            wanted, handovers = self._assignment.wanted(), self._assignment.handovers
            for partition, since in wanted.items():
                await self._owner.process.pass_time()
                self._read_back(partition, since)
            await self._owner.process.pass_time()
            self._assignment.recovered(wanted, handovers)

    def _read_back(self, partition: int, since: float) -> None:
        records = self._owner.log.records[Place(OUTCOMES, partition)]
        first = next((number for number, record in enumerate(records) if record.time >= since), len(records))
        for record in records[first:]:
            if codec.kind_of(record.headers) == codec.LINES:
                try:
                    batch_id, marks = codec.lines_marks(record.headers, len(record.value))
                except DecodeError:
                    continue
                for mark in marks:
                    if batch_id not in self._owner.closed:
                        self._mark(batch_id, mark.index)


class ProcessorsProcess(Base):
    """`processors/app.py` with one model, without Faust.

    Attributes:
        is_cut: Whether it does not reach the coordinator of its group.
    """

    group: ProcessorsGroup

    def __init__(self, world: Any, group: ProcessorsGroup, settings: Settings, name: str) -> None:
        super().__init__(world, group)
        self.is_cut = False
        self.closed = ClosedBatches(grace_seconds=settings.grace_seconds)
        self.dispatcher = self._dispatcher(settings, name)
        self._models = _OneModel(self, name, self.dispatcher)
        self.closed.listen(self._models.open_batches.close)
        self._topic = topics.requests(name).name
        outcomes = len(self.log.places(OUTCOMES))
        self._assignment = Assignment(self.closed, lambda key: partition_of(key, outcomes))
        self._recovery = _Recovery(self, self._assignment, self.dispatcher.lines.completed.mark)
        self._app = _App(self, Coordinator(group, self))
        shared: Any = SimpleNamespace(assignment=self._assignment, recovery=self._recovery, outbox=self)
        partitions = len(self.log.places(self._topic))
        models: Any = self._models
        app: Any = self._app
        self._member = Member(app, models, shared, partitions, clock=self.process.now)
        self.process.on_kill = self._member.close
        self._unread_since: dict[int, float] = {}
        self._caught_up = asyncio.Event()
        self.process.start(self._follow())
        self.process.start(self._beat())

    async def assign(self, places: list[Place]) -> None:
        await self._caught_up.wait()
        self._app.membership.renew(self.process.loop.time())
        if not self.group.is_leaving(self):
            self._unread_since = dict.fromkeys((place.partition for place in places), self.process.loop.time())
        await self._app.assigned(None, {TP(topics.PROCESSORS.name, place.partition) for place in places})

    async def take(self, record: Record) -> None:
        place = Place(record.topic, record.partition)
        if (window := self._assignment.window(place)) is None:
            return
        opened = await seals.open_record(record, self.closed, self.vault)
        if window.is_closed:
            return
        if isinstance(opened, DecodeError):
            entry = window.admit(record, 1, 0)
            entry.window.finish(entry)
            return
        head, texts = opened
        entry = window.admit(record, len(texts), len(record.value))
        placed = PlacedRecord(
            tp=place, offset=record.offset, time=record.time, entry=entry, head=head, texts=texts,
            enqueue=self.dispatcher.enqueue,
        )  # fmt: skip
        if not self._assignment.take(placed):
            self._recovery.wake()

    async def revoke(self) -> None:
        """`StageApp` before a rebalance; the group commits."""
        self._check_waits()
        if not self.is_cut:
            # It has heard of the rebalance by the answer to a heartbeat.
            self._app.membership.renew(self.process.loop.time())
        await self._app.drain(set())
        self._unread_since = {}
        self._app.membership.clear()

    async def finish(self) -> None:
        """`StageApp` before the process ends."""
        began_at = self.process.loop.time()
        self._unread_since = {}
        await self._app.finish(set())
        is_early = self.process.loop.time() < began_at + self._app.stop_seconds - CLOCK_SECONDS
        assert not self.world.outlasted(self.process) or not is_early, "calls had time to end"

    def expelled(self) -> None:
        """Note that another process may repeat its calls."""
        self.world.outlasted(self.process)

    def heard(self) -> None:
        """Count the wait for partitions from now on: nothing could be known before."""
        self._unread_since = dict.fromkeys(self._unread_since, self.process.loop.time())

    def read(self, numbers: Iterable[int]) -> None:
        """Read the partitions with these numbers."""
        self._check_waits()
        places = [Place(self._topic, number) for number in numbers]
        for place in places:
            self._unread_since.pop(place.partition, None)
        handle = _Handle(self, self.seat.generation)
        ends = {place: len(self.log.records[place]) for place in places}
        windows = {place: PartitionWindow(handle, number=place.partition) for place in places}
        self._assignment.add(windows, ends)
        self.group.read(self.seat, places)

    async def send(self, batch_id: str, value: bytes, headers: Any) -> None:  # type: ignore[override]
        """See `ports.Outbox`."""
        await self._app.membership.wait_valid()
        await self.append(OUTCOMES, batch_id, value, headers)
        self.world.arrived(headers, value)

    async def stalled(self, fact: Any) -> None:
        """Publish why lines wait."""
        await self.append(OUTCOMES, fact.batch_id, codec.encode(fact), [(codec.KIND, fact.kind.encode())])

    def _check_waits(self) -> None:
        if self.is_cut:
            self._unread_since = {}
        for since in self._unread_since.values():
            self.world.waited(self.process.loop.time() - since)

    def _dispatcher(self, settings: Settings, name: str) -> Dispatcher:
        model = settings.models[name]
        servers = Servers(self.process.now, self.process.loop.time)
        servers.apply(settings.serving)
        pool = servers.pools[name]
        completed = CompletedLines()
        upstream = self.world.upstream(self.process, completed)
        caller = Caller(
            pool=pool,
            endpoint_probe=EndpointProbe(name, pool, upstream),
            upstream=upstream,
            store=self.store,
            forms=Forms(self.store, LineBudget()),
            clock=self.process.now,
            seconds_max=model.timeout_seconds,
        )
        services = Services(
            budget=LineBudget(),
            outbox=SealedOutbox(self, self.vault, self.closed),
            store=self.store,
            closed=self.closed,
            completed=completed,
            clock=self.process.now,
            chance=self.world.chance.random,
        )
        dispatcher = Dispatcher(caller, services, prefixes=prefixes(model, pool), joiner=joiner(name, model))
        dispatcher.stalls.is_secret = self.vault.has_key
        return dispatcher

    async def _beat(self) -> None:
        """Send heartbeats to the coordinator."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            sent_at = self.process.loop.time()
            await self.process.pass_time()
            if not self.is_cut and not self.group.is_silent and self.process.owns_partitions:
                self._app.membership.renew(sent_at)

    async def _follow(self) -> None:
        """Apply the batches, a while after they are published."""
        offset = 0
        while True:
            records = self.log.records[Place(BATCHES, 0)]
            while offset < len(records):
                await self.process.pass_time()
                if (value := records[offset].value) is None:
                    self.closed.close(records[offset].key)
                elif (batch := batch_state(value)) is not None:
                    self.closed.apply(batch.id, batch.status)
                    if batch.id not in self.closed:
                        self._models.open_batches.open(batch.id, batch.models)
                offset += 1
            self._caught_up.set()
            await self.log.growth()
