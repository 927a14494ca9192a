"""Slow start: how far a limit opens that was not used lately."""

from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.limits.slow_start import (
    PROVEN_SECONDS,
    REFUSED_DIVISOR,
    SLICE_CALLS_MIN,
    SLICE_SECONDS,
    SLICES,
    START_CALLS,
    SlowStart,
)


def poured(sluice: SlowStart, calls: int, now: float, in_flight: int = 0) -> list[int]:
    """Send as many calls as allowed at a time; returns the slices."""
    slices = []
    sluice.tick(in_flight, calls, now)
    while in_flight < min(calls, sluice.level):
        in_flight += 1
        slices.append(sluice.sent(in_flight))
        sluice.tick(in_flight, calls, now)
    return slices


@given(st.integers(1, 10_000))
def test_it_is_open_after_its_slices(calls: int) -> None:
    """Each slice is an eighth of the unproven part, and none comes early."""
    sluice = SlowStart()
    most = max(SLICE_CALLS_MIN, -(-(calls - START_CALLS) // SLICES))
    in_flight, now = 0, 0.0
    for number in range(SLICES):
        sent = len(poured(sluice, calls, now, in_flight))
        assert sent <= most + (START_CALLS if number == 0 else 0)
        in_flight += sent
        assert not poured(sluice, calls, now + SLICE_SECONDS / 2, in_flight)
        now += SLICE_SECONDS
    assert in_flight == calls


@given(st.integers(1, 500), st.floats(0, 10 * PROVEN_SECONDS))
def test_what_was_in_flight_lately_goes_out_at_once(calls: int, pause: float) -> None:
    """Within one period; after two, calls go out in slices again, whatever the limit was."""
    sluice = SlowStart()
    in_flight = 0
    for number in range(SLICES):
        in_flight += len(poured(sluice, calls, number * SLICE_SECONDS, in_flight))
    at_once = len(poured(sluice, calls, SLICES * SLICE_SECONDS + pause))
    if pause < PROVEN_SECONDS - SLICES * SLICE_SECONDS:
        assert at_once == calls
    elif pause > 2 * PROVEN_SECONDS:
        assert at_once <= START_CALLS + max(SLICE_CALLS_MIN, calls // SLICES + 1)


@given(st.integers(START_CALLS + 1, 256), st.data())
def test_a_full_backend_is_told_by_a_slice(capacity: int, data: st.DataObject) -> None:
    """What it refuses is above its capacity; in which order we hear of it does not matter."""
    sluice = SlowStart()
    in_flight, now, taken, refused = 0, 0.0, None, 0
    while taken is None and in_flight < 256:
        slices = poured(sluice, 256, now, in_flight)
        sent, now = in_flight + len(slices), now + SLICE_SECONDS
        beyond = slices[len(slices) - max(0, sent - max(capacity, in_flight)) :] if sent > capacity else []
        for number in data.draw(st.permutations(beyond)):
            sent -= 1
            refused += 1
            taken = sluice.refused(number, sent)
        in_flight = sent
    assert taken in {None, capacity}
    assert refused <= 256 // SLICES + SLICE_CALLS_MIN * SLICES


@given(st.lists(st.tuples(st.sampled_from(["sent", "ended", "refused"]), st.integers(0, 300), st.floats(0, 1))))
def test_whatever_happens_some_calls_may_go_out(steps: list[tuple[str, int, float]]) -> None:
    """And never fewer than are in flight."""
    sluice = SlowStart()
    now, slices = 0.0, []
    for step, calls, seconds in steps:
        now += seconds
        sluice.tick(len(slices), calls, now)
        if step == "sent" and len(slices) < min(calls, sluice.level):
            slices.append(sluice.sent(len(slices) + 1))
        elif step != "sent" and slices:
            number = slices.pop()
            if step == "refused" and number:
                sluice.refused(number, len(slices))
        assert sluice.level >= max(START_CALLS, len(slices))


def test_a_few_refused_of_many_are_chance() -> None:
    """Of a slice; more than half of it are not, also where other calls went out in their place."""
    sluice = SlowStart()
    slices = [number for number in poured(sluice, 256, 0.0) if number]
    in_flight = START_CALLS + len(slices)
    assert len(slices) == 31
    assert {sluice.refused(slices[0], in_flight) for _ in range(len(slices) // REFUSED_DIVISOR)} == {None}
    again = [sluice.sent(in_flight) for _ in range(100)]
    assert again.count(slices[-1]) == len(slices), "as many again count"
    heard = [sluice.refused(slices[0], in_flight - number) for number in range(20)]
    assert heard[:8] == [None] * 8
    assert heard[-1] is not None


def test_a_few_calls_at_a_time_open_nothing() -> None:
    """However long they go on: a level counts as proven only if it was in flight."""
    sluice = SlowStart()
    for tick in range(1000):
        now = tick * SLICE_SECONDS
        sluice.tick(5, 256, now)
        sluice.sent(6)
    assert sluice.level <= START_CALLS + 256 / SLICES


def test_refusals_of_an_older_opening_say_nothing() -> None:
    """Calls whose refusal took long."""
    sluice = SlowStart()
    old = poured(sluice, 256, 0.0)
    poured(sluice, 256, 10 * PROVEN_SECONDS)
    assert {sluice.refused(number, 0) for number in old if number} == {None}
