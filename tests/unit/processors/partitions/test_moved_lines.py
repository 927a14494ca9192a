"""Lines whose calls outlast a rebalance are called once, here or by the next owner of their partition."""

from pathlib import Path

import pytest
from support.dispatching import World, joinable
from support.waiting import until

from tidemill.schemas import ids


async def rebalance(world: World) -> None:
    """The partition goes away while calls are in flight, and an assignment follows."""
    assert not await world.stage.drain(0.01)
    world.window.close()
    world.stage.forget_waiting()
    world.assign()


async def test_a_call_that_outlasts_the_drain_is_not_repeated(tmp_path: Path) -> None:
    """Its line comes back and finds it: the record waits for its outcome."""
    world = World(tmp_path)
    batch_id = ids.new_batch_id()
    world.inference.gate.clear()
    world.publish(batch_id, 0, 4)
    await until(lambda: world.inference.in_flight == 4, "calls")
    await rebalance(world)
    world.publish(batch_id, 0, 4)
    assert world.tap.acked == []
    world.inference.gate.set()
    await world.finish()
    assert world.inference.calls.total() == 4


@pytest.mark.parametrize("inputs", [1, 4])
async def test_a_line_of_a_partition_that_is_gone_is_not_called_again(tmp_path: Path, inputs: int) -> None:
    """Its call outlasts the drain and fails after the next assignment, which lacks its partition."""
    world = World(tmp_path, inputs_per_call=inputs)
    world.line = joinable if inputs > 1 else world.line
    batch_id = ids.new_batch_id()
    world.inference.gate.clear()
    world.publish(batch_id, 0, 4)
    await until(lambda: world.stage.busy == 4, "calls")
    await rebalance(world)
    world.inference.is_bad = lambda _: True
    world.inference.gate.set()
    await until(lambda: not world.stage.busy, "their failures")
    assert world.stage.pending == 0
    world.inference.is_bad = lambda _: False
    world.publish(batch_id, 4, 1)
    await world.finish()
    assert world.log.lines == {(batch_id, 4): 1}
    assert world.inference.calls.total() == 5


@pytest.mark.parametrize("inputs", [1, 4])
async def test_a_line_that_another_process_completed_is_not_called_again(tmp_path: Path, inputs: int) -> None:
    """This one lost its group, came back, and its calls fail: it knows by then that the log has the results."""
    world = World(tmp_path, inputs_per_call=inputs)
    world.line = joinable if inputs > 1 else world.line
    batch_id = ids.new_batch_id()
    world.inference.gate.clear()
    world.publish(batch_id, 0, 4)
    await until(lambda: world.stage.busy == 4, "calls")
    await rebalance(world)
    for index in range(4):
        world.log.lines[batch_id, index] = 1
        world.stage.lines.completed.mark(batch_id, index)
    world.publish(batch_id, 0, 4)
    world.inference.is_bad = lambda _: world.inference.calls.total() <= 4
    world.inference.gate.set()
    await world.finish()
    assert world.inference.calls.total() == 4
    assert not world.inference.good


async def test_a_waiting_line_of_a_closed_window_is_not_called(tmp_path: Path) -> None:
    """It may have come from a record that was held while the partition was left."""
    world = World(tmp_path)
    batch_id = ids.new_batch_id()
    world.stage.halt()
    world.publish(batch_id, 0, 2)
    world.window.close()
    world.assign()
    await until(lambda: not world.stage.pending, "the end of the lines")
    assert not world.inference.calls
    await world.stage.close()
