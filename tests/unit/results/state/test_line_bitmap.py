"""The line bitmap has every marked line, in any order and with repetitions."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tidemill.results.state.active_batch import ActiveBatch
from tidemill.results.state.line_bitmap import LineBitmap, LineSums
from tidemill.results.state.reducer import State
from tidemill.schemas.bitmap import CHUNK_LINES
from tidemill.schemas.log.codec import LineMark

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


usages = st.one_of(st.none(), st.tuples(*[st.integers(0, 1000)] * 4))
records = st.lists(
    st.tuples(
        st.sampled_from(["add", "undo", "flush", "load"]),
        st.integers(0, 2),
        st.lists(st.tuples(st.integers(0, 2 * CHUNK_LINES), st.booleans(), usages, st.integers(0, 4)), max_size=9),
    ),
    max_size=20,
)


@given(records, st.booleans())
def test_sums_are_those_of_the_lines_that_count(steps, has_models):
    """Also after a record is undone, parts are written, and the rows are read again; each line counts once."""
    active, naive = ActiveBatch(state=State(id="batch_0", partition=0), bitmap=LineBitmap()), {}
    stored, kept = {}, {}
    for step, model, lines in steps:
        before = active.snapshot()
        marks = [LineMark(index, 1, failed, usage, calls) for index, failed, usage, calls in lines]
        active.add(marks, b"x" * len(marks), 0.0, model if has_models else None)
        if step == "undo":
            active.restore(before)
            continue
        for mark in marks:
            naive.setdefault(mark.index, (model if has_models else 0, mark))
        if step == "add":
            continue
        sums = active.state.sums.plus(active.output.sums).plus(active.errors.sums, failed=True)
        for failed in (False, True):
            active.set_buffer(type(active.output)(), failed=failed)
        active.state = active.state.model_copy(update={"sums": sums})
        stored |= {number: chunk + sums.encoded(number) for number, chunk in active.bitmap.take_touched()}
        kept = dict(naive)
        if step == "load":
            found = State(id="batch_0", partition=0).model_copy(update={"sums": LineSums.of(stored.items())})
            active, naive = ActiveBatch(state=found, bitmap=LineBitmap.of(stored.items())), kept
    wanted = Counter()
    for model, mark in naive.values():
        used = mark.usage if mark.usage is not None and not mark.failed else (0, 0, 0, 0)
        for place, number in enumerate((*used, max(0, mark.attempts - 1))):
            wanted[model, place] += number
    assert +Counter({(model, at): n for model, one in active.sums.items() for at, n in enumerate(one)}) == +wanted
    assert active.retries == sum(number for (_, place), number in wanted.items() if place == 4)


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
