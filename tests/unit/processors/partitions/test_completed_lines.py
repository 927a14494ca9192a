"""Which lines are done."""

from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.partitions.completed_lines import CompletedLines

places = st.tuples(st.sampled_from("abc"), st.integers(0, 2000) | st.just(10**12))


@given(st.sets(places), st.sets(places))
def test_it_knows_what_it_was_told(done: set[tuple[str, int]], others: set[tuple[str, int]]) -> None:
    """And nothing else."""
    ledger = CompletedLines()
    for batch, index in done:
        ledger.mark(batch, index)
    for place in done | others:
        assert ledger.is_done(*place) == (place in done)
    ledger.forget("a")
    assert not any(ledger.is_done(*place) for place in done if place[0] == "a")


@given(st.lists(st.sampled_from("abcdef"), max_size=30))
def test_it_is_bounded(batches: list[str]) -> None:
    """The batch that was longest out of use goes first."""
    ledger = CompletedLines(batches_max=3)
    for batch in batches:
        ledger.touch(batch)
        ledger.mark(batch, 1)
    recent = list(dict.fromkeys(reversed(batches)))[:3]
    assert len(ledger) == len(recent)
    assert all(ledger.is_done(batch, 1) for batch in recent)
