"""The backlog of each model, as a scrape of results shows it."""

import asyncio

from support.facts import NOW, commands, lines
from support.simulated import Simulation

from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.results.state.active_batch import PartBuffer
from tidemill.results.state.backlog import FIRST_TOKENS, Backlog
from tidemill.schemas.log.codec import LineMark

TOTAL = 100


async def test_what_waits_is_right_at_each_moment_and_over_all_owners():
    """Each line counts until it has a result, however the log brings results; a new owner shows the same."""
    simulation = Simulation(3)
    owners = [simulation.partition()]
    gate = AckGate()
    await owners[0].load()
    simulation.log.events += [*commands(0, TOTAL), *lines(simulation.chance, 0, TOTAL)]
    called = ["m", "idle"]
    backlog = Backlog(lambda: [owner.active_batches for owner in owners], lambda: called, lambda: NOW + 60.0)
    assert backlog.lines() == {"m": 0, "idle": 0}
    shown = []
    for at in range(len(simulation.log.events)):
        simulation.now += 3
        await simulation.handle(owners[0], gate, at)
        active = next(iter(owners[0].active_batches), None)
        if at > 0 and active is not None:
            assert backlog.lines() == {"m": TOTAL - active.bitmap.done, "idle": 0}
            shown.append(backlog.lines()["m"])
            assert backlog.seconds() == {"m": 60.0 if shown[-1] else 0.0, "idle": 0.0}
        if at == len(simulation.log.events) // 2:
            owners[0] = simulation.partition()
            await owners[0].load()
            gate = AckGate()
            for again in range(at + 1):
                await simulation.handle(owners[0], gate, again)
            assert backlog.lines()["m"] == shown[-1]
            called.remove("m")
            assert backlog.lines() == backlog.tokens() == {"idle": 0}
            called.append("m")
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == TOTAL
    assert len(set(shown)) > 3
    await asyncio.gather(*owners[0]._background._tasks)
    assert backlog.lines() == {"idle": 0, "m": 0}
    assert backlog.seconds() == {"idle": 0, "m": 0}


async def test_tokens_are_estimated_from_the_results():
    """Impossible and missing counts say nothing, and reasoning and cached tokens are parts of the others."""
    simulation = Simulation(3)
    partition, gate = simulation.partition(), AckGate()
    await partition.load()
    simulation.log.events += commands(0, TOTAL)
    for at in range(2):
        await simulation.handle(partition, gate, at)
    backlog = Backlog(lambda: [partition.active_batches], lambda: ["m"], lambda: NOW)
    (active,) = partition.active_batches
    active.add([LineMark(0, 1, False), LineMark(1, 1, False, usage=None)], b"ab", 0.0)
    assert backlog.tokens() == {"m": 98 * FIRST_TOKENS}
    active.add(
        [LineMark(2, 1, False, usage=(100, 90, 20, 15)), LineMark(3, 1, False, usage=(60, 0, 20, 0))], b"ab", 0.0
    )
    assert backlog.tokens() == {"m": 96 * 100}
    active.set_buffer(PartBuffer(), failed=False)
    assert backlog.tokens() == {"m": 96 * 100}
