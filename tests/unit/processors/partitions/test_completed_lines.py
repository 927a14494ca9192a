"""The lines whose results the log has."""

from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.partitions.completed_lines import CompletedLines
from tidemill.schemas.bounds import BATCH_LINES_MAX

lines = st.tuples(st.sampled_from("abc"), st.integers(0, 2000) | st.just(BATCH_LINES_MAX - 1))


@given(st.sets(lines), st.sets(lines))
def test_marked_lines_and_no_others_are_done(done: set[tuple[str, int]], others: set[tuple[str, int]]) -> None:
    """Until their batch is forgotten."""
    completed = CompletedLines()
    for batch, index in done:
        completed.mark(batch, index)
    for line in done | others:
        assert completed.is_done(*line) == (line in done)
    completed.forget("a")
    assert not any(completed.is_done(*line) for line in done if line[0] == "a")


@given(st.lists(st.sampled_from("abcdef"), max_size=30))
def test_the_batch_unused_for_longest_is_forgotten_first(batches: list[str]) -> None:
    """The number of batches has a bound."""
    completed = CompletedLines(batches_max=3)
    for batch in batches:
        completed.touch(batch)
        completed.mark(batch, 1)
    recent = list(dict.fromkeys(reversed(batches)))[:3]
    assert len(completed) == len(recent)
    assert all(completed.is_done(batch, 1) for batch in recent)
