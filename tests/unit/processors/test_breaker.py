"""Whether a backend is called at all."""

from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.breaker import ASKED_PAUSE_SECONDS_MAX, PAUSE_SECONDS_MAX, PROBE_SECONDS_MAX, Breaker
from tidemill.processors.retry import Kind

kinds = st.sampled_from([Kind.OUTAGE, Kind.FAULT, Kind.SUSPECT])


def fail(breaker: Breaker, kind: Kind, now: float, asked: float | None = None) -> None:
    """As many calls as it takes."""
    for _ in range(3):
        is_probe = breaker.sent(now)
        breaker.failed(kind, now, is_probe=is_probe, asked=asked)
        if not breaker.admits(now):
            return


@given(kinds)
def test_a_pause_ends_with_one_call(kind: Kind) -> None:
    """Nothing goes out before its end; then one call does, and no other until that has failed or is overdue."""
    breaker = Breaker()
    fail(breaker, kind, 0.0)
    assert not breaker.admits(breaker.until - 0.001)
    now = breaker.until
    assert breaker.admits(now)
    assert breaker.sent(now)
    assert not breaker.admits(now)
    assert breaker.admits(now + PROBE_SECONDS_MAX)
    breaker.failed(kind, now, is_probe=True)
    assert breaker.until > now
    assert breaker.is_open


@given(st.lists(st.tuples(kinds, st.none() | st.floats(0, 1e6)), min_size=1, max_size=40))
def test_pauses_are_bounded_and_end_with_an_answer(failures: list[tuple[Kind, float | None]]) -> None:
    """However often it failed and whatever it asked for."""
    breaker = Breaker()
    now = 0.0
    for kind, asked in failures:
        fail(breaker, kind, now, asked)
        longest = max(PAUSE_SECONDS_MAX, 10.0, min(asked or 0, ASKED_PAUSE_SECONDS_MAX))
        assert breaker.until <= now + longest
        now = max(now, breaker.until)
    breaker.answered()
    assert breaker.admits(now)
    assert not breaker.is_open


def test_what_the_backend_asks_for_is_done() -> None:
    """`Retry-After` is longer than its own pause would be."""
    breaker = Breaker()
    fail(breaker, Kind.OUTAGE, 0.0, asked=20.0)
    assert breaker.until == 20.0


def test_calls_of_before_say_nothing_new() -> None:
    """A hundred calls that were in flight when it went away make one pause."""
    breaker = Breaker()
    for _ in range(100):
        breaker.failed(Kind.OUTAGE, 0.0, is_probe=False)
    assert breaker.failures == 1


def test_one_line_alone_opens_nothing() -> None:
    """A line that breaks its calls between others that are answered is no sign against the backend."""
    breaker = Breaker()
    for now in range(20):
        breaker.failed(Kind.SUSPECT, float(now), is_probe=False)
        assert breaker.admits(float(now))
        breaker.answered()
