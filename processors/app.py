"""The door to Faust: one app per model, each with its stage, several in one process.

The agent's body never waits: it admits a record to its lane and hands its lines to the stage. A record is
acknowledged by its lane, in order, after the log has the outcomes of all its lines.

At an assignment:

1. each partition gets a new lane, and the stage may start calls;
2. the ends of the partitions are asked for: records beyond of a younger batch are new, and are called at once;
3. any other record is held until the outcomes of its batch have been read (`partitions/assignment.py`,
   `partitions/outcome_recovery.py`).

At a revocation, and at a stop:

1. no call is started any more;
2. calls in flight finish, and their outcomes arrive, within a bound;
3. what may be acknowledged is, and is committed (`tidemill.faust.stage_app` does that);
4. the lanes are closed: an outcome that arrives later acknowledges nothing.
"""

import asyncio
import functools
import logging
import random
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from tidemill import metrics
from tidemill.configuration.security import Kafka
from tidemill.configuration.servers import Model
from tidemill.configuration.settings import Settings
from tidemill.faust import stage_app
from tidemill.faust.partition_handle import PartitionHandle
from tidemill.kafka.connection import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN, LogUnavailable
from tidemill.kafka.follower import Follower
from tidemill.kafka.history import reading
from tidemill.kafka.log_space import log_space
from tidemill.kafka.producer import Log, partition_of
from tidemill.processors.backends import pool_factory
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.calls.caller import Caller
from tidemill.processors.calls.endpoint_probe import EndpointProbe
from tidemill.processors.calls.retry import Policy
from tidemill.processors.dispatcher import Dispatcher
from tidemill.processors.http.client import HttpUpstream
from tidemill.processors.kafka import KafkaOutbox, outcomes, reopened
from tidemill.processors.memory_budget import Lines
from tidemill.processors.partitions import seals
from tidemill.processors.partitions.assignment import Assignment, Record
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.held_records import Held, HeldRecords
from tidemill.processors.partitions.seals import Opened, SealedOutbox, Unopened
from tidemill.processors.partitions.unreadable import give_up
from tidemill.processors.partitions.window import Entry, PartitionWindow
from tidemill.processors.scheduling import prefix
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.ports import Edge, Store
from tidemill.sealing.keeper import Keeper
from tidemill.sealing.vault import Vault
from tidemill.storage.address import open_store
from tidemill.storage.disk_space import LOG

REBALANCE_DRAIN_SECONDS_MAX: Final = 30.0
STOP_DRAIN_SECONDS_MAX: Final = 7.0
"""Less than the process is given to stop."""
HOLD_SECONDS: Final = 1.0
"""How often pauses are said again, since Faust may forget them."""
GATHER_SECONDS: Final = 0.05
"""How long records of other lanes are awaited before outcomes are read back for all of them."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Doors:
    """What all models of a process share."""

    kafka: Kafka
    log: Log
    outbox: KafkaOutbox
    upstream: HttpUpstream
    store: Store
    ended: ClosedBatches
    lines: Lines
    vault: Vault


class ModelApp:
    """One model: its app, its stage, and its partitions."""

    def __init__(
        self, name: str, model: Model, settings: Settings, doors: Doors, *, stop_seconds: Callable[[], float]
    ) -> None:
        """Set up the app; needs a running event loop.

        Args:
            name: The model's name.
            model: Its settings.
            settings: All settings.
            doors: What it shares with others.
            stop_seconds: Called when the process stops; says how long calls in flight may still take.
        """
        names = [topics.express(name).name, topics.requests(name).name]
        plain = names[1].removeprefix(topics.REQUESTS_PREFIX)
        state = settings.data / "state" / f"processors-{plain}"
        self.app = stage_app.create_app(f"tidemill-processors-{plain}", settings, kafka=doors.kafka, state=state)
        fleet = pool_factory.fleet(model, time.time)
        self.stage = Dispatcher(
            fleet=fleet,
            caller=_caller(name, model, fleet, doors),
            outbox=SealedOutbox(doors.outbox, doors.vault),
            store=doors.store,
            ended=doors.ended,
            clock=time.time,
            chance=random.random,
            in_flight_max=model.max_in_flight,
            weights={project: own.weight for project, own in settings.projects.items()},
            policy=Policy(tries_max=model.tries_max),
            prefixes=prefix.prefixes(model, fleet),
        )
        self.name = name
        self._topics, self._doors, self._settings = names, doors, settings
        self._stop_seconds = stop_seconds
        self._outcome_partitions = 1
        self._seats = Assignment(doors.ended, self.stage.enqueue, self._partition_of)
        reopen = functools.partial(reopened, doors.kafka, doors.ended, doors.vault)
        self.aside = HeldRecords(
            reopened=reopen, admit=self._readmit, tell=doors.outbox.stalled, ended=doors.ended
        )
        self._give_up = functools.partial(give_up, log=doors.log, outbox=doors.outbox, ended=doors.ended)
        self._wanted = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._learning: asyncio.Task[None] | None = None
        self._brake = self.app.brake(self.stage)
        self._start(self.aside.run())
        told = self.stage.fill
        for lookout in pool_factory.lookouts(
            model, fleet, getter=doors.upstream, steady=time.monotonic, told=told
        ):
            self._start(lookout.run())
        self.stage.stalls.is_secret = doors.vault.has_key
        self._start(self.stage.stalls.run(doors.outbox))
        self._agent = self.app.agent(stage_app.raw_topic(self.app, *names))(self._take_all)
        self.app.timer(HOLD_SECONDS)(self._hold)
        self.app.drain = self._leave
        self.app.oldest = lambda: stage_app.oldest(lane.oldest for lane in self._seats.lanes)
        self.app.on_partitions_assigned.connect(self._assigned, weak=False)

    async def close(self) -> None:
        """Break off what is under way."""
        for task in (*self._tasks, *([self._learning] if self._learning else ())):
            task.cancel()
        await self.stage.close()

    def _partition_of(self, batch_id: str) -> int:
        return partition_of(batch_id, self._outcome_partitions)

    async def _take_all(self, events: Any) -> None:
        async for event in events.noack().events():
            lane = self._seats.lane(event.message.tp)
            # Without a lane the partition is leaving: the record comes again.
            if lane is not None and event.message.generation_id == self.app.consumer_generation_id:
                opened = await seals.opened(event.message, self._doors.ended, self._doors.vault, self.aside.why)
                # A key that is not known yet was looked for, and the partition may have left meanwhile.
                if not lane.is_closed:
                    self._take(lane, event, opened)

    def _take(self, lane: PartitionWindow, event: Any, opened: Opened | DecodeError | Unopened) -> None:
        message = event.message
        if isinstance(opened, Unopened):
            self.aside.put(Held(head=opened.head, entry=lane.admit(event, 1, 0), message=message), opened.why)
        else:
            lines = 1 if isinstance(opened, DecodeError) else len(opened[1])
            self._admit(lane.admit(event, lines, len(message.value or b"")), message, opened)
        if not isinstance(opened, DecodeError):
            # The lines were copied out, or are read again; the event is kept until the last of them is done.
            event.value = message.value = None

    def _admit(self, entry: Entry, message: Any, opened: Opened | DecodeError) -> None:
        if isinstance(opened, DecodeError):
            self._start(self._give_up(entry, message, opened))
            return
        head, texts = opened
        record = Record(
            tp=message.tp, offset=message.offset, time=message.timestamp, entry=entry, head=head, texts=texts
        )
        if not self._seats.take(record):
            self._wanted.set()

    def _readmit(self, held: Held, opened: Opened | DecodeError) -> None:
        """A record that waited waits no more."""
        if not isinstance(opened, DecodeError):
            held.entry.lane.refill(held.entry, len(opened[1]), len(held.message.value))
        self._admit(held.entry, held.message, opened)
        if not isinstance(opened, DecodeError):
            held.message.value = None

    async def _assigned(self, _: Any, assigned: Iterable[Any], **__: Any) -> None:
        if self._learning is not None:
            self._learning.cancel()
        self._seats.assign({tp: PartitionWindow(PartitionHandle(self.app, tp)) for tp in assigned}, time.time())
        self._wanted.clear()
        # As many as the topics are made with; the log is asked how many there are.
        self._share(self._settings.partitions * len(self._topics))
        self.stage.resume()
        self._learning = asyncio.create_task(self._learn())

    async def _learn(self) -> None:
        """Find out where the partitions end, then read back outcomes whenever a record needs them."""
        await self._stubborn(self._find_ends)
        while True:
            if not self._seats.release():
                await self._wanted.wait()
            await asyncio.sleep(GATHER_SECONDS)
            await self._stubborn(self._read_back)

    def _share(self, partitions: int) -> None:
        """Each partition has one process, so a process may do as much as its part of them allows."""
        self.stage.take_part(min(1.0, max(1, len(self._seats.partitions)) / partitions))

    async def _find_ends(self) -> None:
        partitions = self._seats.partitions
        async with reading(self._doors.kafka) as reader:
            found = {name: reader.partitions(name) for name in (topics.OUTCOMES.name, *self._topics)}
            if not all(found.values()):
                raise LogUnavailable("the broker does not know all topics yet")
            ends = {
                name: await reader.ends(name, [tp.partition for tp in partitions if tp.topic == name])
                for name in self._topics
            }
        self._outcome_partitions = len(found.pop(topics.OUTCOMES.name))
        self._share(sum(map(len, found.values())))
        self._seats.end({tp: ends[tp.topic][tp.partition][1] for tp in partitions})

    async def _read_back(self) -> None:
        self._wanted.clear()
        if not (wanted := self._seats.wanted()):
            return
        starts = {number: Edge(at_ms=max(0, int(since * 1000))) for number, since in wanted.items()}
        async with (
            reading(self._doors.kafka) as reader,
            aclosing(reader.records(topics.OUTCOMES.name, starts)) as records,
        ):
            async for record in records:
                for batch_id, index in outcomes(record):
                    if batch_id not in self._doors.ended:
                        self.stage.ledger.mark(batch_id, index)
        self._seats.read(wanted)

    async def _stubborn(self, work: Any) -> None:
        wait_seconds = BACKOFF_SECONDS_MIN
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001  whatever it was, held records must not be held for ever
                _log.warning("the log cannot be read (%s); again in %.1f s", type(error).__name__, wait_seconds)
                await asyncio.sleep(wait_seconds)
                wait_seconds = min(2 * wait_seconds, BACKOFF_SECONDS_MAX)
            else:
                return

    async def _leave(self, _: set[Any]) -> None:
        """Let go of all partitions: a rebalance takes all of an app's at once."""
        self._brake.release()
        await self.stage.drain(REBALANCE_DRAIN_SECONDS_MAX if self.app.rebalancing else self._stop_seconds())
        self._seats.leave()
        self.aside.clear()
        self.stage.forget_waiting()

    async def _hold(self) -> None:
        self._brake.look()
        for lane in self._seats.lanes:
            lane.hold()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Processors:
    """The models of a process, and the doors they share."""

    def __init__(self, settings: Settings, kafka: Kafka, models: Iterable[str]) -> None:
        """Nothing is connected before `start()`."""
        self._settings = settings
        self._kafka = kafka
        self._names = list(models)
        self._ended = ClosedBatches()
        self._space = log_space(kafka, settings.disk_reserve_bytes)
        self._follower = Follower(kafka, topics.BATCHES.name, self._apply)
        self._log = Log(kafka)
        self._keeper = Keeper(settings, kafka, self._log, also=self._erased)
        self._doors: Doors | None = None
        self._models: list[ModelApp] = []
        self._stopping_until: float | None = None

    @property
    def store(self) -> Store:
        """The store of large lines, once started."""
        assert self._doors is not None
        return self._doors.store

    async def start(self) -> list[stage_app.StageApp]:
        """Connect the doors, learn which batches are over, and give the apps to run."""
        doors = self._doors = Doors(
            kafka=self._kafka,
            log=self._log,
            outbox=KafkaOutbox(self._kafka, check_disk=lambda: self._space.check(LOG)),
            upstream=HttpUpstream(
                pool_factory.authorities(self._settings.models.values()),
                reply_bytes_max=self._settings.reply_bytes_max,
            ),
            store=self._keeper.store(
                open_store(self._settings.store_url, reserve_bytes=self._settings.disk_reserve_bytes)
            ),
            ended=self._ended,
            lines=Lines(),
            vault=self._keeper.vault,
        )
        await self._space.start()
        await doors.outbox.start()
        await self._follower.start()
        await self._keeper.start()
        await self._follower.caught_up()
        self._models = [
            ModelApp(name, self._settings.models[name], self._settings, doors, stop_seconds=self._stop_seconds)
            for name in self._names
        ]
        metrics.ask(metrics.IN_FLIGHT, lambda: {model.name: model.stage.busy for model in self._models})
        metrics.ask(metrics.HELD, lambda: {model.name: len(model.aside) for model in self._models})
        metrics.ask(metrics.LIMIT, lambda: {model.name: model.stage.seats for model in self._models})
        return [model.app for model in self._models]

    async def stop(self) -> None:
        """Close the doors."""
        await self._space.stop()
        await self._follower.stop()
        await self._keeper.stop()
        for model in self._models:
            await model.close()
        if self._doors is not None:
            await self._doors.upstream.close()
            await self._doors.outbox.stop()
            await self._doors.log.stop()
            await self._doors.store.close()

    def _stop_seconds(self) -> float:
        """The models are drained one after the other, so they share one bound and halt together."""
        now = asyncio.get_running_loop().time()
        if self._stopping_until is None:
            self._stopping_until = now + STOP_DRAIN_SECONDS_MAX
            for model in self._models:
                model.stage.halt()
        return max(0.0, self._stopping_until - now)

    def _apply(self, key: str, value: bytes | None, offset: int) -> None:
        if value is None:
            # A batch that is deleted was over; its lines may lie before us all the same.
            self._ended.end(key)
            return
        try:
            self._ended.apply(codec.decode_batch(value))
        except DecodeError as error:
            _log.warning("the record of a batch at %d cannot be read: %s", offset, error)

    def _erased(self, key: str, value: bytes | None) -> None:
        """`batches` says that a batch is deleted for some days only, this topic as long as its lines may come."""
        if value is not None and "/" not in key:
            self._ended.end(key)


def _caller(name: str, model: Model, fleet: BackendPool, doors: Doors) -> Caller:
    return Caller(
        fleet=fleet,
        menu=EndpointProbe(name, fleet, doors.upstream),
        upstream=doors.upstream,
        store=doors.store,
        lines=doors.lines,
        clock=time.time,
        seconds_max=model.timeout_seconds,
    )


def main(settings: Settings, models: list[str] | None = None) -> None:
    """Run the stage until SIGTERM.

    Args:
        settings: All settings.
        models: Names of the models to work for; without it all.
    """
    names = list(settings.models) if models is None else models
    if unknown := [name for name in names if name not in settings.models]:
        raise SystemExit(f"no such model in the settings: {', '.join(unknown)}")
    stage_app.run(settings, "processors", functools.partial(Processors, models=names))
