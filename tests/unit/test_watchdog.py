"""When a process that is alive is dead all the same."""

import threading

import pytest

from tidemill.watch import watchdog
from tidemill.watch.watchdog import SECONDS_MAX, STEP_SECONDS_MAX, LoopGuard, Silence, Symptom, Watch


def seconds_until(watch, marks, *, step=1.0, steps_max=1000):
    """Seconds of looks until the watch gives up; None where it does not."""
    for number in range(steps_max):
        if watch.look(marks(number), step) is not None:
            return number * step
    return None


@pytest.mark.parametrize("symptom", Symptom)
def test_each_symptom_has_its_bound(symptom):
    """It is told once it has lasted that long, and not before."""
    assert seconds_until(Watch(), lambda _: {symptom: True}) == SECONDS_MAX[symptom]


def test_most_are_noticed_within_a_minute():
    """With the time that the stage has to stop; a join alone may take longer, since others may hold it up."""
    slow = {symptom for symptom, seconds in SECONDS_MAX.items() if seconds > 50}
    assert slow == {Symptom.REJOIN_OVERDUE}


def test_what_moves_on_is_well():
    """A number that changes is not stuck, and what goes away begins anew."""
    assert seconds_until(Watch(), lambda number: {Symptom.POLL_STUCK: number}) is None
    assert seconds_until(Watch(), lambda number: {Symptom.POLL_STUCK: 7 if number % 30 else None}) is None
    assert seconds_until(Watch(), lambda _: {Symptom.POLL_STUCK: None}) is None


def test_a_process_that_was_stopped_was_not_ill():
    """One step counts for little, however long it took."""
    watch = Watch()
    watch.look({Symptom.COORDINATION_PARKED: True}, 1.0)
    assert watch.look({Symptom.COORDINATION_PARKED: True}, 3600.0) is None


def test_silence():
    """It grows by bounded steps, and ends with a word."""
    silence = Silence()
    silence.pass_(1.0)
    assert silence.pass_(3600.0) == 1.0 + STEP_SECONDS_MAX
    silence.heard()
    assert silence.pass_(1.0) == 1.0


def test_a_blocked_loop_is_given_up(monkeypatch):
    """Without a beat the guard calls out; with beats it does not."""
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.01)
    given_up = threading.Event()
    guard = LoopGuard(given_up.set, seconds_max=0.05)
    guard.start()
    assert given_up.wait(10)
    quiet = threading.Event()
    beaten = LoopGuard(quiet.set, seconds_max=3600)
    beaten.start()
    beaten.beat()
    beaten.stop()
    assert not quiet.is_set()
