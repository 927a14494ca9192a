"""The concurrency limit against a backend in virtual time."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.virtual import Server, lone

from tidemill.processors.limits.concurrency_limit import CREDIT_REFUSALS_MAX, ConcurrencyLimit, Slot
from tidemill.processors.limits.slow_start import PROVEN_SECONDS, SLICE_SECONDS, SLICES, START_CALLS

STEADY_REFUSED_MAX = 0.02
paces = st.sampled_from(
    [(lambda _: 0.1, 40), (lambda rng: 0.05 + rng.expovariate(10), 40), (lambda rng: 2 * rng.expovariate(1), 400)]
)
"""Durations of calls, and the seconds after which one trial more or less no longer matters."""


@given(st.integers(4, 64), paces, st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_the_capacity_is_found_and_kept_to(capacity: int, pace: tuple[object, int], seed: int) -> None:
    """After twenty seconds the calls use nine tenths of it, and at most one call in fifty is refused."""
    latency, seconds = pace
    server = Server(lone(ConcurrencyLimit(128)), capacity=lambda _: capacity, latency_seconds=latency, seed=seed)
    server.run(20)
    steady = server.run(seconds)
    assert steady.refused_share <= STEADY_REFUSED_MAX
    assert server.in_flight >= 0.9 * capacity


@pytest.mark.parametrize("latency", [0.1, 20.0])
def test_it_is_found_within_seconds(latency: float) -> None:
    """Also if calls take far longer: a call that is not refused at once counts as accepted."""
    server = Server(lone(ConcurrencyLimit(256)), capacity=lambda _: 1000, latency_seconds=lambda _: latency)
    server.run(6)
    assert server.in_flight == 256


@pytest.mark.parametrize(("before", "after"), [(64, 32), (32, 64), (80, 10), (10, 80)])
def test_it_follows_a_change(before: int, after: int) -> None:
    """Ten seconds later the new capacity is used as if it had always been so."""
    server = Server(lone(ConcurrencyLimit(256)), capacity=lambda now: before if now < 1020 else after)
    server.run(30)
    steady = server.run(20)
    assert steady.refused_share <= STEADY_REFUSED_MAX
    assert 0.9 * after * 10 <= steady.answered / 20 <= after * 10 * 1.02


@given(st.floats(0, 0.06), st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_refusals_at_random_are_no_limit(share: float, seed: int) -> None:
    """They say nothing about capacity, and their `Retry-After` delays no other call."""
    server = Server(lone(ConcurrencyLimit(100)), capacity=lambda _: 1000, refused_share=share, seed=seed)
    server.run(5)
    steady = server.run(10)
    assert steady.sent >= 0.9 * 1000 * 10


def test_it_never_starves() -> None:
    """A backend that refuses nearly everything is asked again and again, and comes back."""
    server = Server(lone(ConcurrencyLimit(64)), capacity=lambda now: 0 if now < 1060 else 64, retry_after=None)
    assert server.run(60).sent <= 30
    server.run(10)
    assert server.run(10).answered >= 0.9 * 6400


def test_a_ceiling_is_a_ceiling() -> None:
    """However much the backend would take."""
    limit = ConcurrencyLimit(10)
    server = Server(lone(limit), capacity=lambda _: 1000)
    assert max(server.run(30).limits) == 10


@given(st.floats(0.05, 1.0))
@settings(max_examples=5, deadline=None)
def test_a_share_leaves_the_rest(share: float) -> None:
    """The process takes its share of the limit; a backend that takes every call shows none below the ceiling."""
    limit = ConcurrencyLimit(100)
    limit.configure(100, share)
    server = Server(lone(limit), capacity=lambda _: 1000)
    server.run(30)
    assert server.in_flight == math.ceil(100 * share)


@given(st.lists(st.tuples(st.sampled_from(["sent", "answered", "refused", "late", "tick", "halve", "hold"]),
                          st.floats(0, 2)), max_size=200))  # fmt: skip
def test_whatever_happens_it_stays_in_bounds(steps: list[tuple[str, float]]) -> None:
    """At least one call, at most the ceiling; the credit within its bounds."""
    limit = ConcurrencyLimit(50)
    now, slots = 0.0, []
    for step, seconds in steps:
        now += seconds
        if step == "tick":
            limit.tick(len(slots), now)
        elif step == "halve":
            limit.halve()
        elif step == "hold":
            limit.hold(seconds > 1, most=int(20 * seconds) - 20 if seconds > 1 else None)
        elif step == "sent" and len(slots) < limit.allowed:
            slots.append(limit.sent(len(slots) + 1))
        elif step == "answered" and slots:
            limit.answered(slots.pop(), now)
        elif step in {"refused", "late"} and slots:
            limit.refused(slots.pop(), len(slots), now, late=step == "late")
        assert 1 <= limit.sure <= 50
        assert 1 <= limit.allowed <= 50
        assert 0 <= limit._credit <= CREDIT_REFUSALS_MAX


def test_a_held_limit_does_not_grow() -> None:
    """The backend reported waiting calls."""
    limit = ConcurrencyLimit(256)
    limit.hold(True)
    server = Server(lone(limit), capacity=lambda _: 1000)
    server.run(10)
    assert server.in_flight == 8
    limit.release()
    server.run(10)
    assert server.in_flight == 256
    limit.hold(True, most=100)
    server.run(1)
    assert server.in_flight == 100


def test_a_few_refusals_near_the_limit_are_relieved() -> None:
    """A server with a lagging count refuses some calls below its capacity; with slightly fewer it refuses none."""
    server = Server(lone(ConcurrencyLimit(128)), capacity=lambda _: 64, crowded=(60, 0.2))
    server.run(20)
    steady = server.run(40)
    assert steady.refused_share <= STEADY_REFUSED_MAX
    assert steady.answered >= 0.88 * 640 * 40


@pytest.mark.parametrize("capacity", [64, 200])
@pytest.mark.parametrize("deaf_seconds", [0.0, 0.005])
def test_few_are_refused_from_the_first_call_on(capacity: int, deaf_seconds: float) -> None:
    """Also if the process sees answers late, so that the server seems to take more calls than it does."""
    server = Server(lone(ConcurrencyLimit(256)), capacity=lambda _: capacity, deaf_seconds=deaf_seconds)
    whole = server.run(15)
    assert whole.refused_share <= STEADY_REFUSED_MAX / 2
    assert whole.answered >= 0.9 * capacity * 10 * 15


@given(st.integers(4, 1000), st.floats(0, 0.05), paces, st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_after_a_pause_a_limit_is_reached_again_or_found_to_be_old(
    capacity: int, refused_share: float, pace: tuple[object, int], seed: int
) -> None:
    """After some slices, an unchanged backend has as many calls as before; another one refused about one slice."""
    now_has = [1000]
    limit = ConcurrencyLimit(256)
    server = Server(
        lone(limit),
        capacity=lambda _: now_has[-1],
        latency_seconds=pace[0],  # type: ignore[arg-type]
        refused_share=refused_share,
        seed=seed,
    )
    server.run(20)
    server.rest(2 * PROVEN_SECONDS)
    found = limit.sure
    now_has.append(capacity)
    first = server.run((SLICES + 1) * SLICE_SECONDS)
    assert server.in_flight >= 0.9 * min(capacity, found)
    assert first.refused <= (2 / SLICES + 2 * refused_share) * 256
    assert limit.sure >= 0.9 * min(capacity, found)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_refusals_at_random_do_not_look_full_after_a_pause(seed: int) -> None:
    """They arrive before any answer, like those of a full backend; but each slice has few of them."""
    limit = ConcurrencyLimit(256)
    server = Server(lone(limit), capacity=lambda _: 1000, crowded=(0, 0.05), seed=seed)
    server.run(20)
    server.rest(2 * PROVEN_SECONDS)
    found = limit.sure
    server.run((SLICES + 1) * SLICE_SECONDS)
    assert limit.sure >= 0.9 * found


def test_a_trial_that_was_left_open_is_over_after_a_pause() -> None:
    """Its calls go out in slices with the others."""
    limit, now = ConcurrencyLimit(256), 0.0
    while limit.sure < 128:
        slots: list[Slot] = []
        for _ in range(SLICES + 1):
            now += SLICE_SECONDS
            limit.tick(len(slots), now)
            while len(slots) < limit.allowed:
                slots.append(limit.sent(len(slots) + 1))
                limit.tick(len(slots), now)
        for slot in slots:
            limit.answered(slot, now)
    slots = [limit.sent(number + 1) for number in range(limit.sure)]
    for _ in range(SLICES):
        now += SLICE_SECONDS
        limit.tick(len(slots), now)
    assert limit.allowed > limit.sure
    for slot in slots:
        limit.answered(slot, now)
    limit.tick(0, now + 10)
    assert limit.allowed <= START_CALLS + limit.sure / SLICES


def test_without_a_pause_nothing_is_sliced() -> None:
    """A moment without lines is no pause: as many calls as before go out at once."""
    server = Server(lone(ConcurrencyLimit(256)), capacity=lambda _: 1000)
    server.run(20)
    server.rest(PROVEN_SECONDS / 2)
    assert server.run(0.0).sent == 256


def test_a_backend_that_is_down_after_a_pause_is_left_alone() -> None:
    """It gets one slice, and then only probes, like any server that is down."""
    now_has = [1000]
    server = Server(lone(ConcurrencyLimit(256)), capacity=lambda _: now_has[-1])
    server.run(20)
    server.rest(60)
    now_has.append(0)
    assert server.run(10).sent <= START_CALLS + 256 / SLICES + 10


def test_a_trial_stops_at_its_first_refusals() -> None:
    """Of a large trial a full backend refuses only a slice; then the limit knows how many calls it took."""
    limit = ConcurrencyLimit(256)
    server = Server(lone(limit), capacity=lambda _: 100)
    assert server.run(2).refused <= 40
    assert 99 <= limit.sure <= 101
