"""When a failed call is made again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors import retry
from tidemill.processors.retry import GiveUp, Kind, Lapse, RetryAt

NOW = 1_000_000.0
chances = st.floats(0, 1, exclude_max=True)
attempts = st.integers(1, 100_000)
OPEN = {"attempt": 1, "now": NOW, "since": NOW, "well": False, "deadline": 1e12, "chance": 0.5}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, None), (400, None), (413, None), (422, None), (499, None),
        (408, Kind.SUSPECT), (409, Kind.SUSPECT), (425, Kind.SUSPECT), (500, Kind.SUSPECT), (529, Kind.SUSPECT),
        (429, Kind.OUTAGE), (502, Kind.OUTAGE), (503, Kind.OUTAGE), (504, Kind.OUTAGE),
        (401, Kind.FAULT), (403, Kind.FAULT), (404, Kind.FAULT), (302, Kind.FAULT),
    ],
)  # fmt: skip
def test_a_status_says_whose_fault_it_is(status: int, kind: Kind | None) -> None:
    """Only 2xx and those 4xx that are about the line are answers."""
    assert retry.kind_of(status) is kind


@given(attempts, chances, st.sampled_from([Kind.OUTAGE, Kind.SUSPECT]))
def test_jitter_is_full_and_bounded(attempt: int, chance: float, kind: Kind) -> None:
    """The wait is a random part of a bound that doubles up to a minute."""
    verdict = retry.decide(kind, **{**OPEN, "attempt": attempt, "chance": chance, "well": False})
    bound = min(60.0, 0.5 * 2 ** min(attempt - 1, 100))
    assert verdict == RetryAt(NOW + chance * bound)


waits = st.tuples(st.floats(0, 1e6), st.floats(0, 1e6))


@given(attempts, chances, waits, st.sampled_from(list(Kind)), st.booleans())
def test_no_try_at_or_after_the_deadline(
    attempt: int, chance: float, wait: tuple[float, float], kind: Kind, well: bool
) -> None:
    """A wait that reaches the deadline is none: the line lapses."""
    left, retry_after = wait
    deadline = NOW + left
    verdict = retry.decide(
        kind, attempt=attempt, now=NOW, since=NOW, well=well, deadline=deadline, chance=chance,
        retry_after=retry_after,
    )  # fmt: skip
    match verdict:
        case RetryAt(at):
            assert NOW + retry_after <= at < deadline
        case Lapse():
            assert kind is not Kind.FINAL
        case GiveUp():
            assert kind is Kind.FINAL or (kind is Kind.SUSPECT and attempt >= retry.ATTEMPTS_MIN and well)


@given(attempts, chances, st.floats(0, 1e8), st.booleans())
def test_an_outage_fails_no_line(attempt: int, chance: float, past: float, well: bool) -> None:
    """However often and however long: only the deadline ends the tries."""
    for kind in (Kind.OUTAGE, Kind.FAULT):
        verdict = retry.decide(
            kind, **{**OPEN, "attempt": attempt, "chance": chance, "since": NOW - past, "well": well}
        )
        assert isinstance(verdict, RetryAt)


@given(attempts, st.floats(0, 1e6), st.booleans(), chances)
def test_a_suspect_line_fails_after_its_tries(attempt: int, past: float, well: bool, chance: float) -> None:
    """Ten tries, and another line was answered meanwhile or five minutes have passed."""
    verdict = retry.decide(
        Kind.SUSPECT, **{**OPEN, "attempt": attempt, "since": NOW - past, "well": well, "chance": chance}
    )
    is_over = attempt >= 10 and (well or NOW - (NOW - past) >= 300)
    assert isinstance(verdict, GiveUp) == is_over


@given(attempts, chances)
def test_a_backend_set_up_wrongly_is_asked_slowly(attempt: int, chance: float) -> None:
    """No sooner than every five seconds."""
    verdict = retry.decide(Kind.FAULT, **{**OPEN, "attempt": attempt, "chance": chance})
    assert isinstance(verdict, RetryAt)
    assert verdict.at >= NOW + 5


def test_a_backend_that_fails_every_line_fails_none() -> None:
    """However long it says 500, or answers with pages for people."""
    for attempt, past in ((10, 300), (1000, 1e6)):
        case = {**OPEN, "attempt": attempt, "since": NOW - past}
        assert isinstance(retry.decide(Kind.SUSPECT, **case, alone=False), RetryAt)
        assert isinstance(retry.decide(Kind.SUSPECT, **case, alone=True), GiveUp)


@given(attempts, chances, st.sampled_from([Kind.OUTAGE, Kind.SUSPECT]))
def test_beyond_the_budget_tries_are_spread(attempt: int, chance: float, kind: Kind) -> None:
    """Five seconds at least."""
    verdict = retry.decide(kind, **{**OPEN, "attempt": min(attempt, 9), "chance": chance}, spread=True)
    assert isinstance(verdict, RetryAt)
    assert verdict.at >= NOW + 5
