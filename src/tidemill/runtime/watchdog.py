"""When a process that is alive is dead all the same: pure decisions on what was seen of it.

A symptom lasts as long as it is seen with the same *mark*: `True` for what merely is so, a number for what should
have moved on. Its age is added up from the steps between two looks, and no step counts for more than
`STEP_SECONDS_MAX`: a process that was stopped as a whole, or a machine that slept, has not been ill meanwhile.
"""

import threading
from collections.abc import Callable, Hashable, Mapping
from enum import StrEnum
from typing import Final

STEP_SECONDS_MAX: Final = 2.0
LOOK_SECONDS: Final = 1.0
"""How often a process looks at itself."""
LOOP_SECONDS_MAX: Final = 40.0
"""An event loop that has not turned for so long is blocked for good."""


class Symptom(StrEnum):
    """What can be wrong with a consumer; the text goes into the log."""

    COORDINATION_ENDED = "the task that keeps the consumer in its group has ended"
    COORDINATION_PARKED = "the task that keeps the consumer in its group waits for its error to be fetched"
    REJOIN_OVERDUE = "the consumer has not rejoined its group"
    FETCHER_ENDED = "the task that fetches records has ended"
    POLL_ENDED = "the loop that hands out records has ended"
    POLL_STUCK = "the loop that hands out records waits for a fetch that does not return"
    CONSUMER_BLOCKED = "the consumer's thread does not answer"
    ACTOR_ENDED = "an agent has ended"
    RECOVERY_STUCK = "the tables are read again, and no record of them comes"


SECONDS_MAX: Final[Mapping[Symptom, float]] = {
    Symptom.COORDINATION_ENDED: 10.0,
    Symptom.COORDINATION_PARKED: 10.0,
    # A join may wait for another member that drains, and the broker gives that one a minute.
    Symptom.REJOIN_OVERDUE: 120.0,
    Symptom.FETCHER_ENDED: 10.0,
    # Between two assignments it is stopped and started again.
    Symptom.POLL_ENDED: 30.0,
    Symptom.POLL_STUCK: 40.0,
    Symptom.CONSUMER_BLOCKED: 40.0,
    Symptom.ACTOR_ENDED: 30.0,
    # Each record that comes begins the time anew, so one that makes progress may take as long as it needs.
    Symptom.RECOVERY_STUCK: 120.0,
}
"""How long each may last before the process is given up; most are below a minute."""

Marks = Mapping[Symptom, Hashable]
"""What was seen; None is nothing."""


class Silence:
    """For how long nothing was heard."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def reset(self) -> None:
        """Something was heard just now."""
        self.seconds = 0.0

    def advance(self, seconds: float) -> float:
        """Time has passed since the last look; gives the length of the silence."""
        self.seconds += min(seconds, STEP_SECONDS_MAX)
        return self.seconds


class Watch:
    """The symptoms of one app over time."""

    def __init__(self) -> None:
        self._seen: dict[Symptom, tuple[Hashable, Silence]] = {}

    def look(self, marks: Marks, seconds: float) -> Symptom | None:
        """Take in what is seen now.

        Args:
            marks: The symptoms that are there.
            seconds: Since the last look.

        Returns:
            The symptom that has lasted too long, if there is one.
        """
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
    """A thread that calls out when the event loop has not beaten for too long.

    Args:
        give_up: Called on that thread, once; ends the process, since nobody else in it can act.
        seconds_max: The longest silence of the loop.
    """

    def __init__(self, give_up: Callable[[], None], *, seconds_max: float = LOOP_SECONDS_MAX) -> None:
        self._give_up = give_up
        self._seconds_max = seconds_max
        self._silence = Silence()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loop guard", daemon=True)

    @property
    def seconds(self) -> float:
        """Since the last beat."""
        return self._silence.seconds

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def beat(self) -> None:
        """The loop turns; called on it."""
        self._silence.reset()

    def stop(self) -> None:
        """Listen no more."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            if self._silence.advance(LOOK_SECONDS) >= self._seconds_max:
                self._give_up()
                return
