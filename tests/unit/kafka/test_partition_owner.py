"""Partition owners: one call of the stage at a time, a bounded queue, and a bounded hand-over."""

import asyncio
import contextvars
import gc
import weakref
from contextlib import suppress

import pytest
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill import tasks
from tidemill.kafka.partitions import owner as partition_owner
from tidemill.kafka.partitions.owner import Bounds, PartitionOwners, Record

EVENT = contextvars.ContextVar("event")
BOUNDS = Bounds(records=3, bytes=100, lines=10, records_per_call=2)


class Stage:
    """A stage's part of a partition, which waits for `go_on`."""

    def __init__(self, number):
        self.number = number
        self.calls, self.groups, self.events = [], [], []
        self.go_on = asyncio.Event()
        self.due = False
        self.fault = None

    def start(self):
        self.calls.append("start")

    async def load(self):
        self.calls.append("load")

    async def handle(self, records):
        self.groups.append([record.offset for record in records])
        self.events.append(EVENT.get()().place)
        await self.go_on.wait()
        if self.fault is not None:
            raise self.fault
        for record in reversed(records):
            record.ack()

    def is_due(self):
        return self.due

    async def tick(self):
        self.due = False
        self.events.append(EVENT.get()().place)
        self.calls.append("tick")

    async def leave(self):
        self.calls.append("leave")

    def abandon(self):
        self.calls.append("abandon")


class Event:
    """As Faust has it, with a weak reference in the context."""

    def __init__(self, topic, partition, offset, acked):
        self.topic, self.place, self._acked = topic, (partition, offset), acked

    def ack(self):
        self._acked.append((self.topic, self.place[1]))


class World:
    """Owners, and the records that they have acknowledged."""

    def __init__(self):
        self.stages, self.acked, self.crashes = {}, [], []
        self.owners = PartitionOwners(self._make, BOUNDS, crash=self._crash)

    async def put(self, offset, *, partition=0, topic="t", value=b"x"):
        event = Event(topic, partition, offset, self.acked)
        EVENT.set(weakref.ref(event))
        record = Record(
            topic=topic, partition=partition, offset=offset, key=b"k", value=value, headers=(), timestamp=offset
        )
        await self.owners.put(record, event.ack)

    def _make(self, number):
        stage = self.stages[number] = Stage(number)
        return stage

    async def _crash(self, error):
        self.crashes.append(error)


@pytest.fixture
def world():
    return World()


async def test_records_are_handled_and_acknowledged_in_order(world):
    """Topics share an owner; the first event stays in the worker's context, also for timers."""
    for offset in range(2):
        await world.put(offset)
    await world.put(0, topic="u")
    stage = world.stages[0]
    assert world.owners.oldest() == 0
    stage.go_on.set()
    await until(lambda: len(world.acked) == 3, "three acknowledgements")
    assert world.acked == [("t", 0), ("t", 1), ("u", 0)]
    assert world.owners.oldest() is None
    gc.collect()
    watching = asyncio.create_task(world.owners.run_timers())
    stage.due = True
    await until(lambda: "tick" in stage.calls, "a tick")
    watching.cancel()
    assert set(stage.events) == {(0, 0)}
    assert stage.calls == ["load", "tick"]


@pytest.mark.parametrize(("value", "count"), [(b"x", 3), (b"x" * 60, 2), (b"\n" * 6, 2)])
async def test_at_a_bound_the_consumer_waits_for_the_partition(world, value, count):
    """Only for this partition; it continues once the stage has taken some records."""
    await world.put(0)
    await until(lambda: world.stages[0].groups, "the first record in hand")
    putting = [asyncio.create_task(world.put(offset, value=value)) for offset in range(1, count + 1)]
    _, waiting = await asyncio.wait(putting, timeout=0.05)
    assert waiting == {putting[-1]}
    await world.put(0, partition=1)
    world.stages[0].go_on.set()
    await asyncio.wait_for(asyncio.gather(*waiting), WAIT_SECONDS_MAX)


async def test_a_revoked_partition_finishes_the_records_in_hand(world):
    """The next owner reads the rest again, and a new assignment starts anew."""
    for offset in range(2):
        await world.put(offset)
    stage = world.stages[0]
    await until(lambda: stage.groups, "the first records in hand")
    stage.go_on.set()
    await world.owners.leave([0, 7])
    assert stage.calls[-2:] == ["leave", "abandon"]
    assert not world.owners.works
    world.owners.assign([0])
    assert world.stages[0] is not stage
    assert world.stages[0].calls == ["start"]


async def test_a_hand_over_has_a_bound(world, monkeypatch):
    """The owner cancels a stage that does not finish, and then abandons it."""
    monkeypatch.setattr(partition_owner, "DRAIN_SECONDS_MAX", 0.01)
    for offset in range(3):
        putting = asyncio.create_task(world.put(offset))
    await until(lambda: world.stages.get(0) and world.stages[0].groups, "the first records in hand")
    await world.owners.leave([0])
    await putting
    assert world.stages[0].calls == ["load", "abandon"]
    assert not world.acked


async def test_a_worker_that_does_not_end_ends_the_process(world, monkeypatch):
    """The group would wait for it, and the process would hold back its writes until then."""
    monkeypatch.setattr(partition_owner, "DRAIN_SECONDS_MAX", 0.01)
    monkeypatch.setattr(tasks, "CANCEL_SECONDS_MAX", 0.01)
    await world.put(0)
    await until(lambda: world.stages[0].groups, "the record in hand")
    stage, released = world.stages[0], asyncio.Event()

    class Deaf(asyncio.Event):
        async def wait(self):
            while not released.is_set():
                with suppress(asyncio.CancelledError):
                    await released.wait()

    await world.put(1)
    stage.go_on.set()
    stage.go_on = Deaf()
    await until(lambda: len(stage.groups) == 2, "the second record in hand")
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await world.owners.leave([0])
    finally:
        released.set()
    assert world.crashes
    assert stage.calls[-1] == "abandon"


@pytest.mark.parametrize("fault", [ValueError("a fault of ours"), asyncio.CancelledError()])
async def test_a_fault_ends_the_process(world, fault):
    """State of unknown correctness is not used, and no partition stops silently."""
    await world.put(0)
    stage = world.stages[0]
    stage.fault = fault
    stage.go_on.set()
    await until(lambda: world.crashes, "the end of the process")
    await world.owners.leave([0])
    assert not world.acked
