"""The agent of results: what it is at work on when a partition goes must not take along what waits behind it."""

import asyncio
from types import SimpleNamespace

import pytest

from tidemill.results.app import Results


class Events:
    """As Faust hands them to an agent."""

    def __init__(self, count):
        self._count = count

    def noack(self):
        return self

    async def events(self):
        for number in range(self._count):
            yield SimpleNamespace(message=number)


@pytest.fixture
def agent():
    """One that holds whatever comes; its first event is of a partition that has gone."""
    agent = Results.__new__(Results)
    agent._tenure = SimpleNamespace(holds=lambda _: True)
    agent.handled = []

    async def handle(event):
        if not event.message:
            raise asyncio.CancelledError
        agent.handled.append(event.message)

    agent._handle = handle
    return agent


async def test_events_behind_one_of_a_lost_partition_are_handled(agent):
    """They are of partitions that the process has, and nobody would read them again."""
    await agent._fold(Events(3))
    assert agent.handled == [1, 2]


async def test_an_agent_that_is_cancelled_ends(agent):
    """As at a stop."""
    begun = asyncio.Event()

    async def handle(event):
        del event
        begun.set()
        await asyncio.Event().wait()

    agent._handle = handle
    task = asyncio.create_task(agent._fold(Events(1)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
