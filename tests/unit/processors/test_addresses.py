"""A server with several addresses, which come and go while two models call it."""

import asyncio
from collections import Counter

import pytest
from support.servers_at_work import IN_FORCE_SECONDS, Make, World, simulated

from tidemill.processors.backends.addresses import ADDRESSES_MAX, EMPTY_SECONDS, LOOKUP_SECONDS
from tidemill.processors.scheduling.stalls import CHECK_SECONDS, STALL_SECONDS
from tidemill.schemas.resources.waiting import Reason

FOUND_SECONDS = LOOKUP_SECONDS + IN_FORCE_SECONDS


async def highest(world: World) -> Counter[str]:
    """The highest numbers of calls in flight once the present addresses are in force."""
    await asyncio.sleep(FOUND_SECONDS)
    found: Counter[str] = Counter()
    for _ in range(100):
        await asyncio.sleep(0.01)
        found |= world.engines.in_flight
    return found


@pytest.mark.parametrize("prefix_bytes", [None, 64])
def test_addresses_come_and_go_without_a_failed_line(prefix_bytes: int | None) -> None:
    """Each is a server with a limit of its own; calls in flight at one that goes end, or are made elsewhere."""

    async def case(make: Make) -> None:
        world = make(prefix_bytes=prefix_bytes)
        world.server("gpu", url="http://gpu:8000/v1", discover="dns", max_in_flight=16)
        for name in "ab":
            world.model(name, "gpu")
        world.apply()
        for name in "ab":
            world.publish(name, name, 6_000)
        stalls = world.dispatchers["a"].stalls
        for _ in range(int(STALL_SECONDS / CHECK_SECONDS)):
            assert stalls.check(world.loop.time()) == []
            await asyncio.sleep(CHECK_SECONDS)
        ((waiting,),) = (report.waiting for report in stalls.check(world.loop.time()))
        assert (waiting.reason, waiting.server, waiting.lines) == (Reason.SERVER_UNREACHABLE, "gpu", 6_000)
        world.resolver.answer = ["10.0.0.1"]
        assert await highest(world) == {"10.0.0.1:8000": 16}
        first = world.found("gpu@10.0.0.1")
        world.resolver.answer = ["10.0.0.3", "10.0.0.1", "fd00::2"]
        one, two, three = "10.0.0.1:8000", "[fd00::2]:8000", "10.0.0.3:8000"
        assert await highest(world) == {one: 16, two: 16, three: 16}
        assert world.found("gpu@10.0.0.1") is first
        assert world.engines.hosts == {"gpu:8000"}
        world.resolver.answer = ["10.0.0.3", "fd00::2"]
        assert await highest(world) == {two: 16, three: 16}, "the calls of one that goes end well"
        world.engines.stop(two)
        world.resolver.answer = ["10.0.0.3", "10.0.0.4"]
        assert await highest(world) == {three: 16, "10.0.0.4:8000": 16}
        await world.end("a", "b", lines=6_000)
        assert sorted(one.name for one in world.servers) == ["gpu@10.0.0.3", "gpu@10.0.0.4"]

    simulated(case)


def test_a_resolver_that_fails_changes_nothing() -> None:
    """However long; an empty answer counts once it has lasted, and a slow answer is waited for."""

    async def case(make: Make) -> None:
        world = make()
        world.server("gpu", url="http://gpu:8000/v1", discover="dns", max_in_flight=4)
        world.model("a", "gpu")
        world.resolver.answer = ["10.0.0.1", "10.0.0.2"]
        world.apply()
        await asyncio.sleep(FOUND_SECONDS)
        two = {"gpu@10.0.0.1", "gpu@10.0.0.2"}
        world.resolver.answer = OSError("no answer")
        await asyncio.sleep(600)
        assert {one.name for one in world.servers} == two
        world.resolver.seconds = 60
        world.resolver.answer = ["10.0.0.2"]
        await asyncio.sleep(65)
        assert {one.name for one in world.servers} == {"gpu@10.0.0.2"}
        asked = world.resolver.asked
        world.resolver.seconds = 0.0
        await asyncio.sleep(60)
        assert world.resolver.asked - asked <= 60 / LOOKUP_SECONDS
        world.resolver.answer = []
        await asyncio.sleep(EMPTY_SECONDS - LOOKUP_SECONDS)
        assert {one.name for one in world.servers} == {"gpu@10.0.0.2"}
        await asyncio.sleep(2 * LOOKUP_SECONDS)
        assert not list(world.servers)
        assert world.servers.pools["a"].unresolved == ["gpu"]
        world.resolver.answer = [f"10.0.{n // 200}.{n % 200}" for n in range(10_000)]
        await asyncio.sleep(FOUND_SECONDS)
        many = {one.name for one in world.servers}
        assert len(many) == ADDRESSES_MAX
        world.resolver.answer.reverse()
        await asyncio.sleep(FOUND_SECONDS)
        assert {one.name for one in world.servers} == many
        world.server("gpu", url="http://gpu:8000/v1")
        world.apply()
        assert [one.base for one in world.servers] == ["http://gpu:8000/v1"]
        asked = world.resolver.asked
        await asyncio.sleep(60)
        assert world.resolver.asked == asked

    simulated(case)
