"""Projects share places, in virtual time."""

import asyncio
import random
from contextlib import AsyncExitStack

import pytest
from support.dependencies import client_of, open_dependencies
from support.simtime import SimulatedLoop

from tidemill.api.http import concurrency_gate
from tidemill.api.http.concurrency_gate import ConcurrencyGate, RequestPacer
from tidemill.schemas.resources.error import ApiError


def run(work):
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work)


async def held(stack: AsyncExitStack, places: ConcurrencyGate, project: str, count: int) -> int:
    """Acquire up to so many places at once; returns their number."""
    for taken in range(count):
        try:
            await stack.enter_async_context(places.turn(project))
        except ApiError:
            return taken
    return count


def test_one_project_never_holds_all_places():
    """It holds half of the places that others leave, so the next one finds a place; alone it holds half."""

    async def work():
        places = ConcurrencyGate("uploads", 32)
        async with AsyncExitStack() as stack:
            return [await held(stack, places, project, 40) for project in "abcdefg"]

    # For six there is one at least; the seventh waits for the others.
    assert run(work()) == [16, 8, 4, 2, 1, 1, 0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_projects_take_turns_on_a_single_place(count):
    """Even with one place, each project gets its turn."""

    async def work():
        places, order = ConcurrencyGate("estimates", count), []

        async def ask(project):
            async with places.turn(project):
                await asyncio.sleep(1)
                order.append(project)

        async with asyncio.TaskGroup() as group:
            for project in ["a"] * 20 + ["b"] * 2:
                group.create_task(ask(project))
        return order

    order = run(work())
    assert order.count("b") == 2
    assert max(place for place, project in enumerate(order) if project == "b") < 6


def test_a_timeout_says_who_holds_the_places():
    """429 if the project holds its share, 503 if others hold the places."""

    async def work():
        places, said = ConcurrencyGate("uploads", 2, seconds_max=30), []
        async with AsyncExitStack() as stack:
            await held(stack, places, "a", 1)
            await held(stack, places, "b", 1)
            start = asyncio.get_running_loop().time()
            for project in ("a", "c"):
                with pytest.raises(ApiError) as refused:
                    await stack.enter_async_context(places.turn(project))
                said.append((refused.value.status, refused.value.headers["retry-after"].isdecimal()))
            seconds = asyncio.get_running_loop().time() - start
        async with AsyncExitStack() as stack:
            return said, seconds, await held(stack, places, "c", 1)

    assert run(work()) == ([(429, True), (503, True)], 60.0, 1)


def test_waiting_requests_of_a_project_are_bounded(monkeypatch):
    """A further one of the same project is refused at once; another project's waits."""
    monkeypatch.setattr(concurrency_gate, "WAITING_MAX", 3)

    async def work():
        places = ConcurrencyGate("uploads", 1)
        async with AsyncExitStack() as stack:
            await held(stack, places, "a", 1)
            waiting = [asyncio.create_task(held(stack, places, "a", 1)) for _ in range(3)]
            other = asyncio.create_task(held(stack, places, "b", 1))
            await asyncio.sleep(0)
            start = asyncio.get_running_loop().time()
            refused = await held(stack, places, "a", 1)
            at_once = asyncio.get_running_loop().time() == start
            for task in [*waiting, other]:
                task.cancel()
            await asyncio.gather(*waiting, other, return_exceptions=True)
            return refused, at_once

    assert run(work()) == (0, True)


@pytest.mark.parametrize("seed", range(20))
def test_no_place_is_lost(seed):
    """After any cancels, timeouts and failures all places are free, and no project ever exceeded its share."""
    chance = random.Random(seed)

    async def work():
        places, now = ConcurrencyGate("uploads", 3, seconds_max=2), 0

        async def ask(project):
            nonlocal now
            await asyncio.sleep(chance.random() * 5)
            async with places.turn(project):
                now += 1
                assert now <= 3
                try:
                    await asyncio.sleep(chance.random() * 2)
                finally:
                    now -= 1

        tasks = [asyncio.create_task(ask(chance.choice("abcd"))) for _ in range(60)]
        for task in tasks[::3]:
            asyncio.get_running_loop().call_later(chance.random() * 8, task.cancel)
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(end is None for end in ends)
        assert all(end is None or isinstance(end, ApiError | asyncio.CancelledError) for end in ends)
        assert not places._held
        assert not places._waiting
        async with AsyncExitStack() as stack:
            return [await held(stack, places, project, 2) for project in "ab"]

    assert run(work()) == [2, 1]


async def test_a_flood_of_one_project_does_not_delay_another(tmp_path):
    """At most three of its requests are answered first, though each is answered in one step."""
    answered = []
    async with (
        open_dependencies(tmp_path) as deps,
        client_of(deps, None) as client,
        asyncio.TaskGroup() as group,
    ):

        async def ask(project):
            answer = await client.get("/batches", headers={"authorization": f"Bearer key-of-{project}"})
            answered.append((project, answer.status_code))

        for project in "p" * 50 + "q":
            group.create_task(ask(project))
    assert answered.count(("p", 200)) == 50
    assert answered.index(("q", 200)) <= 3


async def test_a_cancelled_request_takes_no_turn():
    """The requests behind it begin, one in a turn, and the pacer keeps nothing of a silent project."""
    pacer, turns, begun = RequestPacer(), 0, []

    async def ask(number):
        await pacer.turn("p")
        begun.append((number, turns))

    tasks = [asyncio.create_task(ask(number)) for number in range(6)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[2].cancel()
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        turns += 1
    assert [number for number, _ in begun] == [0, 3, 4, 5]
    assert len({turn for _, turn in begun[1:]}) == 3
    await asyncio.sleep(0)
    assert not pacer._waiting
