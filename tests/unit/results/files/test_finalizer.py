"""Batches with missing or damaged parts still end, or show why they cannot."""

import asyncio

import pytest
from support import result_files
from support.facts import NOW, batch_id, commands, lines
from support.result_files import Damage
from support.simulated import Simulation
from support.waiting import until

from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.results.files import finalizer
from tidemill.results.state import batch_gauges
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import CancelRequested, Tick
from tidemill.schemas.resources.batch import Status
from tidemill.schemas.resources.waiting import Reason

SEEDS = range(60)
TOTAL = 60


@pytest.mark.parametrize("seed", SEEDS)
async def test_lost_parts_are_recovered_from_the_log(seed):
    """With crashes, whatever parts are lost: the same lines, of the same models, and a true receipt."""
    simulation, models = Simulation(seed), result_files.MODELS if seed % 2 else ()
    damage = Damage(simulation)
    simulation.store.objects["files/in0"] = result_files.input_file(TOTAL)
    simulation.log.events += [*commands(0, TOTAL, models), *lines(simulation.chance, 0, TOTAL, models)]
    await simulation.run(crashes_max=simulation.chance.randint(0, 6))
    assert damage.keys
    result_files.check(simulation, 0, TOTAL, Status.COMPLETED, recovered=True, models=models)
    assert result_files.final(simulation, 0).tidemill.waiting == ()


@pytest.mark.parametrize("seed", SEEDS)
async def test_lines_that_came_too_late_stay_out(seed):
    """The log has results from after the end of a cancelled batch: a recovery ignores them."""
    simulation = Simulation(seed)
    damage = Damage(simulation)
    simulation.store.objects["files/in0"] = result_files.input_file(TOTAL)
    results = list(lines(simulation.chance, 0, TOTAL))
    kept = len(results) // 2
    cancel = CancelRequested(batch_id=batch_id(0), at=NOW + 5)
    end = Tick(at=NOW + 100)
    simulation.log.events += [
        *commands(0, TOTAL),
        *results[:kept],
        (topics.COMMANDS.name, (), codec.encode(cancel)),
        (topics.OUTCOMES.name, ((codec.KIND, b"tick"),), codec.encode(end)),
        *results[kept:],
    ]
    await simulation.run(crashes_max=simulation.chance.randint(0, 6))
    output, errors = result_files.check(simulation, 0, TOTAL, Status.CANCELLED, recovered=bool(damage.keys))
    answered = {
        mark.index for _, headers, value in results[:kept] for mark in codec.lines_marks(headers, len(value))[1]
    }
    run = {int(entry["custom_id"][3:]) for entry in output + errors if entry["response"] is not None}
    assert run == answered


async def test_a_batch_that_cannot_be_finished_shows_why_and_goes_on_later(monkeypatch):
    """A part and its lines in the log are gone: the batch shows it until the part is put back."""
    monkeypatch.setattr(finalizer, "LONGEST_SECONDS", 0.01)
    simulation = Simulation(3)
    damage = Damage(simulation)
    simulation.store.objects["files/in0"] = result_files.input_file(TOTAL)
    events = [*commands(0, TOTAL), *lines(simulation.chance, 0, TOTAL)]
    simulation.log.events += events
    partition, gate = simulation.partition(), AckGate()
    await partition.load()
    for at in range(len(events)):
        await simulation.handle(partition, gate, at)
    simulation.log.events[2:] = [(topics.COMMANDS.name, (), b"")] * (len(events) - 2)
    await until(
        lambda: [active for active in partition.active_batches if active.blockage.shown], "a batch that is blocked"
    )
    assert +batch_gauges.stalled([partition.active_batches]) == {"files": 1}
    assert partition.due_at is not None
    await partition.fact(Tick(at=partition.due_at, writer=partition.owner.writer), lambda: None)
    shown = simulation.log.published[-1].batch
    assert shown.status is Status.FINALIZING
    (key, *_) = sorted(damage.keys[shown.id])
    (waiting,) = shown.tidemill.waiting
    assert waiting.reason is Reason.FILES
    assert "parts/" in waiting.message
    assert "of its lines are no longer in the log" in waiting.message
    simulation.store.objects |= damage.keys[shown.id]
    await until(lambda: len(simulation.log.events) > len(events), "the fact that ends the batch")
    await simulation.handle(partition, gate, len(events))
    await asyncio.gather(*partition._background._tasks)
    result_files.check(simulation, 0, TOTAL, Status.COMPLETED)
    assert simulation.log.published[-1].batch.tidemill.waiting == ()
    assert key not in simulation.store.objects
