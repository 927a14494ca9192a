"""A key, result, part or file that is unavailable for one batch holds up no other."""

import asyncio
from collections import defaultdict

import pytest
from support import result_files
from support.facts import batch_id
from support.simulated import Simulation
from support.waiting import until

from tidemill import retrying
from tidemill.kafka.partitions import held_records
from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.kafka.partitions.held_records import HeldRecords, Unavailable
from tidemill.results import batches
from tidemill.results.files import part_writer
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import CancelRequested, Tick
from tidemill.schemas.resources.batch import Status
from tidemill.schemas.resources.waiting import Reason
from tidemill.sealing.wrapping import KeyUnavailable

TOTAL = 40
A, B = batch_id(0), batch_id(1)


class Refusing(Simulation):
    """A partition on a store that refuses the objects of some batches."""

    def __init__(self, seed):
        super().__init__(seed)
        self.refused = set()
        self.fault = PermissionError(13, "Permission denied", "/secret/part")
        self.late = {}
        write, read = self.store.write, self.store.read

        async def refusing_write(key, chunks):
            if any(name in key for name in self.refused):
                # The object may still appear later.
                self.late[key] = b"".join([chunk async for chunk in chunks])
                raise self.fault
            return await write(key, chunks)

        async def refusing_read(key, start=0, end=None):
            if any(name in key for name in self.refused):
                raise OSError("S3 answered AccessDenied")
            async for chunk in read(key, start, end):
                yield chunk

        self.store.write, self.store.read = refusing_write, refusing_read

    async def feed(self, partition, gate, *events):
        """Fold more events, and whatever they lead to."""
        at = len(self.log.events)
        self.log.events += events
        while at < len(self.log.events):
            await self.handle(partition, gate, at)
            at += 1
            if at == len(self.log.events):
                await asyncio.sleep(0.01)

    async def tick(self, partition, gate, seconds=0.0):
        """Let time pass, and send a tick."""
        self.now += seconds
        tick = Tick(at=self.now)
        await self.feed(partition, gate, (topics.OUTCOMES.name, ((codec.KIND, b"tick"),), codec.encode(tick)))

    def shown(self, number):
        """A batch as it was published last."""
        found = [record.batch for record in self.log.published if record.batch.id == batch_id(number)]
        return found[-1] if found else None


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 1.0)
    monkeypatch.setattr(retrying, "LONGEST_SECONDS", 1.0)
    monkeypatch.setattr(retrying, "JITTER", 0.0)


async def test_a_part_that_was_refused_lands_late():
    """A part that appears after its refusal replaces no other, and is never read."""
    simulation = Refusing(5)
    (one,) = result_files.filled(simulation, TOTAL, 0)
    partition, gate = simulation.partition(), AckGate()
    await partition.load()
    simulation.refused.add(f"parts/{A}")
    await simulation.feed(partition, gate, *one[:6])
    await simulation.tick(partition, gate, 20)
    assert simulation.late
    await simulation.feed(partition, gate, *one[6:9])
    simulation.refused.clear()
    await simulation.tick(partition, gate, 20)
    simulation.store.objects |= simulation.late
    await simulation.feed(partition, gate, *one[9:])
    result_files.check(simulation, 0, TOTAL, Status.COMPLETED)
    partition.abandon()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("reason", [Reason.STORE, Reason.KEY])
async def test_a_store_that_refuses_the_parts_of_one_batch(seed, reason, monkeypatch):
    """The other batch ends; the first shows the reason, outlives its deadline, and loses nothing."""
    monkeypatch.setattr(batches, "AT_ONCE_BYTES_MAX", 0)
    simulation = Refusing(seed)
    if reason is Reason.KEY:
        simulation.fault = KeyUnavailable("Permission denied")
    streams = result_files.filled(simulation, TOTAL, 0, 1)
    simulation.refused.add(f"parts/{A}")
    partition, gate = simulation.partition(), AckGate()
    await partition.load()
    await simulation.feed(partition, gate, *result_files.interleaved(simulation.chance, streams))
    assert simulation.shown(1).status is Status.COMPLETED
    await simulation.tick(partition, gate, 5)
    simulation.now = simulation.shown(0).expires_at + 100.0
    await simulation.tick(partition, gate)
    shown = simulation.shown(0)
    assert shown.status is Status.IN_PROGRESS
    (why,) = shown.tidemill.waiting
    assert (why.reason, why.message) == (
        reason, "Results of the batch cannot be stored: Permission denied.",
    )  # fmt: skip
    assert partition.due_at > simulation.now, "else it would be looked at all the time"
    simulation.refused.clear()
    simulation.store.objects |= simulation.late
    for _ in range(4):
        await simulation.tick(partition, gate, 10)
    for number in (0, 1):
        result_files.check(simulation, number, TOTAL, Status.COMPLETED)
    assert simulation.shown(0).tidemill.waiting == ()
    assert simulation._acked == len(simulation.log.events)
    partition.abandon()


async def test_files_that_cannot_be_written_hold_up_no_compaction():
    """With a bound of one compaction at a time."""
    simulation = Refusing(1)
    one, other = result_files.filled(simulation, TOTAL, 0, 1)
    partition, gate = simulation.partition(), AckGate()
    await partition.load()
    simulation.refused.add(f"parts/{A}/")
    write_only = simulation.store.write

    async def write(key, chunks):
        refused, simulation.refused = simulation.refused, set()
        try:
            return await write_only(key, chunks)
        finally:
            simulation.refused = refused

    simulation.store.write = write
    await simulation.feed(partition, gate, *one)
    await until(
        lambda: [active for active in partition.active_batches if active.blockage.shown], "a batch that says why"
    )
    await simulation.feed(partition, gate, *other)
    assert simulation.shown(1).status is Status.COMPLETED
    await simulation.tick(partition, gate, 10)
    (why,) = simulation.shown(0).tidemill.waiting
    assert "S3 answered AccessDenied" in why.message
    partition.abandon()


async def test_at_a_bound_the_partition_waits(monkeypatch):
    """The partition waits for the store, and its memory is bounded."""
    monkeypatch.setattr(part_writer, "REFUSED_BYTES_MAX", 3_000)
    monkeypatch.setattr(part_writer, "SHARE_BYTES_MIN", 0)
    monkeypatch.setattr(retrying, "LONGEST_SECONDS", 0.01)
    simulation = Refusing(2)
    (one,) = result_files.filled(simulation, TOTAL, 0)
    simulation.refused.add(A)
    simulation.monotonic = asyncio.get_running_loop().time
    partition, gate = simulation.partition(), AckGate()
    await partition.load()
    feeding = asyncio.create_task(simulation.feed(partition, gate, *one))
    await until(lambda: partition.batches.parts.refused_bytes > 3_000, "the bound")
    held = partition.batches.parts.refused_bytes
    await until(lambda: next(iter(partition.active_batches)).blockage.refusals > 5, "more tries")
    assert partition.batches.parts.refused_bytes == held
    simulation.refused.clear()
    await feeding
    await until(lambda: simulation.shown(0).status is Status.COMPLETED or simulation.tick(partition, gate), "end")
    partition.abandon()


@pytest.mark.parametrize("ending", [Status.EXPIRED, Status.CANCELLED])
async def test_lines_that_cannot_be_read_wait(ending):
    """The deadline does not discard results that exist; a cancellation does."""
    simulation = Refusing(3)
    (one,) = result_files.filled(simulation, TOTAL, 0)
    partition, gate = simulation.partition(), AckGate()
    await partition.load()
    await simulation.feed(partition, gate, *one[:-1])
    await simulation.tick(partition, gate, 5)
    partition.batches.unread(A, Unavailable("S3 answered AccessDenied"), simulation.now + 5)
    if ending is Status.CANCELLED:
        cancel = CancelRequested(batch_id=A, at=int(simulation.now))
        await simulation.feed(partition, gate, (topics.COMMANDS.name, (), codec.encode(cancel)))
    simulation.now = simulation.shown(0).expires_at + 100.0
    await simulation.tick(partition, gate)
    is_waiting = simulation.shown(0).status is Status.IN_PROGRESS
    assert is_waiting == (ending is Status.EXPIRED)
    partition.batches.unread(A, None, 0.0)
    await simulation.tick(partition, gate)
    result_files.check(simulation, 0, TOTAL, ending)
    partition.abandon()


class Records:
    """Records of two batches; those of one cannot be read for a while."""

    def __init__(self):
        self.now, self.done, self.reports, self.unread = 0.0, [], [], {A}
        self.tries = defaultdict(int)
        self.aside = HeldRecords(self.report, lambda: self.now)

    def report(self, batch_id, why, again_at):
        self.reports.append((batch_id, why and str(why), again_at))

    async def put(self, name, of, size=1):
        async def work():
            self.tries[name] += 1
            if of in self.unread:
                raise Unavailable("no key")
            self.done.append(name)

        await self.aside.run_or_hold(of, work, size)


async def test_records_wait_in_their_order():
    """Records of other batches, and of none, go on."""
    records = Records()
    assert records.aside.due_in is None
    for name, of in (("a1", A), ("b1", B), ("a2", A), ("none", None), ("b2", B)):
        await records.put(name, of)
    assert records.done == ["b1", "none", "b2"]
    assert records.tries["a2"] == 0
    assert records.reports == [(A, "no key", 1.0)]
    assert records.aside.due_in == 1.0
    records.now = 1.0
    await records.aside.retry_due()
    assert (records.tries["a1"], records.reports[-1]) == (2, (A, "no key", 2.0))
    records.unread.clear()
    await records.put("b3", B)
    assert records.done[-1] == "b3"
    records.now = 2.0
    await records.put("a3", A)
    assert records.done[-3:] == ["a1", "a2", "a3"]
    assert (records.reports[-1], records.aside.due_in) == ((A, None, 0.0), None)


async def test_at_a_bound_records_wait_for_the_store(monkeypatch):
    """Their number and their bytes are bounded."""
    monkeypatch.setattr(retrying, "LONGEST_SECONDS", 0.01)
    monkeypatch.setattr(held_records, "BYTES_MAX", 10)
    records = Records()
    records.aside._monotonic = asyncio.get_running_loop().time
    await records.put("a1", A, 10)
    waiting = asyncio.create_task(records.put("a2", A))
    await until(lambda: records.tries["a1"] > 5, "more tries")
    assert not waiting.done()
    records.unread.clear()
    await waiting
    assert records.done == ["a1", "a2"]
