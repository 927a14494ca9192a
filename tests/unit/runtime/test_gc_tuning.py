"""What is there when a process is ready is collected no more."""

import gc
from collections import deque

import pytest

from tidemill.runtime import gc_tuning


@pytest.fixture(autouse=True)
def _collected_again():
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_what_is_there_is_not_looked_at_again():
    """A full collection has nothing of it before it; what comes later is collected as ever."""
    gc.collect()
    before = len(gc.get_objects())
    gc_tuning.freeze_startup_objects()
    assert gc.get_freeze_count() >= before * 0.9
    ring: list[object] = []
    ring.append(ring)
    del ring
    assert len(gc.get_objects()) < before / 10
    assert gc.collect() >= 1


class Line:
    """Of a backlog: in no ring, but what a collection looks at."""

    def __init__(self) -> None:
        self.entries: list[object] = []


def test_a_backlog_is_not_looked_through_again_and_again():
    """Fifty thousand lines wait, and twice as many come and go; some hundred are in flight and end together."""
    gc_tuning.freeze_startup_objects()
    waiting = deque(Line() for _ in range(50_000))
    before = gc.get_stats()[2]["collections"]
    for _ in range(100_000 // 500):
        waiting.extend(Line() for _ in range(500))
        in_flight = [Line() for _ in range(500)]
        for _ in in_flight:
            waiting.popleft()
    assert gc.get_stats()[2]["collections"] == before
