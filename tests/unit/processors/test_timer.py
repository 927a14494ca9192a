"""A timer that is due at the earliest of the times that were set."""

import asyncio

import uvloop

from tidemill.processors.timer import EarliestTimer


def test_the_earliest_time_counts_and_is_set_once():
    """A handle of uvloop has a rounded time, which looks later than the one that was set."""

    async def run():
        loop, calls = asyncio.get_running_loop(), []
        due = asyncio.Event()
        timer = EarliestTimer(lambda: (calls.append(loop.time()), due.set()))
        at = loop.time() + 0.0123456
        timer.set(at + 60)
        for step in range(20):
            timer.set(earlier := at + 1 - step * 0.0123)
            handle = timer._handle
            timer.set(earlier)
            timer.set(earlier + 1)
            assert timer._handle is handle
        timer.set(at)
        await due.wait()
        assert len(calls) == 1
        timer.set(loop.time())
        assert timer._handle is not None

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
