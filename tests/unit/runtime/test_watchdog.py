"""The watchdog detects a hung process."""

import threading
from types import SimpleNamespace

import pytest
from support.waiting import WAIT_SECONDS_MAX

from tidemill.faust.probe import Probe
from tidemill.runtime import watchdog
from tidemill.runtime.watchdog import SECONDS_MAX, STEP_SECONDS_MAX, LoopGuard, Silence, Symptom, Watch


def seconds_until(watch, marks, *, step=1.0, steps_max=1000):
    """Seconds until the watch gives up; None if it does not."""
    for number in range(steps_max):
        if watch.look(marks(number), step) is not None:
            return number * step
    return None


@pytest.mark.parametrize("symptom", Symptom)
def test_each_symptom_has_its_bound(symptom):
    """It counts once it has lasted that long, and not before."""
    assert seconds_until(Watch(), lambda _: {symptom: True}) == SECONDS_MAX[symptom]


def test_most_symptoms_are_detected_within_a_minute():
    """Including the stage's time to stop; joins wait for others, and recoveries start late or anew."""
    slow = {symptom for symptom, seconds in SECONDS_MAX.items() if seconds > 50}
    assert slow == {Symptom.REJOIN_OVERDUE, Symptom.RECOVERY_STUCK}


def recovering(offsets, *, coordinator_id=1):
    """What Faust shows of an app that reads its tables again; `offsets` is how far it is."""
    quiet = SimpleNamespace(done=lambda: False)
    coordinator = SimpleNamespace(
        coordinator_id=coordinator_id, _closing=quiet, _coordination_task=quiet, _error_consumed_fut=None,
        _rejoin_needed_fut=quiet,
    )  # fmt: skip
    client = SimpleNamespace(_coordinator=coordinator, _fetcher=None)
    return SimpleNamespace(
        started=True, should_stop=False, rebalancing=False, in_recovery=True,
        tables=SimpleNamespace(recovery=SimpleNamespace(active_offsets=offsets)),
        consumer=SimpleNamespace(_thread=SimpleNamespace(_consumer=client)),
    )  # fmt: skip


def test_a_recovery_may_take_long_but_not_stand_still():
    """Each record of a table restarts the time; without a broker none can arrive."""
    offsets: dict[int, int | None] = {0: 1, 1: 0, 2: None}

    def moving(number):
        offsets[1] = number // 100
        return Probe(recovering(offsets)).marks()

    assert seconds_until(Watch(), moving) is None
    stuck = Probe(recovering({0: 1}))
    assert seconds_until(Watch(), lambda _: stuck.marks()) == SECONDS_MAX[Symptom.RECOVERY_STUCK]
    away = Probe(recovering({0: 1}, coordinator_id=None))
    assert seconds_until(Watch(), lambda _: away.marks()) is None


def test_progress_is_healthy():
    """A changing number is no symptom, and an absent one starts anew."""
    assert seconds_until(Watch(), lambda number: {Symptom.POLL_STUCK: number}) is None
    assert seconds_until(Watch(), lambda number: {Symptom.POLL_STUCK: 7 if number % 30 else None}) is None
    assert seconds_until(Watch(), lambda _: {Symptom.POLL_STUCK: None}) is None


def test_a_suspended_process_was_not_hung():
    """One step counts little, however long it took."""
    watch = Watch()
    watch.look({Symptom.COORDINATION_PARKED: True}, 1.0)
    assert watch.look({Symptom.COORDINATION_PARKED: True}, 3600.0) is None


def test_silence_grows_by_bounded_steps():
    """A sign of life ends it."""
    silence = Silence()
    silence.advance(1.0)
    assert silence.advance(3600.0) == 1.0 + STEP_SECONDS_MAX
    silence.reset()
    assert silence.advance(1.0) == 1.0


def test_a_blocked_loop_ends_the_process(monkeypatch):
    """With heartbeats it does not."""
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.01)
    given_up = threading.Event()
    guard = LoopGuard(given_up.set, seconds_max=0.05)
    guard.start()
    assert given_up.wait(WAIT_SECONDS_MAX)
    quiet = threading.Event()
    beaten = LoopGuard(quiet.set, seconds_max=3600)
    beaten.start()
    beaten.beat()
    beaten.stop()
    assert not quiet.is_set()
