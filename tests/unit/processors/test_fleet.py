"""Which backend takes the next call."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.fleet import COOLING_SECONDS_MAX, Backend, Fleet
from tidemill.processors.retry import Kind

kinds = st.sampled_from([Kind.OUTAGE, Kind.FAULT, Kind.SUSPECT])


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_the_least_loaded_is_taken(loads: list[int]) -> None:
    """Among backends that are well."""
    fleet = Fleet([Backend(str(number), in_flight=load) for number, load in enumerate(loads)])
    assert fleet.pick(0.0).in_flight == min(loads)


@given(kinds, st.integers(10, 200))
def test_a_broken_backend_swallows_few_calls(kind: Kind, calls: int) -> None:
    """One that fails at once has nothing in flight; the other gets the calls all the same."""
    fleet = Fleet([Backend("broken"), Backend("busy", in_flight=100)])
    asked = Counter()
    for number in range(calls):
        backend = fleet.pick(number / 1000)
        asked[backend.base] += 1
        if backend.base == "broken":
            fleet.failed(backend, kind, number / 1000)
    assert asked["broken"] <= 3


@given(st.lists(kinds, min_size=1, max_size=40))
def test_cooling_is_bounded_and_ends_with_an_answer(failures: list[Kind]) -> None:
    """However often it failed, it is asked again in time, and an answer clears it."""
    backend = Backend("a")
    fleet = Fleet([backend, Backend("b")])
    now = 0.0
    for kind in failures:
        fleet.failed(backend, kind, now)
        assert backend.cool_until <= now + COOLING_SECONDS_MAX
        now = max(now, backend.cool_until)
    fleet.answered(backend, now)
    assert fleet.pick(now) is backend


def test_one_line_alone_cools_nobody() -> None:
    """A line that breaks its calls between others that are answered is no sign against the backend."""
    fleet = Fleet([Backend("a"), Backend("b", in_flight=5)])
    for now in range(20):
        fleet.failed(fleet.backends[0], Kind.SUSPECT, float(now))
        assert fleet.pick(now).base == "a"
        fleet.answered(fleet.backends[0], float(now))


def test_when_all_cool_off_the_first_to_end_is_asked() -> None:
    """Lines are tried for as long as their deadline allows."""
    fleet = Fleet([Backend("a", cool_until=9.0), Backend("b", cool_until=5.0)])
    assert fleet.pick(1.0).base == "b"
