"""The context of a batch's trace, and the lines that have spans."""

import pytest

from tidemill.schemas import traces
from tidemill.schemas.bounds import BATCH_LINES_MAX

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03"


def test_few_lines_have_spans_in_a_batch_of_any_size():
    """The first ten, and some of each further part."""
    chosen = [index for index in range(50_000) if traces.has_spans(index)]
    assert chosen[:12] == [*range(10), 10, 20]
    assert len(chosen) == 41
    assert chosen[-1] == 40_000
    assert len([place for place in range(0, BATCH_LINES_MAX, 1000) if traces.has_spans(place)]) < 50


def test_a_context_without_its_sample():
    """The other flags stay."""
    assert traces.is_sampled(GIVEN)
    assert traces.unsampled(GIVEN) == GIVEN[:-2] + "02"
    assert not traces.is_sampled(traces.unsampled(GIVEN))


@pytest.mark.parametrize(
    "odd", [None, b"", b"\xff" * 55, GIVEN.upper(), GIVEN + "-x", GIVEN + "\n", "01" + GIVEN[2:]]
)
def test_what_is_no_context_counts_as_none(odd):
    """It refuses no record and no request."""
    assert traces.parsed(odd) is None
    assert traces.parsed(GIVEN.encode()) == traces.parsed(GIVEN) == GIVEN
