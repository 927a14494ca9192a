"""Work in a thread leaves half of the time to others."""

import asyncio
import time

from tidemill.threads import run_half_time


async def test_a_pause_as_long_as_the_work(monkeypatch):
    """What it returns is handed on."""
    pauses, spent = [], []

    async def pause(seconds):
        pauses.append(seconds)

    def work(size):
        started = time.monotonic()
        total = sum(range(size))
        spent.append(time.monotonic() - started)
        return total

    monkeypatch.setattr(asyncio, "sleep", pause)
    assert await run_half_time(work, 1_000_000) == 499_999_500_000
    assert pauses[0] >= spent[0] > 0
