"""Results under crashes: wherever it breaks off, a batch ends with each line once and a true receipt."""

import itertools
from dataclasses import replace

import pytest
from support.facts import NOW, batch_id, commands, lines
from support.result_files import MODELS, check, file_of, final, input_file, interleaved
from support.simulated import Simulation

from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import CancelRequested, DeleteRequested, Rejected
from tidemill.schemas.resources.batch import BatchError, Status

SEEDS = range(150)


@pytest.mark.parametrize("seed", SEEDS)
async def test_crashes_lose_and_double_nothing(seed):
    """Invariants 1 to 4, with crashes at any await and the disk lost at half of them."""
    simulation = Simulation(seed)
    totals, of = [1, 40, 90], [(), MODELS, ()]
    for number, total in enumerate(totals):
        simulation.store.objects[f"files/in{number}"] = input_file(total)
    simulation.log.events += interleaved(
        simulation.chance,
        [
            [*commands(number, total, of[number]), *lines(simulation.chance, number, total, of[number])]
            for number, total in enumerate(totals)
        ],
    )
    await simulation.run(crashes_max=simulation.chance.randint(0, 12))
    for number, total in enumerate(totals):
        _, errors = check(simulation, number, total, Status.COMPLETED, models=of[number])
        assert len(errors) == len([index for index in range(total) if index % 7 == 3])


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("crashes", [1, 2])
async def test_small_batches_end_wherever_the_process_crashes(others, crashes):
    """At each await of their lives, alone and together: each batch is shown once it is over, billed once."""
    for step in itertools.count(1):
        simulation = Simulation(step, part_bytes=1 << 20)
        numbers = range(1 + others)
        simulation.log.events += interleaved(
            simulation.chance,
            [[*commands(number, 10), *lines(simulation.chance, number, 10)] for number in numbers],
        )
        await simulation.run(crashes_max=crashes, crash_at=step)
        for number in numbers:
            check(simulation, number, 10, Status.COMPLETED)
        if simulation.crashes == 0:
            assert step > 10, "the crashes came in none of the steps"
            return


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("status", [Status.CANCELLED, Status.EXPIRED])
async def test_lines_that_were_not_run_get_error_lines(seed, status):
    """A cancelled or expired batch has all its lines in its two files."""
    simulation = Simulation(seed)
    total, models = 60, MODELS if seed % 2 else ()
    simulation.store.objects["files/in0"] = input_file(total)
    results = list(lines(simulation.chance, 0, total, models))
    simulation.chance.shuffle(results)
    events = [*commands(0, total, models), *results]
    kept = simulation.chance.randint(2, len(events) - 8)
    simulation.log.events += events[:kept]
    if status is Status.CANCELLED:
        cancel = CancelRequested(batch_id=batch_id(0), at=NOW + 5)
        simulation.log.events.append((topics.COMMANDS.name, (), codec.encode(cancel)))
    await simulation.run(crashes_max=simulation.chance.randint(0, 6))
    output, errors = check(simulation, 0, total, status, models=models)
    not_run = [entry for entry in errors if entry["response"] is None]
    assert {entry["error"]["code"] for entry in not_run} <= {f"batch_{status}"}
    assert final(simulation, 0).request_counts.failed == len(errors) - len(not_run)
    assert ids.is_file_id(final(simulation, 0).error_file_id)
    assert len(output) + len(errors) == total


async def test_the_files_of_a_former_owner_end_no_batch():
    """It closed the batch with fewer lines, by its own clock, and says so once the present owner has closed it."""
    total = 40
    former, present = Simulation(1), Simulation(1)
    present.crashes = 1
    former.store = present.store
    present.store.objects["files/in0"] = input_file(total)
    cancel = codec.encode(CancelRequested(batch_id=batch_id(0), at=NOW + 5))
    known = [*commands(0, total), (topics.COMMANDS.name, (), cancel)]
    results = list(lines(present.chance, 0, total))
    former.log.events += [*known, *results[:1]]
    await former.run(crashes_max=0)
    check(former, 0, total, Status.CANCELLED)
    ends = [event for event in former.log.events if (codec.KIND, b"compacted") in event[1]]
    assert len(ends) == 1
    present.log.events += [*known, *results, *ends]
    await present.run(crashes_max=0)
    _, errors = check(present, 0, total, Status.CANCELLED)
    assert all(entry["response"] for entry in errors)


@pytest.mark.parametrize("seed", SEEDS[:60])
async def test_a_deleted_batch_is_gone_for_good(seed):
    """Wherever the deletion breaks off and whatever comes late: record, files, objects and bitmap are gone."""
    simulation = Simulation(seed)
    for number in (0, 1):
        simulation.store.objects[f"files/in{number}"] = input_file(40)
    events = [[*commands(number, 40), *lines(simulation.chance, number, 40)] for number in (0, 1)]
    simulation.log.events += interleaved(simulation.chance, events)
    await simulation.run(crashes_max=simulation.chance.randint(0, 4))
    simulation.store.late.clear()
    gone, kept = (final(simulation, number) for number in (0, 1))
    kinds = tuple(kind for kind, _ in gone.tidemill.receipt.files)
    simulation.store.objects |= dict.fromkeys((f"results-large/{gone.id}/1-x", f"parts/{gone.id}/orphan"), b"x")
    request = DeleteRequested(batch_id=gone.id, project="default", files=kinds, at=NOW + 90)
    delete = (topics.COMMANDS.name, (), codec.encode(request))
    # Unacknowledged events come again, and an api process may send a deletion twice.
    late = [event for event in simulation.log.events if dict(event[1]).get(codec.KIND) != b"tick"]
    simulation.log.events += [delete, *interleaved(simulation.chance, [late, [delete]])]
    simulation.crashes = 0
    await simulation.run(crashes_max=simulation.chance.randint(0, 12))
    assert {batch for batch, _ in simulation.log.deleted} == {gone.id}
    after = simulation.log.published[simulation.log.deleted[0][1] :]
    assert gone.id not in {record.batch.id for record in after}
    assert simulation.log.withdrawn == {gone.output_file_id, gone.error_file_id}
    assert codec.decode_erasure(simulation.log.erased[gone.id]).project == "default"
    names = (gone.id, gone.output_file_id, gone.error_file_id)
    assert not [key for key in simulation.store.objects if any(name in key for name in names)]
    states = simulation.tables.states.changelog
    left = {key: value for key, value in states.items() if gone.id.encode() in key}
    assert left
    assert all(key.startswith(b"over/") for key in left)
    assert all(b"deleted_at" in value and b"custom" not in value for value in left.values())
    check(simulation, 1, 40, Status.COMPLETED)
    assert file_of(simulation, kept.output_file_id, kept.tidemill.receipt.output)
    assert [entry for entry in simulation.log.ledger if entry.batch_id == gone.id]


@pytest.mark.parametrize("seed", SEEDS[:30])
@pytest.mark.parametrize("is_rejected", [False, True])
async def test_a_deletion_that_comes_before_the_end_is_done_after_it(seed, is_rejected):
    """An api process had seen the end, but results died before its table had it, and reads the command first."""
    simulation = Simulation(seed)
    simulation.store.objects["files/in0"] = input_file(10)
    created, *accepted = commands(0, 10)
    request = DeleteRequested(batch_id=batch_id(0), project="default", at=NOW)
    delete = (topics.COMMANDS.name, (), codec.encode(request))
    rejected = Rejected(batch_id=batch_id(0), errors=(BatchError(code="x", message="x"),), at=NOW + 1)
    end = (topics.OUTCOMES.name, ((codec.KIND, b"rejected"),), codec.encode(rejected))
    rest = [end] if is_rejected else [*accepted, *lines(simulation.chance, 0, 10)]
    simulation.log.events += [created, delete, *rest]
    await simulation.run(crashes_max=simulation.chance.randint(0, 6))
    assert final(simulation, 0).status is (Status.FAILED if is_rejected else Status.COMPLETED)
    assert {batch for batch, _ in simulation.log.deleted} == {batch_id(0)}
    assert simulation.log.deleted[0][1] == len(simulation.log.published)
    assert set(simulation.log.erased) == {batch_id(0)}
    rows = [value for key, value in simulation.tables.states.changelog.items() if batch_id(0).encode() in key]
    assert rows
    assert all(b"deleted_at" in value for value in rows)
    assert simulation._acked == len(simulation.log.events)


async def test_the_deletion_of_a_batch_at_work_waits():
    """The api refuses it, so an end must be lost: until it comes again, the command is not acknowledged."""
    simulation, acked = Simulation(1), []
    partition = simulation.partition()
    await partition.load()
    await partition.command(codec.decode_command(commands(0, 10)[0][2]), list)
    request = DeleteRequested(batch_id=batch_id(0), project="default", at=NOW)
    await partition.command(request, lambda: acked.append(request))
    await partition.settle()
    assert (partition.has_ended, acked, simulation.log.deleted) == (False, [], [])
    partition.abandon()


async def test_an_unknown_batch_is_deleted_for_good():
    """It takes no memory, and a command that comes again does not create it."""
    simulation = Simulation(1)
    partition = simulation.partition()
    await partition.load()
    request = DeleteRequested(batch_id=batch_id(0), project="default", at=NOW + 90)
    await partition.command(request, list)
    assert not partition.active_batches
    assert partition.active_batches.is_over(batch_id(0))
    created = commands(0, 10)[0][2]
    await partition.command(codec.decode_command(created), list)
    assert not partition.active_batches
    assert not simulation.log.published
    partition.abandon()


@pytest.mark.parametrize("seed", SEEDS[:20])
async def test_a_batch_at_risk_shows_it(seed):
    """From a quarter of the retention before, with crashes; a batch that is over is not at risk."""
    simulation = Simulation(seed)
    simulation._limits = replace(simulation._limits, retention_seconds=lambda: 1000.0)
    simulation.store.objects["files/in0"] = input_file(10)
    simulation.log.events += commands(0, 10)
    await simulation.run(crashes_max=simulation.chance.randint(0, 6))
    shown = [record.batch.tidemill.at_risk for record in simulation.log.published]
    assert shown[0] is None
    assert NOW + 1000 in shown
    assert set(shown) == {None, NOW + 1000}
    assert final(simulation, 0).tidemill.at_risk is None


@pytest.mark.parametrize("seed", SEEDS[:20])
async def test_a_batch_that_never_ran_costs_nothing(seed):
    """A batch cancelled before its check has an entry of zeros, a rejected one has none."""
    simulation = Simulation(seed)
    cancel = CancelRequested(batch_id=batch_id(0), at=NOW + 5)
    fault = BatchError(code="empty_file", message="x")
    rejected = Rejected(batch_id=batch_id(1), errors=(fault,), at=NOW + 1)
    simulation.log.events += [
        commands(0, 0)[0],
        commands(1, 0)[0],
        (topics.COMMANDS.name, (), codec.encode(cancel)),
        (topics.OUTCOMES.name, ((codec.KIND, b"rejected"),), codec.encode(rejected)),
    ]
    await simulation.run(crashes_max=simulation.chance.randint(0, 6))
    assert final(simulation, 0).status is Status.CANCELLED
    assert final(simulation, 1).status is Status.FAILED
    assert {entry.batch_id for entry in simulation.log.ledger} == {batch_id(0)}
    entry = simulation.log.ledger[0]
    (result,) = entry.models
    assert (result.model, result.completed, result.bill.cost.total) == (None, 0, 0)
