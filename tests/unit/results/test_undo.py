"""A record that fails leaves no trace: its retry works as the first attempt, its burial harms no other batch."""

import asyncio
from types import SimpleNamespace

import pytest
from support import result_files
from support.facts import batch_id, commands, grown, lines, stream_facts
from support.result_files import Damage
from support.simulated import Simulation

from tidemill.kafka.partitions.dead_letters import handle_record
from tidemill.results.state import reducer, tables
from tidemill.schemas.jsonl import line
from tidemill.schemas.log import codec, dead_letters, topics
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.messages import DeadLettered
from tidemill.schemas.resources.batch import Status

SEEDS = range(120)
TOTALS = (1, 40, 90)


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch):
    monkeypatch.setattr(tables, "GROUP_PARTS", 2)


class Faulty(Simulation):
    """Handles each event as the stage does; of many the first try fails at some step."""

    def __init__(self, seed):
        super().__init__(seed)
        self.letters = []
        self.injects = True

    async def handle(self, partition, gate, at):
        topic, headers, value = self.log.events[at]
        message = SimpleNamespace(topic=topic, partition=0, offset=at, key=None, value=value, headers=headers)

        async def work():
            partition.active_batches.begin()
            await super(Faulty, self).handle(partition, gate, at)

        if self.injects and self.chance.random() < 0.5:
            self.fuse.faulty, self.fuse.faulty_steps = asyncio.current_task(), self.chance.randint(0, 8)
        try:
            letter = await handle_record(self, message, work, stage="results", undo=partition.batches.undo)
        finally:
            self.fuse.faulty = None
        if letter is not None and (identified := dead_letters.identify_batch(topic, headers, value)) is not None:
            fact = DeadLettered(
                batch_id=identified.batch_id, source=letter.source, reason=letter.reason, at=int(self.now)
            )
            partition.active_batches.begin()
            await partition.dead_lettered(fact, identified.created, ends=not letter.unreadable)
        if letter is not None:
            for done in gate.finish(gate._tickets[-1]):
                self._acked = done + 1

    async def send(self, topic, key, value, *, headers=()):
        assert (topic, dead_letters.decode(headers, value, 0.0).id) == (topics.DEAD.name, key)
        self.letters.append(key)
        return 0


def filled(simulation):
    for number, total in enumerate(TOTALS):
        simulation.store.objects[f"files/in{number}"] = result_files.input_file(total)
    streams = [
        [*commands(number, total), *lines(simulation.chance, number, total)] for number, total in enumerate(TOTALS)
    ]
    simulation.log.events += result_files.interleaved(simulation.chance, streams)
    return simulation


async def test_faults_lose_and_double_nothing():
    """Faults at any step, with crashes at others: each line comes once, and the bill is right."""
    faults = 0
    for seed in SEEDS:
        simulation = filled(Faulty(seed))
        await simulation.run(crashes_max=simulation.chance.randint(0, 5))
        for number, total in enumerate(TOTALS):
            result_files.check(simulation, number, total, Status.COMPLETED)
        assert not simulation.letters
        faults += simulation.fuse.faults
    assert faults > len(SEEDS)


def forged(number, index):
    """A result of a line that another producer of `outcomes` sends."""
    text = line.answered(batch_id(number), index, b'"id-%d"' % index, status=200, request_id="forged", body=b"{}")
    headers = codec.lines_headers(batch_id(number), [LineMark(index=index, size=len(text), failed=False)])
    return (topics.OUTCOMES.name, tuple(headers), text)


@pytest.mark.parametrize("damages", [False, True])
@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("seed", SEEDS[:30])
async def test_a_line_beyond_the_batch_is_a_dead_letter(seed, kind, damages):
    """Also a line before the batch's number of lines; a recovery of parts ignores it too."""
    simulation, total = Faulty(seed), TOTALS[1]
    simulation.injects = False
    damage = Damage(simulation) if damages else None
    simulation.store.objects["files/in0"] = result_files.input_file(total)
    chance = simulation.chance
    if kind == "stream":
        opened, *rest = stream_facts(0, [17, total])
        events = [opened, *grown(chance, rest, lines(chance, 0, total))]
    else:
        events = [*commands(0, total), *lines(chance, 0, total)]
    first = chance.randint(0, len(events) // 3)
    simulation.log.events += [*events[:first], forged(0, total + chance.randint(0, 600)), *events[first:]]
    await simulation.run(crashes_max=chance.randint(0, 3))
    assert set(simulation.letters) == {f"{topics.OUTCOMES.name}/0/{first}"}
    result_files.check(simulation, 0, total, Status.COMPLETED, recovered=damage is not None)


@pytest.mark.parametrize("broken", ["created", "accepted", "lines_max"])
@pytest.mark.parametrize("seed", SEEDS[:10])
async def test_a_record_that_always_fails_is_a_dead_letter_and_shown(monkeypatch, seed, broken):
    """Its batch ends or shows it; the other batches are not affected."""
    whole = getattr(reducer, broken)

    def breaks(state, *rest):
        if state.id == batch_id(1):
            raise ValueError("a fault of ours")
        return whole(state, *rest)

    monkeypatch.setattr(reducer, broken, breaks)
    simulation = filled(Faulty(seed))
    simulation.injects = False
    await simulation.run(crashes_max=simulation.chance.randint(0, 3))
    assert simulation.letters
    for number in (0, 2):
        result_files.check(simulation, number, TOTALS[number], Status.COMPLETED)
    batch = [record.batch for record in simulation.log.published if record.batch.id == batch_id(1)][-1]
    if broken == "lines_max":
        # Its lines came to nothing: it ends with its deadline, and each has its error line.
        assert batch.status is Status.EXPIRED
        assert batch.tidemill.fault.records >= 1
        assert batch.tidemill.fault.source in simulation.letters
        assert batch.tidemill.receipt.lines == batch.tidemill.receipt.errors.lines == TOTALS[1]
    else:
        assert batch.status is Status.FAILED
        assert "ValueError at breaks" in batch.errors.data[0].message


async def test_a_timer_that_fails_stops_one_batch_only(monkeypatch):
    """The others end meanwhile, and the timer is tried again."""
    whole, failing = reducer.overdue, [True]

    def breaks(state, *rest):
        if state.id == batch_id(0) and failing[0]:
            raise ValueError("a fault of ours")
        return whole(state, *rest)

    monkeypatch.setattr(reducer, "overdue", breaks)
    simulation = Faulty(1)
    simulation.injects = False
    for number in (0, 1):
        simulation.store.objects[f"files/in{number}"] = result_files.input_file(5)
        simulation.log.events += commands(number, 5)
    closing = simulation.tables.put_state

    def put_state(state):
        closing(state)
        if state.id == batch_id(1) and state.is_over:
            failing[0] = False

    monkeypatch.setattr(simulation.tables, "put_state", put_state)
    await simulation.run(crashes_max=0)
    assert not failing[0]
    for number in (0, 1):
        result_files.check(simulation, number, 5, Status.EXPIRED)


@pytest.mark.parametrize("has_all", [False, True])
async def test_a_state_kept_before_a_fault_is_published_and_acknowledged_later(monkeypatch, has_all):
    """The table has the state already, so the retry finds nothing new in the record."""
    simulation = Simulation(1)
    simulation.store.objects["files/in0"] = result_files.input_file(2_000)
    partition, acks = simulation.partition(), []
    await partition.load()
    created, accepted = (value for _, _, value in commands(0, 2_000))
    await partition.command(codec.decode_command(created), list)
    await partition.fact(codec.decode_fact(accepted), list)
    simulation.now += 60  # so that the next state is published
    whole, left = partition.batches.publish, [1]

    async def publish(active):
        if left and left.pop():
            raise ValueError("a fault of ours")
        await whole(active)

    monkeypatch.setattr(partition.batches, "publish", publish)
    marks = [LineMark(index=index, size=2, failed=False) for index in range(2_000 if has_all else 100)]
    value = b"{}" * len(marks)
    for _ in range(2):
        partition.active_batches.begin()
        try:
            await partition.lines(batch_id(0), marks, value, lambda: acks.append(1))
        except ValueError:
            partition.batches.undo()
    (active,) = partition.active_batches
    if has_all:
        assert active.state.closed
        assert active.compacting
        assert acks
    else:
        assert (acks, active.waiting_bytes) == ([], len(value))
        await partition.batches.parts.flush(active)
        assert acks == [1]
    partition.abandon()
