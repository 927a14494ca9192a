"""When deliveries are attempted: pauses, the lanes of endpoints, the order of a batch, the end of an endpoint."""

import pytest

from tidemill.schemas.webhooks.messages import Health
from tidemill.webhooks import schedule
from tidemill.webhooks.schedule import DISABLE_SECONDS, LANE_MAX, LIFE_SECONDS, Schedule, Slots

DAY = 86_400


def test_pauses_double_up_to_an_hour_with_jitter():
    """Three days hold some eighty attempts; no two receivers get theirs at one time."""
    for attempts in range(1, 40):
        longest = min(schedule.LONGEST_SECONDS, schedule.FIRST_SECONDS * 2 ** (attempts - 1))
        found = {schedule.pause(attempts) for _ in range(50)}
        assert longest / 2 <= min(found) < max(found) <= longest
    assert 72 <= LIFE_SECONDS / schedule.LONGEST_SECONDS <= 144


def test_an_endpoint_is_disabled_after_five_days():
    """Not before, whatever the number of failures; a success begins anew, since its health is forgotten."""
    health = Health(project="p", endpoint_id="we_1")
    health = schedule.after_failure(health, 100)
    for at in range(101, 100 + DISABLE_SECONDS, 3600):
        assert schedule.after_failure(health, at) == health
    off = schedule.after_failure(health, 100 + DISABLE_SECONDS)
    assert (off.failing_since, off.disabled_at) == (100, 100 + DISABLE_SECONDS)
    assert schedule.after_failure(off, 100 + 2 * DISABLE_SECONDS) == off


def filled(lanes, each, slots=None):
    found = Schedule(slots or Slots())
    for lane in range(lanes):
        for number in range(each):
            found.put(f"{lane}-{number}", f"we_{lane}", f"batch_{number}", 0.0)
    return found


def test_a_lane_is_bounded_and_holds_up_no_other():
    """One endpoint with a thousand events leaves room for another's one."""
    found = filled(1, 1_000)
    found.put("other", "we_other", "batch", 0.0)
    started = found.start(0.0)
    assert "other" in started
    assert len(started) == LANE_MAX + 1
    assert not found.is_due(0.0)


def test_lanes_share_the_slots_in_turn():
    """With fewer slots than lanes, each lane has had a turn before one has a second."""
    slots = Slots(free=4)
    found = filled(8, 2, slots)
    first = found.start(0.0)
    for each in first:
        found.returned(each, is_good=True)
        found.drop(each, 0.0)
    second = found.start(0.0)
    assert {each.partition("-")[0] for each in first + second} == set("01234567")
    found.close()
    assert slots.free == 4


def test_a_failing_lane_gets_fewer_attempts():
    """One at a time after three failures; a success opens it."""
    found = filled(1, 100)
    for _ in range(3):
        for each in found.start(0.0):
            found.returned(each, is_good=False)
            found.again(each, 1e9)
    (only,) = found.start(0.0)
    found.returned(only, is_good=True)
    found.drop(only, 0.0)
    assert len(found.start(0.0)) == LANE_MAX


def test_the_events_of_a_batch_go_in_order():
    """The second waits for the end of the first, also while that waits for its next attempt."""
    found = Schedule(Slots())
    for name in ("first", "second", "third"):
        found.put(name, "we_1", "batch_1", 0.0)
    found.put("elsewhere", "we_2", "batch_1", 0.0)
    assert set(found.start(0.0)) == {"first", "elsewhere"}
    found.returned("first", is_good=False)
    found.again("first", 10.0)
    assert found.start(5.0) == []
    assert found.start(10.0) == ["first"]
    found.returned("first", is_good=True)
    found.drop("second", 10.0)
    found.drop("first", 10.0)
    assert found.start(10.0) == ["third"]


@pytest.mark.parametrize("times", [2, 3])
def test_a_delivery_is_added_once(times):
    """A copy of an event changes nothing."""
    found = Schedule(Slots())
    for _ in range(times):
        found.put("a", "we_1", "batch_1", 0.0)
    assert found.start(0.0) == ["a"]
    assert len(found) == 1


@pytest.mark.parametrize("others", [0, 1])
def test_an_earlier_life_of_a_delivery_starts_no_attempt(others):
    """It ends while it waits for its next attempt, or for room, and is sent again under its own id."""
    found = filled(1, LANE_MAX * others)
    if others:
        found.start(0.0)
    found.put("again", "we_0", "batch", 0.0)
    assert found.start(0.0) == ["again"] * (1 - others)
    if not others:
        found.returned("again", is_good=False)
        found.again("again", 100.0)
    found.drop("again", 10.0)
    found.put("again", "we_0", "batch", 90.0)
    for each in [f"0-{number}" for number in range(LANE_MAX * others)]:
        found.returned(each, is_good=True)
        found.drop(each, 20.0)
    assert found.start(50.0) == []
    assert found.start(90.0) == ["again"]
    assert found.start(100.0) == []
    found.returned("again", is_good=True)
    found.drop("again", 110.0)
    assert not found
