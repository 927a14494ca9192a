"""Clocks that go on while the machine sleeps, and steps of the wall clock."""

import logging
import math
import time
from typing import Final

from tidemill.configuration.connections import is_local
from tidemill.configuration.security import Kafka, cluster
from tidemill.schemas.ports import Clock, Monotonic, boottime

STEP_SECONDS_MIN: Final = 0.5
"""Smaller differences between the clocks are slews."""
DOUBT_STEP_SECONDS: Final = 60.0
"""A step forward by this much may be a mistake, which someone sets right."""
DOUBT_SECONDS: Final = 3600.0
START_SECONDS: Final = 600.0
"""A machine that has just booted gets the time from the network until then."""

log = logging.getLogger(__name__)


def session_clock(kafka: Kafka) -> Monotonic:
    """The clock by which a broker ends the sessions of this machine's consumers.

    While the machine is suspended, that of another one goes on.
    """
    hosts = [server.rpartition(":")[0] for server in cluster(kafka).servers.split(",")]
    return time.monotonic if all(map(is_local, hosts)) else boottime


class ClockSteps:
    """Detects steps of the wall clock by comparison with a monotonic clock; it ignores slews."""

    def __init__(self, clock: Clock, monotonic: Monotonic) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._ahead = clock() - monotonic()

    def step(self) -> float:
        """The seconds by which the wall clock was stepped since the last call; 0 if it was not."""
        before, self._ahead = self._ahead, self._clock() - self._monotonic()
        if abs(step := self._ahead - before) < STEP_SECONDS_MIN:
            return 0.0
        log.warning("the clock was stepped by %+.1f s", step)
        return step


class DeletionClock:
    """Unix time to delete by: what a clock that is wrong for a moment deletes does not come back.

    It is in doubt for ten minutes from its start, and for an hour after each step forward.
    """

    def __init__(self, clock: Clock, monotonic: Monotonic = boottime) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._steps = ClockSteps(clock, monotonic)
        self._doubted_until = monotonic() + START_SECONDS

    def __call__(self) -> float:
        """Unix seconds; -inf, by which nothing is old, while the time is in doubt."""
        return self._clock() if self.is_settled() else -math.inf

    def is_settled(self) -> bool:
        """Whether the time is not in doubt."""
        if self._steps.step() >= DOUBT_STEP_SECONDS:
            self._doubted_until = self._monotonic() + DOUBT_SECONDS
            log.warning("this process deletes nothing for its age for an hour: the clock may be set right again")
        return self._monotonic() >= self._doubted_until
