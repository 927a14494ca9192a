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
    progress = pace.progress(total, DAY, pace.at)
    if pace.done < SURE_LINES:
        assert progress.done_latest_at is None
        return
    assert progress.lines_per_second == pytest.approx(rate, rel=0.1, abs=2)
    assert progress.done_earliest_at <= max(end, at) + 1
    assert progress.done_latest_at >= min(end, at) - 1


def rest(rate_at, at, left):
    """When `left` more lines are done, if from `at` on so many a second are done at each time."""
    while left > 0:
        left -= rate_at(at) / 100
        at += 0.01
    return at


def observed(rate_at, until):
    """A pace that has looked twice a second, up to a time; lines come in bursts of 64."""
    pace, done, at = Pace.start(0.0, 0), 0.0, 0.0
    while at < until:
        done += sum(rate_at(at + step / 100) / 100 for step in range(50))
        at += 0.5
        pace.observe(at, int(done) // 64 * 64)
    return pace


CHANGES = {
    "steady": (lambda _: 640, 6.25),
    "slow from the first": (lambda _: 64, 62.5),
    "a warm-up of two seconds": (lambda at: 0 if at < 1 else 100 if at < 2 else 640, 7),
    "behind another batch for a minute": (lambda at: 0 if at < 60 else 640, 66.25),
    "the capacity halves": (lambda at: 640 if at < 20 else 320, 20 + 120),
    "the capacity doubles": (lambda at: 320 if at < 20 else 640, 20 + 90),
    "the other batch ends, that had two thirds": (lambda at: 200 if at < 60 else 600, 60 + 120),
    "two batches in turns": (lambda at: 640 if int(at) % 2 else 320, 13),
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_end_is_told_within_a_fifth(case):
    """After a tenth of the lines, and some time after each change: the end lies where it is told to lie."""
    rate_at, until = CHANGES[case]
    pace = observed(rate_at, until)
    total = max(40_000, 2 * pace.done)
    progress = pace.progress(total, DAY, pace.at)
    left = rest(rate_at, pace.at, total - pace.done) - pace.at
    assert progress.done_earliest_at - pace.at <= left <= progress.done_latest_at - pace.at
    assert progress.done_earliest_at - pace.at == pytest.approx(left, rel=0.2, abs=1)
    assert progress.done_latest_at - pace.at == pytest.approx(left, rel=0.2, abs=1)
    if case != "two batches in turns":
        assert progress.lines_per_second == pytest.approx(rate_at(pace.at), rel=0.2)


def test_a_change_widens_the_range_first():
    """Right after the capacity has halved nobody knows that it stays so: the range has both ends in it."""

    def rate_at(at):
        return 640 if at < 200 else 320

    pace = observed(rate_at, 210)
    total = 200_000
    progress = pace.progress(total, DAY, pace.at)
    left = rest(rate_at, pace.at, total - pace.done) - pace.at
    assert progress.done_earliest_at - pace.at < left * 0.75
    assert progress.done_latest_at - progress.done_earliest_at > 0.3 * left


def test_a_stalled_batch_has_a_late_end():
    """What came to a stop is not expected soon."""
    pace = Pace.start(0.0, 0)
    for second in range(1, 31):
        pace.observe(float(second), 10 * second)
    before = pace.progress(1_000, DAY, pace.at)
    for second in range(31, 91):
        pace.observe(float(second), 300)
    after = pace.progress(1_000, DAY, pace.at)
    assert after.lines_per_second < before.lines_per_second / 5
    assert after.done_latest_at > before.done_latest_at
    assert after.slack_seconds < before.slack_seconds
    pace.observe(float(DAY), 300)
    assert pace.progress(1_000, DAY, pace.at).lines_per_second is None


def test_nothing_is_told_of_too_few_lines():
    """A share is always told; a rate only when it means something."""
    pace = Pace.start(100.0, 50)
    pace.observe(101.0, 50 + SURE_LINES - 1)
    progress = pace.progress(100, DAY, pace.at)
    assert progress.percent == 69.0
    assert progress.lines_per_second is None


def test_a_batch_without_lines_has_no_share():
    """Nothing is divided by nothing."""
    assert Pace.start(0.0, 0).progress(0, DAY, 0.0).percent == 0.0
