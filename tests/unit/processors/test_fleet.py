"""Which backend takes the next call."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.fleet import RETRIES_PER_ANSWER, RETRIES_SAVED_MAX, Backend, Fleet
from tidemill.processors.limit import START_CALLS, Limit
from tidemill.processors.retry import Kind

kinds = st.sampled_from([Kind.OUTAGE, Kind.FAULT, Kind.SUSPECT])
LINE = ("batch", 0)


def fail(fleet: Fleet, kind: Kind, now: float, line: tuple[str, int] = LINE) -> str:
    """Make a call that fails; returns whom it went to."""
    call = fleet.enter(now)
    assert call is not None
    fleet.failed(call, kind, line, now, full=False, asked=None)
    return call.backend.base


@given(st.lists(st.integers(0, START_CALLS - 1), min_size=1, max_size=6))
def test_the_least_loaded_is_taken(loads: list[int]) -> None:
    """Among backends that are well."""
    fleet = Fleet([Backend(str(number), Limit(64), in_flight=load) for number, load in enumerate(loads)])
    call = fleet.enter(0.0)
    assert call is not None
    assert call.backend.in_flight == min(loads) + 1


@given(kinds, st.integers(10, 200))
def test_a_broken_backend_swallows_few_calls(kind: Kind, calls: int) -> None:
    """One that fails at once has nothing in flight; the other gets the calls all the same."""
    fleet = Fleet([Backend("broken", Limit(64)), Backend("well", Limit(64))])
    asked: Counter[str] = Counter()
    for number in range(calls):
        now = number / 1000
        call = fleet.enter(now)
        assert call is not None
        asked[call.backend.base] += 1
        if call.backend.base == "broken":
            fleet.failed(call, kind, LINE, now, full=False, asked=None)
        else:
            fleet.answered(call, now)
    assert asked["broken"] <= 3


def test_when_all_are_down_nobody_is_called() -> None:
    """And it is known when to look again: at the end of the first pause."""
    fleet = Fleet([Backend("a", Limit(64)), Backend("b", Limit(64))])
    assert {fail(fleet, Kind.OUTAGE, 0.0), fail(fleet, Kind.OUTAGE, 0.1)} == {"a", "b"}
    assert fleet.enter(0.2) is None
    at = fleet.opens_at(0.2)
    assert at == min(backend.breaker.until for backend in fleet.backends)
    assert fleet.enter(at) is not None
    assert fleet.enter(at) is None


def test_one_that_is_drained_gets_nothing() -> None:
    """What it has in flight ends as ever."""
    fleet = Fleet([Backend("a", Limit(64), drain=True), Backend("b", Limit(64), in_flight=5)])
    assert [fail(fleet, Kind.SUSPECT, 0.0) for _ in range(2)] == ["b", "b"]
    assert Fleet([Backend("a", Limit(64), drain=True)]).enter(0.0) is None


def test_a_ceiling_of_the_hour_holds() -> None:
    """Nothing at noon."""
    ceilings = [2]
    fleet = Fleet([Backend("a", Limit(64), ceiling=lambda: ceilings[-1])])
    first, second = fleet.enter(0.0), fleet.enter(0.0)
    assert first
    assert second
    assert fleet.enter(0.0) is None
    fleet.leave(first)
    fleet.leave(second)
    ceilings.append(0)
    assert fleet.enter(200.0) is None


@given(st.lists(st.booleans(), max_size=400))
def test_retries_are_few_beside_answers(answers: list[bool]) -> None:
    """The budget is a part of what was answered, and what was saved."""
    fleet = Fleet([Backend("a", Limit(64))])
    answered = retried = 0
    for good in answers:
        call = fleet.enter(0.0)
        assert call is not None
        fleet.answered(call, 0.0)
        answered += 1
        if not good:
            retried += fleet.may_retry(call)
    assert retried <= RETRIES_SAVED_MAX + RETRIES_PER_ANSWER * answered + 1


def test_a_backend_that_fails_all_is_told_from_a_bad_line() -> None:
    """One line that fails again and again is alone; two are not; an answer begins anew."""
    backend = Backend("a", Limit(64))
    fleet = Fleet([backend])
    for now in range(2):
        fail(fleet, Kind.SUSPECT, float(now))
    assert not backend.fails_all
    fail(fleet, Kind.SUSPECT, 2.0, ("batch", 1))
    assert backend.fails_all
    call = fleet.enter(1000.0)
    assert call is not None
    fleet.answered(call, 1000.0)
    assert not backend.fails_all
