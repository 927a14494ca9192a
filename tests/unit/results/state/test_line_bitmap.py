"""The line bitmap has every marked line, whatever the order and however often."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.schemas.bitmap import CHUNK_LINES

marks = st.lists(st.tuples(st.integers(0, 4 * CHUNK_LINES), st.booleans()), max_size=200)


@given(marks)
def test_counts_are_those_of_the_first_marks(marks):
    """A line counts once, with its first result."""
    bitmap, naive = LineBitmap(), {}
    for index, failed in marks:
        assert bitmap.mark(index, failed=failed) is (index not in naive)
        naive.setdefault(index, failed)
    assert bitmap.done == len(naive)
    assert bitmap.failed == sum(naive.values())
    assert all((index in bitmap) is (index in naive) for index in range(5 * CHUNK_LINES))


@given(marks, marks)
def test_chunks_restore_the_bitmap(before, after):
    """The chunks taken at any two times make the same bitmap."""
    bitmap, stored = LineBitmap(), {}
    for batch in (before, after):
        for index, failed in batch:
            bitmap.mark(index, failed=failed)
        stored.update(bitmap.take_touched())
    again = LineBitmap.of(stored.items())
    assert (again.done, again.failed, again.bits) == (bitmap.done, bitmap.failed, bitmap.bits)
    assert bitmap.take_touched() == []


@given(marks, marks)
def test_chunks_restore_the_models_of_lines(before, after):
    """Each final line counts for its model, also after a restart; `unmark` takes it back."""
    bitmap, stored, models = LineBitmap(), {}, {}
    for batch in (before, after):
        for index, failed in batch:
            if bitmap.mark(index, failed=failed):
                bitmap.assign(index, index * index % 5, failed=failed)
                models[index] = index * index % 5, failed
        stored.update(bitmap.take_touched())
    for found in (bitmap, LineBitmap.of(stored.items())):
        assert +found.by_model == Counter(models.values())
        for index, (_, failed) in models.items():
            found.unmark(index, failed=failed)
        assert not +found.by_model


@given(marks, marks)
def test_common_counts_lines_of_both(one, other):
    """The lines that two bitmaps share."""
    bitmaps = []
    for batch in (one, other):
        bitmap = LineBitmap()
        for index, failed in batch:
            bitmap.mark(index, failed=failed)
        bitmaps.append(bitmap)
    shared = {index for index, _ in one} & {index for index, _ in other}
    assert bitmaps[0].common(bitmaps[1]) == len(shared)


def test_a_chunk_is_128_bytes():
    """The size that `docs/explanation/architecture.md` names."""
    bitmap = LineBitmap()
    bitmap.mark(CHUNK_LINES, failed=True)
    assert [(number, len(chunk)) for number, chunk in bitmap.take_touched()] == [(1, 128)]
