"""How often servers that are down are called, and how soon their models are at full speed again."""

import asyncio

import pytest
from support.servers_at_work import Make, World, simulated

DOWN_SECONDS = 600
PROBE_SECONDS_MIN = 3.0
FULL_SECONDS_MAX = 10.0


async def awaited(world: World, calls: int) -> tuple[float, float]:
    """Let the server answer; returns when the first line was answered, and when `calls` were in flight."""
    world.engines.down.clear()
    world.engines.starting.clear()
    first = full = 0.0
    until = world.loop.time() + 60
    while not (first and full):
        assert world.loop.time() < until, (first, full, world.log.ends)
        await asyncio.sleep(0.01)
        if not first and world.log.ends["a"]:
            first = world.loop.time()
        if not full and world.engines.in_flight["gpu"] >= calls:
            full = world.loop.time()
    return first, full


@pytest.mark.parametrize("absence", ["down", "starting"])
@pytest.mark.parametrize(("calls_max", "seconds"), [(64, 0.1), (64, 5.0), (256, 5.0), (1_000, 5.0)])
def test_a_server_that_is_back_has_all_its_calls_soon(calls_max: int, seconds: float, absence: str) -> None:
    """Meanwhile it, or its gateway, gets one call every few seconds; no line fails, and none is called twice."""

    async def case(make: Make) -> None:
        world = make(call_seconds=seconds)
        world.server("gpu", max_in_flight=calls_max)
        world.model("a", "gpu")
        setattr(world.engines, absence, {"gpu"})
        world.apply()
        world.publish("a", "a", 10_000)
        await asyncio.sleep(DOWN_SECONDS)
        assert world.servers.pools["a"].well == 0
        assert world.engines.sent["gpu"] <= DOWN_SECONDS / PROBE_SECONDS_MIN
        first, full = await awaited(world, calls_max)
        assert full - first <= FULL_SECONDS_MAX
        assert world.servers.pools["a"].well == 1
        await world.end("a", lines=10_000, seconds=1_000)

    simulated(case)


def test_lines_that_failed_meanwhile_wait_no_longer_than_others() -> None:
    """Each line of a small batch has been a probe, many times."""

    async def case(make: Make) -> None:
        world = make()
        world.server("gpu", max_in_flight=64)
        world.model("a", "gpu")
        world.engines.down = {"gpu"}
        world.apply()
        world.publish("a", "a", 10)
        await asyncio.sleep(DOWN_SECONDS)
        await awaited(world, 1)
        await world.end("a", lines=10, seconds=FULL_SECONDS_MAX)

    simulated(case)
