"""Load feedback: lets the metrics of a backend lower its concurrency limit.

| the backend says | then |
|---|---|
| nothing waits, and its cache has room | no more calls are added than the rest of the cache holds |
| requests wait, or its cache is nearly full | no call is added |
| they wait at several readings in a row, or very many wait | fewer calls, by our part of those that wait |
| its cache is full at as many readings | fewer calls, by one in sixteen |

A few requests that wait for a moment are good: the backend always has a next one. Requests of Tidemill that wait
long gain nothing and delay others.
"""

import math
from typing import Final, NamedTuple

from tidemill.processors.limits.server_metrics import ServerMetrics

PATIENCE_READINGS: Final = 3
MANY_DIVISOR: Final = 4
"""More waiting requests than 1/`MANY_DIVISOR` of the running ones are very many."""
CACHE_NEARLY_FULL: Final = 0.95
"""Beyond it a server soon preempts running requests, and restarts them."""
CACHE_FULL: Final = 0.99
LESS_DIVISOR: Final = 16


class Demand(NamedTuple):
    """How the limit should follow a reading of the metrics."""

    is_full: bool
    """The limit must not grow."""
    most: int | None = None
    """The highest number of calls in flight that is useful; None for no bound."""
    room: int | None = None
    """Calls that may be added; None if the metrics do not say."""


class LoadFeedback:
    """Remembers the readings of one backend."""

    def __init__(self) -> None:
        """Start without a reading."""
        self.latest: tuple[ServerMetrics | None, float] = None, -math.inf
        """The latest reading, and its time."""
        self._row = 0
        self._waiting = math.inf
        """The fewest requests that waited at any reading of this row."""

    def judge(self, metrics: ServerMetrics, in_flight: int, allowed: int) -> Demand:
        """Take a reading.

        Args:
            metrics: Its metrics now.
            in_flight: Our calls.
            allowed: How many there may be.
        """
        if not metrics.waiting and metrics.cache < CACHE_NEARLY_FULL:
            self._begin()
            room = _room(metrics, in_flight)
            return Demand(is_full=room == 0, room=room or None)
        self._row += 1
        self._waiting = min(self._waiting, metrics.waiting)
        patience = 1 if MANY_DIVISOR * metrics.waiting > metrics.running else PATIENCE_READINGS
        if self._row < patience or in_flight > allowed:
            # An earlier cut must take effect first.
            return Demand(is_full=True)
        ours = min(1.0, in_flight / max(1.0, metrics.requests))
        excess = math.ceil(self._waiting * ours)
        if not excess and metrics.cache >= CACHE_FULL:
            excess = max(1, allowed // LESS_DIVISOR)
        self._begin()
        return Demand(is_full=True, most=max(0, in_flight - excess) if excess else None)

    def _begin(self) -> None:
        self._row = 0
        self._waiting = math.inf


def _room(metrics: ServerMetrics, in_flight: int) -> int | None:
    """Additional calls that its cache can hold, if they are like the running ones."""
    if not metrics.running or not metrics.cache:
        # The cache of an idle server holds no request's entries.
        return None
    if math.isinf(fitting := metrics.running * CACHE_NEARLY_FULL / metrics.cache):
        return None
    return max(0, int(fitting) - max(in_flight, int(metrics.running)))
