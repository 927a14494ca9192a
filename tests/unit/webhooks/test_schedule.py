"""When deliveries are attempted: pauses, the lanes of endpoints, the order of a batch, the end of an endpoint."""

from collections import Counter

import pytest

from tidemill.schemas.webhooks.messages import Health
from tidemill.webhooks import schedule
from tidemill.webhooks.schedule import DISABLE_SECONDS, LANE_MAX, LIFE_SECONDS, SLOTS, Schedule, Slots

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
    health, written = Health(project="p", endpoint_id="we_1"), 0
    for at in range(100, 100 + DISABLE_SECONDS, 60):
        before, health = health, schedule.after_failure(health, at)
        written += health != before
        assert health.disabled_at is None
    assert written == DISABLE_SECONDS / schedule.COUNT_SECONDS_MIN
    off = schedule.after_failure(health, 100 + DISABLE_SECONDS)
    assert (off.failing_since, off.disabled_at) == (100, 100 + DISABLE_SECONDS)
    assert schedule.after_failure(off, 100 + 2 * DISABLE_SECONDS) == off


@pytest.mark.parametrize("gap", [5 * DISABLE_SECONDS, -DISABLE_SECONDS])
def test_a_time_without_attempts_disables_no_endpoint(gap):
    """A machine that slept, a stage that was away, or a clock that was stepped: attempts must fail."""
    health = Health(project="p", endpoint_id="we_1")
    for at in (10 * DISABLE_SECONDS, 10 * DISABLE_SECONDS + gap, 10 * DISABLE_SECONDS + gap + 3600):
        health = schedule.after_failure(health, at)
    assert health.disabled_at is None
    assert health.failing_seconds <= schedule.COUNT_SECONDS_MAX + 3600


def filled(lanes, each, slots=None):
    found = Schedule(slots or Slots())
    for lane in range(lanes):
        for number in range(each):
            found.put(f"{lane}-{number}", "p", f"we_{lane}", f"batch_{number}", 0.0)
    return found


def test_a_lane_is_bounded_and_holds_up_no_other():
    """One endpoint with a thousand events leaves room for another's one."""
    found = filled(1, 1_000)
    found.put("other", "p", "we_other", "batch", 0.0)
    started = found.start(0.0)
    assert "other" in started
    assert len(started) == LANE_MAX + 1
    assert not found.is_due(0.0)


def test_lanes_share_the_slots_in_turn():
    """With fewer slots than lanes, each lane has had a turn before one has a second."""
    slots = Slots(free=8)
    found = filled(8, 2, slots)
    first = found.start(0.0)
    for each in first:
        found.returned(each, is_good=True)
        found.drop(each, 0.0)
    second = found.start(0.0)
    assert len(first) == len(second) == 4
    assert {each.partition("-")[0] for each in first + second} == set("01234567")
    found.close()
    assert slots == Slots(free=8)


def test_the_callbacks_to_a_host_share_a_lane():
    """However many paths it has, so that it gets no more calls at a time than an endpoint."""
    urls = [f"https://{host}?{number}" for number in range(100) for host in ("hooks.example/", "Hooks.Example")]
    found = Schedule(Slots())
    for number, url in enumerate(urls):
        found.put(str(number), "p", schedule.lane_of("we_1", url), f"batch_{number}", 0.0)
    assert len(found.start(0.0)) == LANE_MAX
    others = ("https://hooks.example:8443/", "https://hooks.example.com/", "https://b.example", None, "")
    assert len({schedule.lane_of("we_1", url) for url in (urls[0], *others)}) == len(others)
    assert schedule.lane_of("we_1", None) == "we_1"


CALL_SECONDS = 15.0
"""How long the longest call takes."""


def waited(schedules, last, at):
    """How long a delivery waits that comes to the last schedule, while every attempt hangs and is repeated."""
    calls, failures, now = [], Counter(), 0.0
    while last not in [each for _, _, each in calls]:
        ended = [call for call in calls if call[0] <= now]
        calls = [call for call in calls if call[0] > now]
        for _, found, each in ended:
            failures[each] += 1
            found.returned(each, is_good=False)
            found.again(each, now + schedule.pause(failures[each]))
        if now == at:
            schedules[-1].put(last, "q", "we_1", "batch", now)
        calls += [(now + CALL_SECONDS, found, each) for found in schedules for each in found.start(now)]
        now += 1.0
        assert now < at + 100 * CALL_SECONDS
    return now - 1.0 - at


@pytest.mark.parametrize("lanes", [1, 2, 8, 100, 128, 129, 256, 257, 1_000, 10_000])
@pytest.mark.parametrize("hostile", [1, 3])
def test_no_number_of_lanes_delays_another_project(lanes, hostile):
    """Their receivers hang, and a partition of them may come before that of the other project."""
    slots = Slots()
    schedules = [Schedule(slots), Schedule(slots)]
    for number in range(hostile):
        for lane in range(lanes):
            schedules[number % 2].put(f"{number}/{lane}", f"p{number}", f"host_{lane}", f"batch_{lane}", 0.0)
    assert waited(schedules, "b", at=2 * CALL_SECONDS + 5) <= 2 * CALL_SECONDS
    assert slots.taken["p0"] <= SLOTS / 2


def test_more_projects_than_slots_take_turns():
    """Each has had one before any has a second."""
    slots = Slots()
    found = Schedule(slots)
    for number in range(2 * SLOTS):
        for lane in range(2):
            found.put(f"{number}/{lane}", f"p{number}", f"we_{lane}", "batch", 0.0)
    first = found.start(0.0)
    assert slots.free == 0
    found.put("last", "q", "we_1", "batch", 0.0)
    second = []
    for each in first:
        found.returned(each, is_good=False)
        found.again(each, 1e9)
        second += found.start(0.0)
    assert len({each.partition("/")[0] for each in first + second}) == len(first + second) == 2 * SLOTS
    for each in second:
        found.returned(each, is_good=False)
        found.again(each, 1e9)
    third = found.start(0.0)
    found.returned(third[0], is_good=True)
    assert "last" in found.start(0.0)
    found.close()
    assert slots == Slots()


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
        found.put(name, "p", "we_1", "batch_1", 0.0)
    found.put("elsewhere", "p", "we_2", "batch_1", 0.0)
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
        found.put("a", "p", "we_1", "batch_1", 0.0)
    assert found.start(0.0) == ["a"]
    assert len(found) == 1


@pytest.mark.parametrize("others", [0, 1])
def test_an_earlier_life_of_a_delivery_starts_no_attempt(others):
    """It ends while it waits for its next attempt, or for room, and is sent again under its own id."""
    found = filled(1, LANE_MAX * others)
    if others:
        found.start(0.0)
    found.put("again", "p", "we_0", "batch", 0.0)
    assert found.start(0.0) == ["again"] * (1 - others)
    if not others:
        found.returned("again", is_good=False)
        found.again("again", 100.0)
    found.drop("again", 10.0)
    found.put("again", "p", "we_0", "batch", 90.0)
    for each in [f"0-{number}" for number in range(LANE_MAX * others)]:
        found.returned(each, is_good=True)
        found.drop(each, 20.0)
    assert found.start(50.0) == []
    assert found.start(90.0) == ["again"]
    assert found.start(100.0) == []
    found.returned("again", is_good=True)
    found.drop("again", 110.0)
    assert not found
