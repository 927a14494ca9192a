"""Records whose key is unavailable are held beside their window; no other record waits for them."""

import asyncio
from types import SimpleNamespace

import pytest
from support.waiting import until

from tidemill import retrying
from tidemill.processors.partitions import held_requests
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.held_requests import HeldRequest, HeldRequests
from tidemill.processors.partitions.window import Capacity, PartitionWindow
from tidemill.schemas.log.codec import RequestHead
from tidemill.sealing.wrapping import KeyUnavailable

A, B = (f"batch_{digit * 32}" for digit in "ab")

WHY = "The key of the batch is unavailable: no key."


class Case:
    """A window of five lines, and the records held beside it."""

    def __init__(self):
        self.acked, self.admitted, self.reported = [], [], []
        self.locked = {A}
        handle = SimpleNamespace(ack=self.acked.append, pause=lambda: None, resume=lambda: None)
        self.window = PartitionWindow(handle, Capacity(lines_max=5))
        self.closed = ClosedBatches()
        self.records = HeldRequests(reopen=self.reopen, admit=self.admit, report=self.report, closed=self.closed)

    def hold(self, batch_id, token):
        head = RequestHead(batch_id=batch_id, project="p", first=0, deadline=9, url="/v1/embeddings")
        message = SimpleNamespace(number=token, value=b"sealed")
        self.records.put(HeldRequest(head=head, entry=self.window.admit(token, 1, 6), message=message))

    async def reopen(self, records):
        for held in records:
            await asyncio.sleep(0)
            if held.head.batch_id in self.locked:
                raise KeyUnavailable("no key")
            yield held.head, [b"{}"] * 4

    def admit(self, held, opened):
        self.window.refill(held.entry, len(opened[1]), 10)
        self.admitted.append(held)

    async def report(self, fact):
        self.reported.append((fact.batch_id, *(why.message for why in fact.waiting)))


@pytest.fixture
async def case(monkeypatch):
    monkeypatch.setattr(retrying, "LONGEST_SECONDS", 0.02)
    monkeypatch.setattr(held_requests, "ROOM_SECONDS", 0.01)
    case = Case()
    running = asyncio.create_task(case.records.run())
    yield case
    running.cancel()


async def test_a_batch_waits_for_its_own_key_only(case):
    """The other batch continues; the one without a key reports why, and later continues in order."""
    for token, batch_id in enumerate((A, B, A)):
        case.hold(batch_id, token)
    await until(lambda: len(case.admitted) == 1, "the batch with a key")
    (other,) = case.admitted
    assert (other.head.batch_id, A in case.records) == (B, True)
    case.window.finish(other.entry, 4)
    assert case.acked == []
    await until(lambda: case.reported.count((A, WHY)) >= 2, "two reports")
    assert case.window._capacity.bytes == 0, "without its key, a record keeps only its place in the log"
    assert B not in case.records
    case.locked.clear()
    await until(lambda: len(case.admitted) == 2, "the first record that waited")
    # The window has no room for the second one yet: four lines, and one that stands for it.
    assert len(case.records) == 1
    case.window.finish(case.admitted[1].entry, 4)
    await until(lambda: not len(case.records), "the second record that waited")
    assert [held.message.number for held in case.admitted] == [1, 0, 2]
    await until(lambda: case.reported[-1] == (A,), "the report that the batch waits no more")
    case.window.finish(case.admitted[2].entry, 4)
    assert case.acked == [0, 1, 2]


async def test_records_of_a_closed_batch_finish(case):
    """The batch is not reported any more; records of revoked partitions are forgotten."""
    case.locked.add(B)
    case.hold(A, 0)
    case.hold(B, 1)
    await until(lambda: len(case.reported) >= 2, "reports of both batches")
    case.closed.close(A)
    assert (case.acked, len(case.records)) == ([0], 1)
    case.records.clear()
    case.window.close()
    case.locked.clear()
    await until(lambda: case.reported[-1] == (B,), "the report that the other waits no more")
    assert (A,) not in case.reported
    case.hold(B, 2)
    await until(lambda: not len(case.records), "the next record")
    assert [held.message.number for held in case.admitted] == [2]


async def test_a_fault_of_the_log_is_a_reason_to_wait(case):
    """Whatever fails, the records stay held and are tried again."""
    case.locked.clear()
    reopen, faults = case.records._reopen, iter((RuntimeError("secret"), TimeoutError()))

    def failing(records):
        if (fault := next(faults, None)) is not None:
            raise fault
        return reopen(records)

    case.records._reopen = failing
    case.hold(A, 0)
    await until(lambda: len(case.admitted) == 1, "the record")
    words = "The key of the batch is unavailable: {}."
    assert case.reported[:2] == [(A, words.format("RuntimeError")), (A, words.format("TimeoutError"))]


async def test_held_records_take_no_room_from_themselves(case):
    """More of them than fit came before the key; and another batch does not wait for the room of this one."""
    other = PartitionWindow(SimpleNamespace(ack=lambda _: None, pause=lambda: None, resume=lambda: None))
    case.window._capacity.bytes_max, case.window._capacity.lines_max = 20, 50
    for token in range(8):
        case.hold(A, token)
    assert not case.window.takes_lines
    head = RequestHead(batch_id=B, project="p", first=0, deadline=9, url="/v1/embeddings")
    message = SimpleNamespace(number=8, value=b"sealed")
    case.records.put(HeldRequest(head=head, entry=other.admit(8, 1, 6), message=message))
    case.locked.clear()
    await until(lambda: any(held.head.batch_id == B for held in case.admitted), "the other batch")
    finished: list[HeldRequest] = []

    def are_all_done() -> bool:
        for held in case.admitted:
            if held.head.batch_id == A and held not in finished:
                case.window.finish(held.entry, 4)
                finished.append(held)
        return len(finished) == 8

    await until(are_all_done, "the records that waited")
    assert case.acked == list(range(8))
