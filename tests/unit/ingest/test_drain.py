"""The way out of a rebalance is bounded."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace

from support.waiting import WAIT_SECONDS_MAX

from tidemill import tasks
from tidemill.ingest import app
from tidemill.ingest.app import Ingest
from tidemill.tasks import CrashLatch


async def test_a_command_that_does_not_end_ends_the_process(monkeypatch):
    """Its successor handles the command again."""
    monkeypatch.setattr(app, "DRAIN_SECONDS_MAX", 0.0)
    monkeypatch.setattr(tasks, "CANCEL_SECONDS_MAX", 0.01)
    over = asyncio.Event()

    async def stubborn():
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await over.wait()

    fault, task = CrashLatch(), asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    ingest = SimpleNamespace(
        _guard=SimpleNamespace(leave=lambda _: None), _queue=SimpleNamespace(leave=lambda _: []),
        _tasks={task: "tp"}, _gates={}, app=SimpleNamespace(crash=fault),
    )  # fmt: skip
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        await Ingest._drain(ingest, {"tp"})
    assert "1 cancelled tasks" in str(fault.error)
    over.set()
    await task
