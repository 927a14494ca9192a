"""The activity of the last minute, from counters that only grow."""

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from tidemill.processors.backends.call_metrics import CallMetrics
from tidemill.schemas.resources.load import MINUTE, added

STEP_SECONDS: Final = 5.0
"""Between two kept readings."""
RATE_SECONDS: Final = 10.0
"""Rates are those of this many last seconds."""


class Reading(NamedTuple):
    """The counters of a server, or of a model, at one time."""

    at: float
    lines: int
    tokens: int
    refused: int
    durations: tuple[int, ...] = ()
    first_bytes: tuple[int, ...] = ()


def read(calls: Sequence[CallMetrics], at: float) -> Reading:
    """The counters of these calls, without the time to the first byte."""
    calls = [one.folded() for one in calls]
    durations = added(one.duration.counts for one in calls)
    return Reading(
        at,
        sum(one.lines for one in calls),
        sum(one.tokens for one in calls),
        sum(one.overloads for one in calls),
        durations,
    )


class Window:
    """The readings of the last minute; few of them are kept."""

    def __init__(self, first: Reading) -> None:
        self._kept = deque([first])

    def add(self, reading: Reading) -> tuple[Reading, float, float]:
        """Take a new reading.

        Returns:
            The increase in the last minute, and the lines and the tokens a second in the last seconds.
        """
        if reading.at >= self._kept[-1].at + STEP_SECONDS:
            self._kept.append(reading)
        while len(self._kept) > 1 and self._kept[1].at <= reading.at - MINUTE:
            self._kept.popleft()
        recent = self._kept[0]
        for one in self._kept:
            if one.at > reading.at - RATE_SECONDS:
                break
            recent = one
        last = _less(reading, recent)
        seconds = max(1.0, reading.at - recent.at)
        return _less(reading, self._kept[0]), last.lines / seconds, last.tokens / seconds


def _less(now: Reading, before: Reading) -> Reading:
    """The increase; a counter that was reset, like that of a model that was added again, has not decreased."""
    return Reading(
        now.at,
        max(0, now.lines - before.lines),
        max(0, now.tokens - before.tokens),
        max(0, now.refused - before.refused),
        _counts(now.durations, before.durations),
        _counts(now.first_bytes, before.first_bytes),
    )


def _counts(now: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    known = before + (0,) * (len(now) - len(before))
    found = tuple(max(0, new - old) for new, old in zip(now, known, strict=False))
    return found if any(found) else ()
