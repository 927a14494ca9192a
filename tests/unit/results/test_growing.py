"""Batches of streams under crashes: their number of lines grows while they run."""

import pytest
from support import result_files
from support.facts import NOW, batch_id, grown, lines, stream_facts
from support.simulated import Simulation

from tidemill.results.files import compaction
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import CancelRequested
from tidemill.schemas.resources.batch import Cut, Status

SEEDS = range(100)
TOTAL = 60


def repeated(chance, events):
    """The same facts, with some stretches twice, as after a crash of their producer."""
    found, at = [], 0
    while at < len(events):
        found.append(events[at])
        at = chance.randint(max(0, at - 3), at) if chance.random() < 0.2 else at + 1
    return found


def totals_of(chance):
    return [*sorted(chance.sample(range(1, TOTAL), 7)), TOTAL]


def never_back(simulation, number):
    """The total that is shown only rises."""
    shown = 0
    for record in simulation.log.published:
        counts = record.batch.request_counts
        if record.batch.id == batch_id(number):
            assert counts.total >= shown
            shown = counts.total


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cut", [None, Cut(lines_max=7, bytes_max=1 << 20)])
async def test_a_stream_ends_with_each_line_once(seed, cut):
    """Results and the seal come in any order and more than once; with one output file, or numbered ones."""
    simulation = Simulation(seed)
    chance = simulation.chance
    opened, *rest = repeated(chance, stream_facts(0, totals_of(chance), cut))
    simulation.log.events += [opened, *grown(chance, rest, lines(chance, 0, TOTAL))]
    await simulation.run(crashes_max=chance.randint(0, 8))
    result_files.check(simulation, 0, TOTAL, Status.COMPLETED)
    batch = result_files.final(simulation, 0)
    assert batch.model == "m"
    assert (len(batch.tidemill.output_file_ids) > 1) is (cut is not None)


async def test_an_output_has_no_more_files_than_a_batch_can_name(monkeypatch):
    """The last file holds the rest."""
    monkeypatch.setattr(compaction, "OUTPUTS_MAX", 3)
    simulation = Simulation(0)
    simulation.log.events += [*stream_facts(0, [TOTAL], Cut(lines_max=7, bytes_max=1 << 20))]
    simulation.log.events += lines(simulation.chance, 0, TOTAL)
    await simulation.run(crashes_max=0)
    result_files.check(simulation, 0, TOTAL, Status.COMPLETED)
    assert len(result_files.final(simulation, 0).tidemill.output_file_ids) == 3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("status", [Status.CANCELLED, Status.EXPIRED])
async def test_an_ending_stream_waits_for_its_seal(seed, status):
    """A cancelled or expired stream has all its lines in its two files."""
    simulation = Simulation(seed)
    chance = simulation.chance
    simulation.store.objects["files/in0"] = result_files.input_file(TOTAL)
    *growing, sealed = stream_facts(0, totals_of(chance))
    some = list(lines(chance, 0, TOTAL))[: chance.randint(1, 5)]
    simulation.log.events += grown(chance, growing, some)
    if status is Status.CANCELLED:
        cancel = CancelRequested(batch_id=batch_id(0), at=NOW + 5)
        simulation.log.events.insert(
            chance.randint(0, len(simulation.log.events)), (topics.COMMANDS.name, (), codec.encode(cancel))
        )
    await simulation.run(crashes_max=chance.randint(0, 4))
    assert not result_files.final(simulation, 0).status.is_terminal
    simulation.log.events.append(sealed)
    await simulation.run(crashes_max=simulation.crashes + chance.randint(0, 4))
    result_files.check(simulation, 0, TOTAL, status)
    never_back(simulation, 0)


async def test_growth_is_published_without_results():
    """A grown total is shown soon, even if no line is done."""
    simulation = Simulation(1)
    simulation.log.events += stream_facts(0, [5, 9])[:-1]
    await simulation.run(crashes_max=0)
    assert simulation.log.published[-1].batch.request_counts.total == 9
