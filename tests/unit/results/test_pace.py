"""The pace: a steady batch is told right, and nothing is told too early."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tidemill.results.pace import SURE_LINES, Pace

DAY = 86_400


@given(
    rate=st.integers(1, 5_000),
    total=st.integers(1_000, 1_000_000),
    share=st.floats(0.1, 0.9),
    step=st.sampled_from([0.5, 1.0, 5.0]),
)
def test_a_steady_rate_is_found(rate, total, share, step):
    """After a tenth of the lines, the end lies between the two times."""
    pace = Pace.start(0.0, 0)
    end = total / rate
    assume(end * share >= 2 * step)
    at = 0.0
    steps = max(int(end * share / step), 1)
    for number in range(1, min(steps, 400) + 1):
        at = number * step
        pace.observe(at, min(int(at * rate), total))
    progress = pace.progress(total, DAY)
    if pace.done < SURE_LINES:
        assert progress.done_latest_at is None
        return
    assert progress.lines_per_second == pytest.approx(rate, rel=0.1, abs=2)
    assert progress.done_earliest_at <= max(end, at) + 1
    assert progress.done_latest_at >= min(end, at) - 1


def test_a_stalled_batch_has_a_late_end():
    """What came to a stop is not expected soon."""
    pace = Pace.start(0.0, 0)
    for second in range(1, 31):
        pace.observe(float(second), 10 * second)
    before = pace.progress(1_000, DAY)
    for second in range(31, 91):
        pace.observe(float(second), 300)
    after = pace.progress(1_000, DAY)
    assert after.lines_per_second < before.lines_per_second / 5
    assert after.done_latest_at > before.done_latest_at
    assert after.slack_seconds < before.slack_seconds


def test_nothing_is_told_of_too_few_lines():
    """A share is always told; a rate only when it means something."""
    pace = Pace.start(100.0, 50)
    pace.observe(101.0, 50 + SURE_LINES - 1)
    progress = pace.progress(100, DAY)
    assert progress.percent == 69.0
    assert progress.lines_per_second is None


def test_a_batch_without_lines_has_no_share():
    """Nothing is divided by nothing."""
    assert Pace.start(0.0, 0).progress(0, DAY).percent == 0.0
