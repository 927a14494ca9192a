"""Probes a lower limit: some backends refuse a part of the calls near their capacity.

Random refusals do not matter: fewer calls in flight do not reduce their share. So after a period with too many
refusals, the next one has slightly fewer calls in flight, and the two are compared:

- a third as many or fewer: the lower limit stays, and trials stay below the old one, the *lid*, for a while;
- else it was chance: the old limit comes back, and for some periods as many refusals cause no comparison.
"""

from typing import Final

PERIOD_CALLS: Final = 256
REFUSED_MAX: Final = 4
"""Refusals of a period; more of them cause a comparison."""
RELIEVED_DIVISOR: Final = 3
LESS_DIVISOR: Final = 16
"""The probe lowers the limit by 1/`LESS_DIVISOR`, and by at least one call."""
CHANCE_PERIODS: Final = 20
LID_CALLS_MIN: Final = 4096
LID_CALLS_MAX: Final = 16_384
"""How long a lid lasts: twice as long as the last one, up to this."""


class LimitProbe:
    """Compares periods of calls."""

    def __init__(self) -> None:
        self._calls = 0
        self._refused = 0
        self._before: tuple[int, int] | None = None
        """The limit and the refusals of the period before, while a lower limit is compared with it."""
        self._chance = 0
        self._chance_left = 0
        self._lid: int | None = None
        self._lid_left = 0
        self._lid_calls = LID_CALLS_MIN

    def allows(self, calls: int) -> bool:
        """Whether a limit of this many calls may be tried."""
        return self._before is None and (self._lid is None or calls < self._lid)

    def reset(self) -> None:
        """Start over: the limit was changed for another reason."""
        self._calls = self._refused = 0
        self._before = self._lid = None

    def begin(self) -> None:
        """Begin a new period: the limit has grown, and the counts belong to the old one."""
        self._calls = self._refused = 0

    def note(self, limit: int, *, refused: bool) -> int | None:
        """Count a call under a limit; returns another limit if it must change."""
        if self._lid is not None:
            self._lid_left -= 1
            if self._lid_left <= 0:
                self._lid = None
        self._calls += 1
        self._refused += refused
        if self._calls < PERIOD_CALLS:
            return None
        count, self._calls, self._refused = self._refused, 0, 0
        if self._before is not None and (old := self._compared(*self._before, count)) is not None:
            return old
        if self._chance_left:
            self._chance_left -= 1
        else:
            self._chance = 0
        if count <= REFUSED_MAX or 2 * count <= 3 * self._chance or limit <= 1:
            return None
        self._before = limit, count
        return limit - max(1, limit // LESS_DIVISOR)

    def _compared(self, limit: int, before: int, count: int) -> int | None:
        """End the period of the lower limit; returns the old limit if the lower one was no better."""
        self._before = None
        if RELIEVED_DIVISOR * count > before:
            self._chance = max(before, count)
            self._chance_left = CHANCE_PERIODS
            return limit
        self._lid = limit
        self._lid_left = self._lid_calls
        self._lid_calls = min(2 * self._lid_calls, LID_CALLS_MAX)
        return None
