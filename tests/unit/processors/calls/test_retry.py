"""When a failed call is made again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors import failures
from tidemill.processors.calls import retry
from tidemill.processors.calls.retry import Expire, GiveUp, RetryAt
from tidemill.processors.failures import Kind, Past, kind_of

NOW = 1_000_000.0
chances = st.floats(0, 1, exclude_max=True)
attempts = st.integers(1, 100_000)
kinds = st.sampled_from([Kind.OUTAGE, Kind.REFUSAL, Kind.SUSPECT])
pasts = st.builds(
    Past,
    since=st.floats(0, 1e6).map(lambda seconds: NOW - seconds),
    failures=st.integers(1, 1000),
    tries=st.integers(0, 1000),
    refusals=st.integers(0, 1000),
)
OPEN = {"attempt": 1, "now": NOW, "deadline": 1e12, "chance": 0.5}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, None), (400, None), (406, None), (413, None), (422, None), (451, None), (499, None),
        (408, Kind.SUSPECT), (409, Kind.SUSPECT), (424, Kind.SUSPECT), (425, Kind.SUSPECT), (429, Kind.SUSPECT),
        (500, Kind.SUSPECT), (502, Kind.SUSPECT), (503, Kind.SUSPECT), (504, Kind.SUSPECT), (529, Kind.SUSPECT),
        (401, Kind.REFUSAL), (402, Kind.REFUSAL), (403, Kind.REFUSAL), (404, Kind.REFUSAL), (302, Kind.REFUSAL),
    ],
)  # fmt: skip
def test_a_status_says_whose_fault_it_may_be(status: int, kind: Kind | None) -> None:
    """Only 2xx and those 4xx that are about the line are answers."""
    assert kind_of(status) is kind


@given(kinds, pasts, attempts, chances)
def test_no_line_fails_while_its_server_answers_nobody(
    kind: Kind, past: Past, attempt: int, chance: float
) -> None:
    """However often and for how long it has failed, and whatever the server says."""
    verdict = retry.decide(kind, past, **{**OPEN, "attempt": attempt, "chance": chance}, counts=False)
    assert isinstance(verdict, RetryAt)


@given(kinds, pasts, attempts, chances)
def test_a_line_fails_when_enough_failures_count(kind: Kind, past: Past, attempt: int, chance: float) -> None:
    """Two refusals, or ten failures over a minute; what fails at once needs neither."""
    verdict = retry.decide(kind, past, **{**OPEN, "attempt": attempt, "chance": chance}, counts=True)
    is_over = past.refusals >= 2 or (past.tries >= 10 and NOW - past.since >= 60)
    assert isinstance(verdict, GiveUp) == is_over
    assert retry.decide(Kind.FINAL, past, **OPEN, counts=False) == GiveUp()


seen = st.sampled_from([Kind.REFUSAL, Kind.SUSPECT])


@given(st.lists(st.tuples(seen, st.booleans()), min_size=1, max_size=30))
def test_what_counts_is_counted(failures: list[tuple[Kind, bool]]) -> None:
    """And the one before the first that does: others were answered after it."""
    past = Past(NOW)
    for kind, counts in failures:
        past.note(kind, counts=counts)
    counted = [number for number, (_, counts) in enumerate(failures) if counts]
    assert past.tries == len(counted) + bool(counted and counted[0])
    assert (past.refusals > 0) == ((Kind.REFUSAL, True) in failures)
    assert past.failures == len(failures)


def test_what_reached_no_server_says_nothing_of_the_line() -> None:
    """Nor does the refusal of a server that is full, if it is not refused for ever."""
    past = Past(NOW)
    past.note(Kind.OUTAGE, counts=False)
    assert (past.failures, past.is_clear) == (0, True)
    for number in range(10):
        past.note(Kind.SUSPECT, counts=False, is_full=True)
        assert past.is_clear == (number < failures.CLEAR_FAILURES_MAX)


@given(attempts, chances, st.sampled_from([Kind.OUTAGE, Kind.SUSPECT]))
def test_jitter_is_full_and_bounded(attempt: int, chance: float, kind: Kind) -> None:
    """The wait is a random part of a bound that doubles up to a minute."""
    verdict = retry.decide(kind, Past(NOW), **{**OPEN, "attempt": attempt, "chance": chance}, counts=False)
    assert verdict == RetryAt(NOW + chance * min(60.0, 0.5 * 2 ** min(attempt - 1, 100)))


@given(chances)
def test_ten_tries_fit_into_little_more_than_a_minute(chance: float) -> None:
    """The last one comes when the minute is over."""
    past, now = Past(NOW), NOW
    for attempt in range(1, 11):
        past.note(Kind.SUSPECT, counts=True)
        case = {**OPEN, "attempt": attempt, "now": now, "chance": chance}
        verdict = retry.decide(Kind.SUSPECT, past, **case, counts=True)
        if isinstance(verdict, RetryAt):
            now = verdict.at
    assert isinstance(verdict, GiveUp)
    assert 60 <= now - NOW <= 90


@given(kinds, pasts, chances, st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), st.booleans())
def test_no_try_at_or_after_the_deadline(
    kind: Kind, past: Past, chance: float, wait: tuple[float, float], counts: bool
) -> None:
    """A wait that reaches the deadline is none: the line lapses."""
    left, retry_after = wait
    case = {**OPEN, "deadline": NOW + left, "chance": chance, "retry_after": retry_after}
    match retry.decide(kind, past, **case, counts=counts):
        case RetryAt(at):
            assert NOW + retry_after <= at < NOW + left
        case Expire():
            assert True
        case GiveUp():
            assert counts


@given(kinds, chances)
def test_a_line_goes_to_another_server_at_once(kind: Kind, chance: float) -> None:
    """Where its own answers nobody, whatever that asked for."""
    verdict = retry.decide(
        kind, Past(NOW), **{**OPEN, "chance": chance}, counts=False, elsewhere=True, retry_after=60.0
    )
    assert verdict == RetryAt(NOW)
