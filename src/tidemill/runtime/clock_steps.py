"""Steps of the wall clock: somebody sets it, a time server corrects it, or the machine slept."""

import logging
from typing import Final

from tidemill.schemas.ports import Clock, Monotonic

STEP_SECONDS_MIN: Final = 0.5
"""What a clock gains or loses at once and is less than this, nobody has to know of."""

log = logging.getLogger(__name__)


class ClockSteps:
    """Compares two clocks each time it is asked; one that is slewed is followed without a word.

    Args:
        clock: The wall clock.
        monotonic: One that nobody steps.
    """

    def __init__(self, clock: Clock, monotonic: Monotonic) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._ahead = clock() - monotonic()

    def seen(self) -> bool:
        """Whether the wall clock was stepped since this was last asked."""
        before, self._ahead = self._ahead, self._clock() - self._monotonic()
        if abs(step := self._ahead - before) < STEP_SECONDS_MIN:
            return False
        log.warning("the clock was stepped by %+.1f s", step)
        return True
