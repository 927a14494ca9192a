"""A set of line numbers."""

import time

from hypothesis import given
from hypothesis import strategies as st

from tidemill.schemas.bitmap import CHUNK_BYTES, Bitmap

LINES_MAX = 1_500
PLACES = st.sets(st.integers(0, LINES_MAX - 1))


def bitmap_of(places: set[int]) -> Bitmap:
    found = Bitmap()
    for place in places:
        assert found.add(place)
    return found


@given(PLACES, PLACES, st.integers(0, LINES_MAX))
def test_all_lines_but_some_are_added(before: set[int], others: set[int], lines: int) -> None:
    """Lines that it had stay, whether the others have them or not."""
    found = bitmap_of(before)
    found.add_all_but(bitmap_of(others), lines)
    expected = before | set(range(lines)) - others
    assert {place for place in range(LINES_MAX) if place in found} == expected
    assert len(found) == len(expected)
    assert len(found.content) % CHUNK_BYTES == 0


def test_many_lines_are_added_at_once() -> None:
    """The event loop of the api waits for it."""
    found, lines = Bitmap(), 10_000_000
    began = time.process_time()
    found.add_all_but(bitmap_of({5}), lines)
    assert time.process_time() - began < 0.5
    assert len(found) == lines - 1
