"""Large results and a store that refuses them."""

import asyncio
from types import SimpleNamespace

import pytest
from support.waiting import until

from tidemill import retrying
from tidemill.processors.outcomes.batching import LINE_BYTES_MAX, ResultBatcher
from tidemill.processors.outcomes.sending import ResultSender
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.schemas.log.codec import LineMark

TEXT = b"x" * (LINE_BYTES_MAX + 1)


class World:
    """A sender between a store and a log."""

    def __init__(self):
        self.is_away, self.writes, self.sent, self.arrived = True, 0, [], []
        self.closed = ClosedBatches(grace_seconds=0.0)
        pool = SimpleNamespace(model="m", line_counts=SimpleNamespace(add=lambda _: None))
        self.sender = ResultSender(pool, self, self, ResultBatcher(), self.arrived.extend, closed=self.closed)

    async def write(self, key, chunks):
        del key
        [chunk async for chunk in chunks]
        self.writes += 1
        if self.is_away:
            raise OSError(5, "Input/output error")

    async def send(self, batch_id, value, headers):
        del value, headers
        self.sent.append(batch_id)

    def put(self, batch_id):
        line = SimpleNamespace(head=SimpleNamespace(batch_id=batch_id), index=0)
        self.sender.send(line, TEXT, LineMark(0, len(TEXT), failed=False), more=False)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Those between attempts, which take no time."""
    found, sleep = [], asyncio.sleep

    def pause(seconds):
        found.append(seconds)
        return sleep(0)

    monkeypatch.setattr(asyncio, "sleep", pause)
    yield found
    monkeypatch.undo()


async def test_a_store_that_is_away_is_asked_less_and_less(pauses, caplog):
    """The log of the process says so once, for all lines."""
    world = World()
    world.put("batch_1")
    world.put("batch_2")
    await until(lambda: world.writes > 40, "the attempts")
    assert max(pauses) > retrying.LONGEST_SECONDS * (1 - retrying.JITTER)
    assert len(set(pauses)) > 20
    assert len(caplog.records) == 1
    assert "Input/output error" in caplog.text
    world.is_away = False
    await until(lambda: len(world.sent) == 2, "the results")
    assert len(world.arrived) == 2
    await world.sender.close()


async def test_a_result_of_a_closed_batch_is_dropped():
    """It is of no use any more, and its bytes are free; one of a batch in its grace is not."""
    world = World()
    world.put("batch_1")
    await until(lambda: world.writes > 1, "the attempts")
    world.closed.close("batch_1", 5.0)
    count = world.writes
    await until(lambda: world.writes > count + 1, "the attempts")
    assert not world.arrived
    world.closed.close("batch_1")
    await until(lambda: world.arrived, "the end")
    assert (world.sent, world.sender._bytes) == ([], 0)
    await world.sender.close()
