"""Work in a thread leaves half of the time to other work."""

import time

from tidemill.runtime.threads import run_half_time


async def test_the_pause_is_as_long_as_the_work(pauses):
    """The caller gets the result."""
    spent = []

    def work(size):
        started = time.monotonic()
        total = sum(range(size))
        spent.append(time.monotonic() - started)
        return total

    assert await run_half_time(work, 1_000_000) == 499_999_500_000
    assert pauses[0] >= spent[0] > 0
