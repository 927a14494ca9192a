"""A small batch that ends soon is kept and published only once."""

import asyncio
import dataclasses
import random
from decimal import Decimal

import pytest
from support.facts import NOW, batch_id, commands, lines
from support.results_limits import file_rules
from support.simulated import Simulation
from support.waiting import until

from tidemill import retrying
from tidemill.configuration.catalog import PriceError
from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.results.files import finalizer
from tidemill.results.state.active_batch import PUBLISH_SECONDS, PUBLISH_SECONDS_MAX
from tidemill.schemas.log.messages import Stalled, Tick
from tidemill.schemas.log.topics import EXPRESS_LINES_MAX
from tidemill.schemas.resources.batch import Status
from tidemill.schemas.resources.bill import Tariff
from tidemill.schemas.resources.waiting import Reason, Waiting


class Standing:
    """A partition with a clock that the test moves, and the records that it acknowledged."""

    def __init__(self, **limits) -> None:
        self.simulation = Simulation(1, part_bytes=1 << 20)
        self.simulation._limits = dataclasses.replace(self.simulation._limits, **limits)
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
            await self.partition.settle()
        for at in range(before, len(self.simulation.log.events)):
            await self._fold(at)

    async def tick(self, seconds):
        self.simulation.now += seconds
        await self.partition.fact(Tick(at=self.simulation.now, writer=self.partition.owner.writer), lambda: None)

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
    assert (standing.shown, standing.under_way) == ([], len(events))
    await standing.files_written()
    assert standing.shown == [Status.COMPLETED]
    assert len(standing.simulation.log.events) == len(events), "no fact passes the log"
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


@pytest.mark.parametrize("seconds", [0.1, PUBLISH_SECONDS_MAX])
async def test_a_completed_batch_does_not_say_that_its_lines_wait(seconds):
    """A server was down, and all lines ended before the report that takes the reason back."""
    standing = Standing()
    await standing.handle(commands(0, 10))
    await standing.tick(PUBLISH_SECONDS_MAX)
    why = Waiting(reason=Reason.SERVER_UNREACHABLE, lines=10, message="x", since=NOW)
    await standing.partition.fact(
        Stalled(batch_id=batch_id(0), source="p0", number=1, waiting=(why,), hold_seconds=60), list
    )
    assert standing.simulation.log.published[-1].batch.tidemill.waiting == (why,)
    standing.simulation.now += seconds
    await standing.handle(lines(random.Random(1), 0, 10))
    await standing.files_written()
    assert standing.shown[-1] is Status.COMPLETED
    assert standing.simulation.log.published[-1].batch.tidemill.waiting == ()


async def test_lines_that_went_into_a_part_before_the_files_are_written():
    """The batch then ends as a large one does."""
    standing = Standing()
    await standing.handle([*commands(0, 10), *lines(random.Random(1), 0, 10)])
    (active,) = standing.partition.active_batches
    assert await standing.partition.batches.parts.flush(active)
    await standing.files_written()
    await standing.tick(1)
    for _ in ("the files", "the parts that nothing needs any more"):
        await standing.files_written()
    assert standing.shown[-1] is Status.COMPLETED
    assert standing.under_way == 0
    assert not [key for key in standing.simulation.store.objects if key.startswith("parts/")]


async def test_lines_that_go_into_a_part_between_the_two_files():
    """Both files are complete, and the part is removed."""
    standing = Standing()
    store, (write, flush) = standing.simulation.store, (standing.simulation.store.write, [])

    async def slow(key, chunks):
        size = await write(key, chunks)
        if key.startswith("files/") and not flush:
            flush.append(key)
            assert await standing.partition.batches.parts.flush(next(iter(standing.partition.active_batches)))
        return size

    store.write = slow
    await standing.handle([*commands(0, 10), *lines(random.Random(1), 0, 10)])
    await standing.files_written()
    assert flush
    receipt = standing.simulation.log.published[-1].batch.tidemill.receipt
    assert (receipt.lines, receipt.output.lines, receipt.errors.lines, receipt.missing) == (10, 9, 1, 0)
    await standing.files_written()
    assert not [key for key in store.objects if key.startswith("parts/")]
    assert standing.under_way == 0


@pytest.mark.parametrize("place", ["the files", "the row that names them"])
async def test_a_fault_on_the_short_way_leaves_the_long_one(place):
    """The batch then ends as a large one does."""
    standing = Standing()
    await standing.handle([*commands(0, 10), *lines(random.Random(1), 0, 10)])
    writing = next(iter(standing.partition._background._tasks))
    standing.simulation.fuse.faulty = writing if place == "the files" else asyncio.current_task()
    await standing.files_written()
    assert (standing.simulation.fuse.faults, standing.shown) == (1, [])
    await standing.tick(1)
    for _ in ("the files", "the parts that nothing needs any more"):
        await standing.files_written()
    assert standing.shown[-1] is Status.COMPLETED
    assert standing.under_way == 0


@pytest.mark.parametrize("is_large", [False, True])
async def test_a_batch_waits_for_a_price_that_cannot_be_read(is_large, monkeypatch):
    """It says so, shows its usage without a cost, and ends with the price that is set then."""
    monkeypatch.setattr(retrying, "LONGEST_SECONDS", 0.01)
    monkeypatch.setattr(finalizer, "LONGEST_SECONDS", 0.01)
    prices = []

    def tariff_of(*_):
        if not prices:
            raise PriceError("the price of the model m cannot be read (no number)")
        return prices[0]

    standing = Standing(files=file_rules(tariff_of=tariff_of))
    results = [*lines(random.Random(1), 0, 10)]
    await standing.handle([*commands(0, 10), *results[:-1]])
    await standing.tick(PUBLISH_SECONDS)
    progress = standing.simulation.log.published[-1].batch.tidemill.progress
    assert progress.usage.total_tokens > 0
    assert progress.cost is None
    (active,) = standing.partition.active_batches
    if is_large:
        assert await standing.partition.batches.parts.flush(active)
    await standing.handle(results[-1:])
    await until(lambda: active.blockage.shown, "a batch that is blocked")
    await standing.tick(PUBLISH_SECONDS_MAX)
    shown = standing.simulation.log.published[-1].batch
    (waiting,) = shown.tidemill.waiting
    assert waiting.reason is Reason.FILES
    assert "the price of the model m cannot be read (no number)" in waiting.message
    written = [key for key in standing.simulation.store.objects if key.startswith("files/file-")]
    assert written == [], "no file is written in vain"
    prices.append(Tariff(input_per_million=Decimal(1), output_per_million=Decimal(1)))
    for _ in ("a batch in memory", "one whose lines went into a part meanwhile", "its files"):
        await standing.files_written()
        await standing.tick(1)
    ended = standing.simulation.log.published[-1].batch
    assert ended.status is Status.COMPLETED
    assert ended.tidemill.cost.total == Decimal(ended.usage.total_tokens) / 1_000_000


async def test_a_batch_whose_files_take_long_is_published():
    """If the store is unavailable, the batch is shown as at work, with all its lines."""
    standing = Standing()
    await standing.handle([*commands(0, 10), *lines(random.Random(1), 0, 10)])
    await standing.tick(PUBLISH_SECONDS)
    assert standing.shown == [Status.IN_PROGRESS]
    counts = standing.simulation.log.published[-1].batch.request_counts
    assert counts.completed + counts.failed == 10


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
