"""The tally: what was marked is known, whatever the order and however often."""

from hypothesis import given
from hypothesis import strategies as st

from tidemill.results.state.line_bitmap import CHUNK_LINES, LineBitmap

marks = st.lists(st.tuples(st.integers(0, 4 * CHUNK_LINES), st.booleans()), max_size=200)


@given(marks)
def test_counts_are_those_of_the_first_marks(marks):
    """A line counts once, as what it was first marked as."""
    tally, naive = LineBitmap(), {}
    for index, failed in marks:
        assert tally.mark(index, failed=failed) is (index not in naive)
        naive.setdefault(index, failed)
    assert tally.done == len(naive)
    assert tally.failed == sum(naive.values())
    assert all((index in tally) is (index in naive) for index in range(5 * CHUNK_LINES))


@given(marks, marks)
def test_chunks_bring_it_back(before, after):
    """The chunks taken at any two times make the same tally."""
    tally, stored = LineBitmap(), {}
    for batch in (before, after):
        for index, failed in batch:
            tally.mark(index, failed=failed)
        stored.update(tally.take_touched())
    again = LineBitmap.of(stored.items())
    assert (again.done, again.failed, again.bits) == (tally.done, tally.failed, tally.bits)
    assert tally.take_touched() == []


@given(marks, marks)
def test_common_counts_lines_of_both(one, other):
    """What two tallies share."""
    tallies = []
    for batch in (one, other):
        tally = LineBitmap()
        for index, failed in batch:
            tally.mark(index, failed=failed)
        tallies.append(tally)
    shared = {index for index, _ in one} & {index for index, _ in other}
    assert tallies[0].common(tallies[1]) == len(shared)


def test_a_chunk_is_128_bytes():
    """The size that `docs/explanation/architecture.md` tells of."""
    tally = LineBitmap()
    tally.mark(CHUNK_LINES, failed=True)
    assert [(number, len(chunk)) for number, chunk in tally.take_touched()] == [(1, 128)]
