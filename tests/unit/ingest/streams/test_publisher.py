"""The check and the publishing of a stream's lines."""

import asyncio

from support.intake import PARTITION, World

from tidemill.ingest.files.packing import SLICE_LINES
from tidemill.schemas.log.intake import StreamOptions


async def test_other_tasks_run_while_lines_are_checked(tmp_path):
    """With any number of lines and faults; a fault keeps no traceback."""
    world = World(0, tmp_path)
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    stretch = 0, [b"{}" + b" " * 70 + b"x"] * 8_192
    resources = world.resources()
    publisher = world.publisher(resources)
    stream = world.factory(resources).create(("acme", "a"), (PARTITION, 0), StreamOptions(), [])
    task = asyncio.create_task(others())
    checked = await publisher.check(stream, [stretch])
    task.cancel()
    assert (len(checked.good), len(checked.faults)) == (0, 8_192)
    assert turns >= 8_192 // SLICE_LINES
    assert all(fault.__traceback__ is None for _, _, fault in checked.faults)
    await publisher.publish(stream, checked)
    assert len(world.codes) == 8_192
