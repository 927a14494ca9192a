"""Objects that exist when a process is ready are exempt from collection."""

import gc
from collections import deque

import pytest

from tidemill.runtime import gc_tuning


@pytest.fixture(autouse=True)
def _as_at_a_start():
    before = gc.get_threshold()
    gc.unfreeze()
    yield
    gc.set_threshold(*before)


def test_startup_objects_are_frozen():
    """A full collection skips them; later objects are collected as usual."""
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


def test_a_backlog_causes_few_full_collections():
    """Fifty thousand lines wait, and twice as many come and go, some hundred at a time."""
    gc_tuning.freeze_startup_objects()
    waiting = deque(Line() for _ in range(50_000))
    before = gc.get_stats()[2]["collections"]
    for _ in range(100_000 // 500):
        waiting.extend(Line() for _ in range(500))
        in_flight = [Line() for _ in range(500)]
        for _ in in_flight:
            waiting.popleft()
    assert gc.get_stats()[2]["collections"] == before
