"""A batch that ends before ingest has accepted its input has an error line for each line of that input."""

import itertools
import json

import pytest
from support.facts import NOW, batch_id, commands
from support.results_limits import file_rules
from support.simulated import Fuse, SimulatedStore, Simulation

from tidemill.results.files.compaction import Compactor
from tidemill.results.state import reducer
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import CancelRequested
from tidemill.schemas.resources.batch import Status

LINES = [b'{"custom_id":"a"}', b"", b"no json", b'{"custom_id":"b","body":1}', b'{"custom_id":"a"}']
"""With a blank line and odd ones: ingest would refuse some."""
NAMES = ["a", None, "b", "a"]


def begun(seed: int, status: Status, content: bytes | None) -> Simulation:
    """A batch that is created, and cancelled or left to expire."""
    simulation = Simulation(seed)
    if content is not None:
        simulation.store.objects["files/in0"] = content
    simulation.log.events.append(commands(0, 9)[0])
    if status is Status.CANCELLED:
        cancel = CancelRequested(batch_id=batch_id(0), at=NOW + 2)
        simulation.log.events.append((topics.COMMANDS.name, (), codec.encode(cancel)))
    return simulation


def check(simulation: Simulation, status: Status, names: list[str | None]) -> None:
    """The batch has its final status once, with these error lines, and costs nothing."""
    batch = simulation.log.published[-1].batch
    assert batch.status is status
    assert batch.request_counts.model_dump() == {"total": len(names), "completed": 0, "failed": 0}
    assert (batch.output_file_id, batch.in_progress_at, batch.finalizing_at) == (None, None, None)
    assert (batch.error_file_id is None) == (not names)
    statuses = [record.batch.status for record in simulation.log.published]
    assert set(statuses[:-1]) <= {Status.VALIDATING, Status.CANCELLING, status}
    assert batch.tidemill.receipt.missing == 0
    if names:
        content = simulation.store.objects[simulation.log.files[batch.error_file_id]]
        found = list(map(json.loads, content.splitlines()))
        assert [each["custom_id"] for each in found] == names
        assert {each["error"]["code"] for each in found} == {f"batch_{status}"}
        assert len({each["id"] for each in found}) == len(names)


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.EXPIRED])
async def test_every_line_gets_its_error_line_wherever_the_process_crashes(status):
    """At each await of its life."""
    for step in itertools.count(1):
        simulation = begun(step, status, b"\n".join(LINES))
        await simulation.run(crashes_max=2, crash_at=step)
        check(simulation, status, NAMES)
        if simulation.crashes == 0:
            assert step > 10, "the crashes came in none of the steps"
            return


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.EXPIRED])
@pytest.mark.parametrize("content", [None, b"", b"\n \n"])
async def test_without_lines_there_is_no_file(status, content):
    """If the input is gone, was never copied from its bucket, or is empty."""
    simulation = begun(1, status, content)
    await simulation.run(crashes_max=0)
    check(simulation, status, [])


@pytest.mark.parametrize(("bound", "lines"), [({}, 4), ({"input_lines_max": 3}, 0), ({"input_bytes_max": 0}, 0)])
async def test_an_input_above_the_bounds_of_ingest_has_no_lines(bound, lines):
    """It may have a hundred million of them."""
    store = SimulatedStore(Fuse())
    store.objects["files/in0"] = b"\n".join(LINES)
    created = codec.decode_command(commands(0, 9)[0][2])
    state = reducer.created(reducer.State(id=batch_id(0), partition=0), created, 5.0)
    state = reducer.close(reducer.overdue(state, NOW + 3600, 5.0), NOW + 3605, "w")
    compactor = Compactor(store, lambda: NOW, file_rules(**bound), "w")
    fact = await compactor.compact(state, LineBitmap())
    assert (fact.receipt.lines, fact.receipt.errors is None) == (lines, lines == 0)
