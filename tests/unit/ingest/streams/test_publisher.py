"""The check and the publishing of a stream's lines."""

import asyncio

import pytest
from support.intake import PARTITION, World

from tidemill.ingest.files.packing import SLICE_LINES
from tidemill.ingest.streams.publisher import Checked, LineRun
from tidemill.kafka.partitions.held_records import Unavailable
from tidemill.schemas.log.intake import StreamOptions
from tidemill.schemas.log.messages import Stalled
from tidemill.schemas.log.part import schema_key


async def test_other_tasks_run_while_lines_are_checked(tmp_path):
    """With any number of lines and faults; a fault keeps no traceback."""
    world = World(0, tmp_path)
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    stretch = LineRun(0, [b"{}" + b" " * 70 + b"x"] * 8_192)
    resources = world.resources()
    publisher = world.publisher(resources)
    stream = world.factory(resources).create(("acme", "a"), (PARTITION, 0), StreamOptions(), [])
    task = asyncio.create_task(others())
    checked = Checked()
    assert await publisher.check(stream, [stretch], checked)
    task.cancel()
    assert (len(checked.good), len(checked.faults)) == (0, 8_192)
    assert turns >= 8_192 // SLICE_LINES
    assert all(fault.__traceback__ is None for _, _, fault in checked.faults)
    await publisher.publish(stream, checked)
    assert len(world.codes) == 8_192


async def test_a_schema_is_stored_after_a_stall_was_reported(tmp_path, monkeypatch):
    """The report publishes the batch; the schema of its answers still goes to the store before any line."""
    world = World(0, tmp_path)
    resources = world.resources()
    publisher = world.publisher(resources)
    stream = world.factory(resources).create(("acme", "a"), (PARTITION, 0), StreamOptions(), [])
    stream.state = stream.state.model_copy(update={"answer_schema": "{}"})

    async def away(key, chunks):
        del key, chunks
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "write", away)
        with pytest.raises(Unavailable):
            await publisher.publish(stream, Checked(total=0))
    await publisher.stalled(stream, Stalled(batch_id=stream.state.id, source="s", number=1, hold_seconds=9))
    await publisher.publish(stream, Checked(total=0))
    assert world.store.objects[schema_key(stream.state.id)] == b"{}"
