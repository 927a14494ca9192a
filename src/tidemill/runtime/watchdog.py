"""Decides when a live process counts as hung, from the symptoms that a probe reports; it does no I/O.

A symptom persists while the probe reports it with the same *mark*: `True` for a state, or a number that progress
should have changed. Its age is the sum of the steps between looks; each step counts for at most
`STEP_SECONDS_MAX`: a suspended process or a sleeping machine was not hung meanwhile.
"""

import threading
from collections.abc import Callable, Hashable, Mapping
from enum import StrEnum
from typing import Final

STEP_SECONDS_MAX: Final = 2.0
LOOK_SECONDS: Final = 1.0
"""Time between two looks."""
LOOP_SECONDS_MAX: Final = 40.0
"""An event loop without a heartbeat for this long is blocked for good."""


class Symptom(StrEnum):
    """The symptoms of a hung consumer; the text goes into the log."""

    COORDINATION_ENDED = "the task that keeps the consumer in its group has ended"
    COORDINATION_PARKED = "the task that keeps the consumer in its group waits for a consumer to collect its error"
    REJOIN_OVERDUE = "the consumer has not rejoined its group"
    FETCHER_ENDED = "the task that fetches records has ended"
    POLL_ENDED = "the loop that delivers records has ended"
    POLL_STUCK = "the loop that delivers records waits for a fetch that does not return"
    ACTOR_ENDED = "an agent has ended"
    RECOVERY_STUCK = "the recovery of the tables receives no records"


SECONDS_MAX: Final[Mapping[Symptom, float]] = {
    Symptom.COORDINATION_ENDED: 10.0,
    Symptom.COORDINATION_PARKED: 10.0,
    # A join may wait for another member to drain, to which the broker gives a minute.
    Symptom.REJOIN_OVERDUE: 120.0,
    Symptom.FETCHER_ENDED: 10.0,
    # The loop stops and starts between two assignments.
    Symptom.POLL_ENDED: 30.0,
    Symptom.POLL_STUCK: 40.0,
    Symptom.ACTOR_ENDED: 30.0,
    # Each record restarts the time, so a recovery that makes progress may take any time.
    Symptom.RECOVERY_STUCK: 120.0,
}
"""How long each may last before the process exits; most are below a minute."""

Marks = Mapping[Symptom, Hashable]
"""The reported symptoms; None for an absent one."""


class Silence:
    """The time since the last sign of life."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def reset(self) -> None:
        """End the silence."""
        self.seconds = 0.0

    def advance(self, seconds: float) -> float:
        """Add the time since the last look; returns the length of the silence."""
        self.seconds += min(seconds, STEP_SECONDS_MAX)
        return self.seconds


class Watch:
    """The symptoms of one app over time."""

    def __init__(self) -> None:
        self._seen: dict[Symptom, tuple[Hashable, Silence]] = {}

    def look(self, marks: Marks, seconds: float) -> Symptom | None:
        """Update the symptoms after `seconds`; returns one that has lasted too long, or None."""
        seen = {}
        for symptom, mark in marks.items():
            if mark is None:
                continue
            before, silence = self._seen.get(symptom, (None, Silence()))
            if before == mark:
                silence.advance(seconds)
            else:
                silence = Silence()
            seen[symptom] = mark, silence
        self._seen = seen
        return next((name for name, (_, age) in seen.items() if age.seconds >= SECONDS_MAX[name]), None)


class LoopGuard:
    """A thread that calls `give_up`, which ends the process, once its event loop has been silent for too long."""

    def __init__(self, give_up: Callable[[], None], *, seconds_max: float = LOOP_SECONDS_MAX) -> None:
        self._give_up = give_up
        self._seconds_max = seconds_max
        self._silence = Silence()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loop guard", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def beat(self) -> None:
        """Record a heartbeat; called on the loop."""
        self._silence.reset()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            if self._silence.advance(LOOK_SECONDS) >= self._seconds_max:
                self._give_up()
                return
