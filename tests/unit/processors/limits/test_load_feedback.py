"""A backend's metrics hold the limit: a backend in virtual time that queues requests."""

from hypothesis import given
from hypothesis import strategies as st
from support.servers import server
from support.virtual import Engine

from tidemill.processors.backends.server import Server
from tidemill.processors.limits.concurrency_limit import START_CALLS, ConcurrencyLimit
from tidemill.processors.limits.load_feedback import PATIENCE_READINGS, Demand, LoadFeedback
from tidemill.processors.limits.server_metrics import ServerMetrics


def backend() -> Server:
    return server("http://a", ConcurrencyLimit(256))


def test_a_backend_that_queues_is_filled_and_no_more() -> None:
    """It refuses no call, so without its metrics the calls would rise to the ceiling."""
    engine = Engine(backend(), capacity=64, others=lambda _: 0)
    engine.run(5)
    levels = engine.run(60)
    assert min(levels) >= 60
    assert sum(levels) / 60 >= 0.9 * 64
    assert sum(levels) / 60 <= 1.2 * 64
    deaf = Engine(backend(), capacity=64, others=lambda _: 0)
    assert deaf.run(20, is_asked=False)[-1] == 256


def test_a_cache_is_not_overrun_by_the_first_trials() -> None:
    """Long answers hold it for long; the limit estimates how many are too many from the running ones."""
    engine = Engine(backend(), capacity=24, others=lambda _: 0, seconds=10, held=1 / 24)
    levels = engine.run(60)
    assert max(levels) <= 24
    assert min(levels[5:]) >= 20


def test_room_is_what_the_cache_has_left() -> None:
    """Measured in calls like the running ones; calls that the server has not seen yet count as such."""
    half = ServerMetrics(running=16, waiting=0, cache=0.5)
    assert LoadFeedback().judge(half, 16, 32) == Demand(is_full=False, room=14)
    assert LoadFeedback().judge(half, 28, 32) == Demand(is_full=False, room=2)
    assert LoadFeedback().judge(half, 32, 32) == Demand(is_full=True)
    assert LoadFeedback().judge(ServerMetrics(running=16, waiting=0), 32, 32) == Demand(is_full=False)


def test_a_cache_in_use_says_nothing_while_no_request_runs() -> None:
    """Its content belongs to no running request."""
    idle = ServerMetrics(running=0, waiting=0, cache=0.05)
    assert LoadFeedback().judge(idle, in_flight=0, allowed=8) == Demand(is_full=False)


def test_others_who_wait_do_not_starve_us() -> None:
    """Without `headroom` no caller has priority: batches keep at least the calls that they began with."""
    engine = Engine(backend(), capacity=64, others=lambda _: 500)
    assert engine.run(60)[-1] >= START_CALLS


def test_a_full_cache_takes_calls_off() -> None:
    """Even if no request waits; a nearly full one holds the limit."""
    pressure = LoadFeedback()
    nearly, full = (ServerMetrics(running=64, waiting=0, cache=part) for part in (0.96, 1.0))
    assert {pressure.judge(nearly, 64, 64) for _ in range(10)} == {Demand(is_full=True)}
    pressure = LoadFeedback()
    assert [pressure.judge(full, 64, 64).most for _ in range(PATIENCE_READINGS)] == [None, None, 60]
    assert pressure.judge(ServerMetrics(running=1, waiting=0), 64, 64) == Demand(is_full=False)


def test_a_cache_of_which_next_to_nothing_is_used_bounds_nothing() -> None:
    """Whatever number a server reports."""
    assert LoadFeedback().judge(ServerMetrics(running=10, waiting=0, cache=1e-308), 10, 64).room is None


@given(
    st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1), st.integers(0, 99), st.integers(1, 99)), max_size=30)
)
def test_no_more_is_asked_than_waits(readings: list[tuple[int, float, int, int]]) -> None:
    """And none until the last cut takes effect."""
    pressure = LoadFeedback()
    for waiting, cache, in_flight, allowed in readings:
        demand = pressure.judge(ServerMetrics(running=10, waiting=waiting, cache=cache), in_flight, allowed)
        if demand.most is None:
            continue
        assert demand.is_full
        assert in_flight <= allowed
        assert in_flight - max(waiting, allowed // 16, 1) <= demand.most <= in_flight
