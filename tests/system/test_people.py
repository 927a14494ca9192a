"""Processors beside people, at a server with continuous batching: real processes, real HTTP, real metrics pages.

The test counts who waited, in steps of the server, so a slow machine changes nothing.
"""

from collections.abc import AsyncIterator

import pytest
from support.engine import EngineSettings
from support.engine_server import EngineServer
from support.processing import rig
from support.waiting import until

pytestmark = pytest.mark.kafka

SERVER = EngineSettings(max_num_seqs=16, step_seconds=0.01)
PEOPLE = 12
GROUPS_MAX = 4
"""Without headroom half of all people wait, so a group in which no one does is one of four thousand."""


async def waited(server: EngineServer) -> int:
    """Of some people who come one after another, those who wait for longer than a step."""
    people = [await server.ask(output=20) for _ in range(PEOPLE)]
    return sum(person.waited_steps > 1 for person in people)


async def several(server: EngineServer) -> AsyncIterator[int]:
    """How many wait, of one group of people after another, until one group waits for nothing."""
    for _ in range(GROUPS_MAX):
        count = await waited(server)
        yield count
        if count == 0:
            break


async def test_people_do_not_wait_behind_lines(kafka, tmp_path):
    """Once the processor has learned what the server takes; meanwhile lines go on."""
    async with EngineServer(SERVER) as server, rig(kafka, server, tmp_path, headroom=True) as made:
        await made.process().ready()
        await made.batch(5_000)
        await until(lambda: server.full_looks, "a look at the metrics while requests wait")
        await until(lambda: server.engine.running <= 12 and not server.engine.waiting, "free sequences")
        # A reading that comes late on a busy machine may let a few lines too many in.
        assert 0 in [count async for count in several(server)]
        assert server.engine.running > 0


async def test_a_target_lets_lines_and_people_through(kafka, tmp_path):
    """By the server's own histograms; nothing waits, and all lines end."""
    headroom = {"ttft_ms": 10_000}
    async with EngineServer(SERVER) as server, rig(kafka, server, tmp_path, headroom=headroom) as made:
        await made.process().ready()
        batch_id = await made.batch(100)
        person = await server.ask()
        assert person.ended_at is not None
        lines = await made.collect(batch_id, 100)
        assert {line["response"]["status_code"] for line in lines} == {200}
        assert set(made.times.values()) == {1}
