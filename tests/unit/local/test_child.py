"""When a supervised process is restarted."""

from hypothesis import given
from hypothesis import strategies as st

from tidemill.local import child
from tidemill.local.child import Restart, decide_restart

CHANCES = st.floats(0, 1)
FAILURES = st.integers(0, 10_000)


def delays(count: int, chance: float = 0.0) -> list[float]:
    """The delays of a process that ends at once, again and again."""
    found, failures = [], 0
    for _ in range(count):
        step = decide_restart(failures=failures, alive_seconds=0, ever_ready=True, chance=chance)
        assert isinstance(step, Restart)
        failures = step.failures
        found.append(step.delay_seconds)
    return found


def test_delays_double_up_to_a_maximum():
    """The first delay is a tenth of a second, the longest ten seconds."""
    assert delays(9) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


@given(FAILURES, CHANCES)
def test_a_delay_stays_within_its_bounds(failures, chance):
    """For any number of failures and any random number."""
    step = decide_restart(failures=failures, alive_seconds=0, ever_ready=True, chance=chance)
    assert 0 < step.delay_seconds <= child.DELAY_SECONDS_MAX


@given(FAILURES, CHANCES)
def test_delays_start_over_after_a_long_life(failures, chance):
    """Earlier failures no longer count."""
    step = decide_restart(failures=failures, alive_seconds=child.STABLE_SECONDS, ever_ready=True, chance=chance)
    assert step.failures == 1
    assert step.delay_seconds <= child.DELAY_SECONDS_MIN


@given(FAILURES, st.floats(0, 1e6), CHANCES)
def test_a_process_that_was_ready_is_always_restarted(failures, alive_seconds, chance):
    """Its fault may pass."""
    step = decide_restart(failures=failures, alive_seconds=alive_seconds, ever_ready=True, chance=chance)
    assert isinstance(step, Restart)


def test_a_process_that_was_never_ready_is_given_up():
    """After a few attempts."""
    steps = [
        decide_restart(failures=n, alive_seconds=0, ever_ready=False, chance=0) for n in range(child.STARTS_MAX)
    ]
    assert [type(step) for step in steps] == [Restart] * (child.STARTS_MAX - 1) + [type(None)]
