"""Records whose key is not to be had: they wait beside their lane, and no other record waits for them."""

import asyncio
from types import SimpleNamespace

import pytest
from support.waiting import until

from tidemill.processors.partitions import held_records
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.held_records import Held, HeldRecords
from tidemill.processors.partitions.window import PartitionWindow, Window
from tidemill.schemas.log.codec import RequestHead
from tidemill.sealing.wrapping import KeyUnavailable

A, B = (f"batch_{digit * 32}" for digit in "ab")

WHY = "The key of the batch cannot be had: no key."


class Case:
    """A lane of five lines, and what waits beside it."""

    def __init__(self):
        self.acked, self.admitted, self.told = [], [], []
        self.lacking = {A}
        self.now = 0.0
        tap = SimpleNamespace(ack=self.acked.append, pause=lambda: None, resume=lambda: None)
        self.lane = PartitionWindow(tap, Window(lines_max=5))
        self.ended = ClosedBatches()
        self.aside = HeldRecords(
            reopened=self.reopened, admit=self.admit, tell=self.tell, ended=self.ended, monotonic=lambda: self.now
        )

    def hold(self, batch_id, token):
        head = RequestHead(batch_id=batch_id, project="p", first=0, deadline=9, url="/v1/embeddings")
        self.aside.put(Held(head=head, entry=self.lane.admit(token, 1, 0), message=token), "no key")

    async def reopened(self, records):
        for held in records:
            await asyncio.sleep(0)
            if held.head.batch_id in self.lacking:
                raise KeyUnavailable("no key")
            yield held.head, [b"{}"] * 4

    def admit(self, held, opened):
        self.lane.refill(held.entry, len(opened[1]), 10)
        self.admitted.append(held)

    async def tell(self, fact):
        self.told.append((fact.batch_id, *(why.message for why in fact.waiting)))


@pytest.fixture
async def case(monkeypatch):
    monkeypatch.setattr(held_records, "TRY_SECONDS", 0.01)
    monkeypatch.setattr(held_records, "ROOM_SECONDS", 0.01)
    case = Case()
    running = asyncio.create_task(case.aside.run())
    yield case
    running.cancel()


async def test_each_batch_waits_for_itself(case):
    """One whose key is there goes on at once; the other is told why not, and goes on in order."""
    for token, batch_id in enumerate((A, B, A)):
        case.hold(batch_id, token)
    await until(lambda: len(case.admitted) == 1, "the batch that can go on")
    (other,) = case.admitted
    assert (other.head.batch_id, case.aside.why(A), case.aside.why(B)) == (B, "no key", None)
    case.lane.done(other.entry, 4)
    assert case.acked == []
    await until(lambda: (A, WHY) in case.told, "the batch that is told")
    case.now += held_records.TELL_SECONDS
    await until(lambda: case.told.count((A, WHY)) == 2, "that it is told again")
    case.lacking.clear()
    await until(lambda: len(case.admitted) == 2, "the first that has waited")
    # The lane has no room for the lines of the other yet: these four, and one that stands for them.
    assert len(case.aside) == 1
    case.lane.done(case.admitted[1].entry, 4)
    await until(lambda: not case.aside, "the other")
    assert [held.message for held in case.admitted] == [1, 0, 2]
    assert case.told[-1] == (A,)
    case.lane.done(case.admitted[2].entry, 4)
    assert case.acked == [0, 1, 2]


async def test_what_is_over_waits_no_more(case):
    """Its records are done; those of partitions that are gone are forgotten."""
    case.hold(A, 0)
    case.hold(B, 1)
    case.lacking.add(B)
    await until(lambda: len(case.told) == 2, "both to be told")
    case.ended.end(A)
    assert (case.acked, len(case.aside)) == ([0], 1)
    case.aside.clear()
    case.lane.close()
    case.lacking.clear()
    case.hold(A, 2)
    await until(lambda: not case.aside, "the next one")
    assert [held.message for held in case.admitted] == [2]
