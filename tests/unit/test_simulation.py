"""The whole way of a line on simulated time: despite any crash, no line is lost or billed twice."""

import asyncio

import orjson
import pytest
from support import simtime
from support.simlog import MemoryLog
from support.simstages import BATCHES
from support.simtime import Process
from support.simworld import SimulatedWay

from tidemill.processors.partitions.completed_lines import CompletedLines

SEEDS = 200
CHUNKS = 10


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_way_of_a_line_holds(chunk):
    """Invariants 1 to 5; `SimulatedWay(seed).run()` repeats a failure."""
    for seed in range(chunk, SEEDS, CHUNKS):
        try:
            SimulatedWay(seed).run()
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error


@pytest.mark.parametrize("seed", [3, 14, 17, 30])
def test_a_process_that_comes_back_to_its_group_marks_no_partition_of_others(seed):
    """Its calls are still in flight, and the owners that repeat them hold the partitions for their own."""
    SimulatedWay(seed, are_back=True).run()


def test_a_process_that_comes_back_calls_no_line_that_it_knows_to_be_completed():
    """Its calls in flight fail after it has learnt of the results of the owner in between."""
    SimulatedWay(222, are_back=True).run()


def test_a_fault_outside_of_the_processes_tasks_ends_the_run():
    """Timers and calls without a task have no task that would note their faults."""

    async def main(loop):
        loop.call_later(1, int, "no number")
        await asyncio.Event().wait()

    with pytest.raises(ValueError, match="no number"):
        simtime.run(main)


def test_a_kill_does_not_repeat_an_aborted_call():
    world = SimulatedWay(0)

    async def main(loop):
        process = Process(loop, world.chance)
        body = orjson.dumps({"input": "prompt batch_x 1"})
        abort = world.upstream(process, CompletedLines()).begin("", {}, body, 1.0, b"id: 1", on_end=pytest.fail)
        await asyncio.sleep(0)
        assert list(world._under_way) == [("batch_x", 1)]
        abort()
        await asyncio.sleep(0)
        assert not world._under_way

    simtime.run(main)


def test_a_deletion_is_complete_even_if_a_killed_process_adds_an_object():
    world = SimulatedWay(0)
    world.objects["files/x-1"] = b""

    async def main(loop):
        world.log = MemoryLog(loop, {})
        loop.call_later(2, world.log.append, BATCHES, "batch_x", None)
        loop.call_later(3, world.objects.pop, "files/x-1")
        loop.call_later(3, world.objects.__setitem__, "files/x-2", b"")
        async with asyncio.timeout(10):
            await world._gone("batch_x", {"files/x"})
        assert loop.time() >= 3

    simtime.run(main)
