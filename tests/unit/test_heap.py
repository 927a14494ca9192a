"""What is there when a process is ready is collected no more."""

import gc

import pytest

from tidemill import heap


@pytest.fixture(autouse=True)
def _collected_again():
    yield
    gc.unfreeze()


def test_what_is_there_is_not_looked_at_again():
    """A full collection has nothing of it before it; what comes later is collected as ever."""
    gc.collect()
    before = len(gc.get_objects())
    heap.settle()
    assert gc.get_freeze_count() >= before * 0.9
    ring: list[object] = []
    ring.append(ring)
    del ring
    assert len(gc.get_objects()) < before / 10
    assert gc.collect() >= 1
