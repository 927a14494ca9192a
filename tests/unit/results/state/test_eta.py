"""The progress of a batch: a constant rate is found, and nothing is published too early."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tidemill.results.state.eta import LEFT_SECONDS_MAX, MARGIN_SECONDS, QUIET_GAPS, QUIET_SECONDS, SURE_LINES, Eta

DAY = 86_400


@given(
    rate=st.integers(1, 5_000),
    total=st.integers(1_000, 1_000_000),
    share=st.floats(0.1, 0.9),
    step=st.sampled_from([0.5, 1.0, 5.0]),
)
def test_a_constant_rate_is_found(rate, total, share, step):
    """After a tenth of the lines, the end lies in the published range."""
    eta = Eta.start(0.0, 0)
    end = total / rate
    assume(end * share >= 2 * step)
    at = 0.0
    steps = max(int(end * share / step), 1)
    for number in range(1, min(steps, 400) + 1):
        at = number * step
        eta.observe(at, min(int(at * rate), total))
    progress = eta.progress(total, DAY, eta.at)
    if eta.done < SURE_LINES:
        assert progress.done_latest_at is None
        return
    assert progress.lines_per_second == pytest.approx(rate, rel=0.1, abs=2)
    assert progress.done_earliest_at <= max(end, at) + 1
    assert progress.done_latest_at >= min(end, at) - 1


def rest(rate_at, at, left):
    """The time at which `left` more lines are done, from `at` on, at these rates."""
    while left > 0:
        left -= rate_at(at) / 100
        at += 0.01
    return at


def observed(rate_at, until):
    """An ETA observed twice a second up to a time; lines come in bursts of 64."""
    eta, done, at = Eta.start(0.0, 0), 0.0, 0.0
    while at < until:
        done += sum(rate_at(at + step / 100) / 100 for step in range(50))
        at += 0.5
        eta.observe(at, int(done) // 64 * 64)
    return eta


CHANGES = {
    "constant": (lambda _: 640, 6.25),
    "slow from the first": (lambda _: 64, 62.5),
    "a warm-up of two seconds": (lambda at: 0 if at < 1 else 100 if at < 2 else 640, 7),
    "behind another batch for a minute": (lambda at: 0 if at < 60 else 640, 66.25),
    "the capacity halves": (lambda at: 640 if at < 20 else 320, 20 + 120),
    "the capacity doubles": (lambda at: 320 if at < 20 else 640, 20 + 90),
    "the other batch ends, that had two thirds": (lambda at: 200 if at < 60 else 600, 60 + 120),
    "two batches in turns": (lambda at: 640 if int(at) % 2 else 320, 13),
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_end_is_known_within_a_fifth(case):
    """After a tenth of the lines, and some time after each change, the end lies in the published range."""
    rate_at, until = CHANGES[case]
    eta = observed(rate_at, until)
    total = max(40_000, 2 * eta.done)
    progress = eta.progress(total, DAY, eta.at)
    left = rest(rate_at, eta.at, total - eta.done) - eta.at
    assert progress.done_earliest_at - eta.at <= left <= progress.done_latest_at - eta.at
    assert progress.done_earliest_at - eta.at == pytest.approx(left, rel=0.2, abs=1)
    assert progress.done_latest_at - eta.at == pytest.approx(left, rel=0.2, abs=1)
    if case != "two batches in turns":
        assert progress.lines_per_second == pytest.approx(rate_at(eta.at), rel=0.2)


def test_a_change_widens_the_range_first():
    """Right after the capacity has halved, the range has both possible ends."""

    def rate_at(at):
        return 640 if at < 200 else 320

    eta = observed(rate_at, 210)
    total = 200_000
    progress = eta.progress(total, DAY, eta.at)
    left = rest(rate_at, eta.at, total - eta.done) - eta.at
    assert progress.done_earliest_at - eta.at < left * 0.75
    assert progress.done_latest_at - progress.done_earliest_at > 0.3 * left


def moving(gap, until):
    """An ETA of a batch whose lines come ten at a time."""
    eta, at = Eta.start(0.0, 0), 0.0
    while at < until:
        at += gap
        eta.observe(at, eta.done + 10)
    return eta


@given(gap=st.floats(0.5, 200), looks=st.integers(1, 30))
def test_a_quiet_batch_has_no_rate_and_no_end(gap, looks):
    """Its end is shown until the pause is longer than usual; then its slack falls with the time."""
    eta = moving(gap, 10 * gap)
    stood_at, total = eta.at, eta.done + 1_000
    for look in range(1, looks + 1):
        eta.observe(stood_at + look, eta.done)
        progress = eta.progress(total, DAY, eta.at)
        assert (progress.lines_per_second == 0) == (look >= min(max(QUIET_SECONDS, QUIET_GAPS * gap), 300))
        assert (progress.done_latest_at is None) == (progress.lines_per_second == 0)
    eta.observe(stood_at + 1_000, eta.done)
    early = eta.progress(total, DAY, eta.at)
    eta.observe(stood_at + 2_000, eta.done)
    late = eta.progress(total, DAY, eta.at)
    assert early.slack_seconds - late.slack_seconds == pytest.approx(1_000, abs=1)
    eta.observe(eta.at + gap, eta.done + 10)
    assert eta.progress(total, DAY, eta.at).done_latest_at is not None


@given(gap=st.floats(0.5, 50), age=st.integers(0, 4_000))
def test_an_old_record_shows_no_old_rate(gap, age):
    """Its reader sees no rate of minutes ago, no end in the past, and the present slack."""
    eta = moving(gap, 20 * gap)
    progress = eta.progress(eta.done + 1_000, DAY, eta.at)
    now = eta.at + age
    seen = progress.at(now)
    assert seen.done_latest_at is None or seen.done_latest_at >= now
    if age > max(QUIET_SECONDS, QUIET_GAPS * gap) + MARGIN_SECONDS + 2:
        assert (seen.lines_per_second, seen.done_earliest_at, seen.done_latest_at) == (None, None, None)
        assert seen.slack_seconds == progress.slack_seconds - (int(now) - progress.observed_at)
    eta.observe(eta.at + 1_000, eta.done)
    stands = eta.progress(eta.done + 1_000, DAY, eta.at)
    assert stands.at(eta.at + age).slack_seconds == pytest.approx(stands.slack_seconds - age, abs=1)
    assert stands.at(eta.at + age).lines_per_second == 0


def test_too_few_lines_have_no_rate():
    """The share of final lines is always shown."""
    eta = Eta.start(100.0, 50)
    eta.observe(101.0, 50 + SURE_LINES - 1)
    progress = eta.progress(100, DAY, eta.at)
    assert progress.percent == 69.0
    assert progress.lines_per_second is None


def test_a_batch_without_lines_has_a_share_of_0():
    """There is no division by zero."""
    assert Eta.start(0.0, 0).progress(0, DAY, 0.0).percent == 0.0


@pytest.mark.parametrize("gap", [5.0, 120.0, 1_000.0])
@pytest.mark.parametrize("lines", [1, 64])
def test_a_pause_of_any_length_has_a_progress(gap, lines):
    """Between two long calls the fast average falls towards 0; an end beyond all bounds is none."""
    eta, total = Eta.start(0.0, 0), 5_000_000
    for number in range(1, 40):
        eta.observe(number * gap, number * lines)
    for later in (1, 10, 100, 250, 299, 1_000, 100_000):
        eta.observe(39 * gap + later, 39 * lines)
        progress = eta.progress(total, DAY, eta.at)
        assert progress.done_latest_at is None or progress.done_latest_at <= eta.at + 2 * LEFT_SECONDS_MAX
