"""Whether a server is called at all."""

from hypothesis import given
from hypothesis import strategies as st
from support.virtual import failed

from tidemill.processors.backends.breaker import (
    ACCESS_PAUSE_SECONDS_MAX,
    ASKED_PAUSE_SECONDS_MAX,
    PAUSE_SECONDS_MAX,
    PROBE_SECONDS_MAX,
    PROBES,
    ROW,
    ROW_NEW,
    Breaker,
)
from tidemill.processors.failures import Fault

faults = st.sampled_from([Fault.SERVER, Fault.ACCESS_OR_LINE, Fault.SERVER_OR_LINE])


def fail(breaker: Breaker, fault: Fault, now: float, asked: float | None = None) -> None:
    """Fail as many lines as the breaker needs to open."""
    for _ in range(ROW):
        is_probe = breaker.sent(now)
        breaker.failed(failed(fault, at=now, retry_after=asked), is_probe=is_probe)
        if not breaker.admits(now):
            return


@given(faults)
def test_a_pause_ends_with_few_calls(fault: Fault) -> None:
    """No call goes out before its end; then a few do, and no other until all have failed or are overdue."""
    breaker = Breaker()
    fail(breaker, fault, 0.0)
    assert not breaker.admits(breaker.until - 0.001)
    now = breaker.until
    probes = 0
    while breaker.admits(now):
        assert breaker.sent(now)
        probes += 1
    assert probes == (1 if fault is Fault.SERVER else PROBES)
    assert breaker.admits(now + PROBE_SECONDS_MAX)
    for _ in range(probes):
        assert not breaker.is_open
        breaker.failed(failed(fault, at=now), is_probe=True)
    assert breaker.is_open
    assert breaker.until > now


@given(faults)
def test_one_probe_that_is_answered_opens_everything(fault: Fault) -> None:
    """Whatever the outcomes of the others."""
    breaker = Breaker()
    fail(breaker, fault, 0.0)
    now = breaker.until
    while breaker.admits(now):
        breaker.sent(now)
    breaker.answered()
    breaker.failed(failed(at=now), is_probe=True)
    assert breaker.admits(now)
    assert not breaker.is_open


@given(st.lists(st.tuples(faults, st.none() | st.floats(0, 1e6)), min_size=1, max_size=40))
def test_pauses_are_bounded_and_end_with_an_answer(failures: list[tuple[Fault, float | None]]) -> None:
    """However often the server failed and whatever `Retry-After` it sent."""
    breaker = Breaker()
    now = 0.0
    for fault, asked in failures:
        fail(breaker, fault, now, asked)
        longest = max(PAUSE_SECONDS_MAX, ACCESS_PAUSE_SECONDS_MAX, min(asked or 0, ASKED_PAUSE_SECONDS_MAX))
        assert breaker.until <= now + longest
        now = max(now, breaker.until)
    breaker.answered()
    assert breaker.admits(now)
    assert not breaker.is_open


def test_what_the_server_asks_for_is_done() -> None:
    """`Retry-After` is longer than its own pause would be."""
    breaker = Breaker()
    fail(breaker, Fault.SERVER, 0.0, asked=20.0)
    assert breaker.until == 20.0


def test_calls_of_before_say_nothing_new() -> None:
    """A hundred calls in flight when the server went down cause one pause."""
    breaker = Breaker()
    for _ in range(100):
        breaker.failed(failed(), is_probe=False)
    assert breaker.failures == 1


@given(st.integers(0, 100))
def test_a_server_has_to_fail_more_lines_than_it_may_answer_yet(in_flight: int) -> None:
    """Bad lines fail at once, while good ones take longer; a server that has answered is better known."""
    breaker = Breaker()
    for number in range(2):
        row = 0
        while breaker.admits(0.0):
            breaker.failed(failed(), is_probe=False, in_flight=in_flight)
            row += 1
        assert row == 2 * in_flight + (ROW if number else ROW_NEW)
        breaker.answered()


def test_what_is_said_for_certain_needs_no_second_line() -> None:
    """A refused connection, or a full server."""
    for fault, is_full in ((Fault.SERVER, False), (Fault.SERVER_OR_LINE, True)):
        breaker = Breaker()
        breaker.failed(failed(fault, is_full=is_full), is_probe=False, in_flight=10)
        assert not breaker.admits(0.0)
