"""A small batch that ends soon is kept and published only once."""

import asyncio
import random

import pytest
from support.facts import NOW, batch_id, commands, lines
from support.simulated import Simulation

from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.results.state.active_batch import PUBLISH_SECONDS, PUBLISH_SECONDS_MAX
from tidemill.schemas.log.messages import Tick
from tidemill.schemas.log.topics import EXPRESS_LINES_MAX
from tidemill.schemas.resources.batch import Status


class Standing:
    """A partition with a clock that the test moves, and the records that it acknowledged."""

    def __init__(self) -> None:
        self.simulation = Simulation(1, part_bytes=1 << 20)
        self.partition = self.simulation.partition()
        self._gate = AckGate()

    async def handle(self, events):
        for event in events:
            self.simulation.log.events.append(event)
            await self._fold(len(self.simulation.log.events) - 1)

    async def files_written(self):
        """Until the fact that the files are written is on the log, and applied."""
        before = len(self.simulation.log.events)
        while self.partition._background._tasks:
            await asyncio.wait(self.partition._background._tasks)
        for at in range(before, len(self.simulation.log.events)):
            await self._fold(at)

    async def tick(self, seconds):
        self.simulation.now += seconds
        await self.partition.fact(Tick(at=self.simulation.now), lambda: None)

    @property
    def shown(self):
        return [record.batch.status for record in self.simulation.log.published]

    @property
    def under_way(self):
        """Events that are not acknowledged."""
        return len(self._gate)

    async def _fold(self, at):
        await self.simulation.handle(self.partition, self._gate, at)


async def test_a_small_batch_is_published_once():
    """Its whole life is two writes of its state and one record; then nothing is due."""
    standing = Standing()
    events = [*commands(0, 10), *lines(random.Random(1), 0, 10)]
    await standing.handle(events)
    assert (standing.shown, standing.under_way) == ([], 0)
    await standing.files_written()
    assert standing.shown == [Status.COMPLETED]
    assert standing.simulation.tables.bitmaps.changelog == {}
    assert standing.under_way == 0
    assert standing.partition.due_at is None


@pytest.mark.parametrize("known", [1, 2])
async def test_a_small_batch_that_lasts_is_published(known):
    """After half a second, in whatever state."""
    standing = Standing()
    await standing.handle(commands(0, 10)[:known])
    assert standing.partition.due_at == NOW + PUBLISH_SECONDS
    await standing.tick(PUBLISH_SECONDS)
    assert standing.shown == [(Status.VALIDATING, Status.IN_PROGRESS)[known - 1]]
    assert any(key.startswith(batch_id(0).encode()) for key in standing.simulation.tables.states.changelog)


async def test_a_batch_whose_files_take_long_is_published():
    """If the store is unavailable, the batch is shown as finalizing."""
    standing = Standing()
    await standing.handle([*commands(0, 10), *lines(random.Random(1), 0, 10)])
    await standing.tick(PUBLISH_SECONDS)
    assert standing.shown == [Status.FINALIZING]


async def test_a_large_batch_is_published_at_once():
    """Its user sees that it is accepted."""
    standing = Standing()
    await standing.handle(commands(0, EXPRESS_LINES_MAX + 1))
    assert standing.shown == [Status.IN_PROGRESS]


async def test_the_progress_of_a_large_batch_is_published_rarely():
    """A few of its lines after two seconds, one in fifty after half a second."""
    standing = Standing()
    await standing.handle(commands(0, 2 * EXPRESS_LINES_MAX))
    records = list(lines(random.Random(1), 0, 2 * EXPRESS_LINES_MAX))
    await standing.handle(records[:1])
    await standing.tick(PUBLISH_SECONDS)
    assert len(standing.shown) == 1
    await standing.tick(PUBLISH_SECONDS_MAX - PUBLISH_SECONDS)
    assert len(standing.shown) == 2
    await standing.handle(records[1:41])
    assert standing.partition.due_at == standing.simulation.now + PUBLISH_SECONDS
    await standing.tick(PUBLISH_SECONDS)
    assert len(standing.shown) == 3
