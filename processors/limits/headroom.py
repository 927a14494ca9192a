"""Headroom: how many calls a server may get if people's requests go first.

The number follows from a *total* of requests that the server should have, of all clients; people's are those that
it reports less our own calls. A process does not know the calls of our other processes, and estimates them from
its own by its part of the model's calls.

| the server reports | then |
|---|---|
| no request waits, and the total is used | the total grows by an eighth a second |
| requests wait | no more than run now, if they still wait at the next reading |
| they wait at two readings while as many run | these are its capacity; the total ends at three quarters of it |
| its KV cache fills | the total ends where three quarters of the cache are used |

The quarter that stays free is for people who come between two readings, and it keeps steps short: a server works
on all requests in one step, so each one makes the others slower. The capacity is learned once, by sending a few
calls more than the server works on, and again every half hour.

With a target for the time to the first token, `first_token.py` bounds the total instead.

The number is as old as the last reading. After some seconds without one, people's needs are unknown, and only one
call may be in flight, which shows whether the server is well.
"""

import math
import random
from collections.abc import Callable
from typing import Final

from tidemill.processors.limits.first_token import FirstTokenTarget
from tidemill.processors.limits.server_metrics import Buckets, ServerMetrics

STALE_SECONDS: Final = 10.0
SPREAD_SECONDS: Final = 1.0
"""The calls that a reading adds are spread over this time: many prompts in one step of the server make the step
long."""
SETTLED_PART: Final = 1.05
UNKNOWN_CALLS: Final = 1
"""Calls in flight without a reading."""
START_REQUESTS: Final = 8
GROWTH: Final = 1.125
USED_PART: Final = 0.9
"""The total grows once this part of it is used."""
FILLED_PART: Final = 0.75
"""The part of the capacity and of the cache that requests may fill; the rest stays free for people."""
BETWEEN_PART: Final = 0.15
SAME_PART: Final = 0.05
"""Numbers of running requests that differ by less are the same: some end between two steps."""
CACHE_FULL: Final = 0.9
"""If more of the cache is used, requests wait for cache, and not for a sequence."""
CAPACITY_SECONDS: Final = 1800.0
"""How long a capacity that was seen is valid."""
CAPACITY_GROWTH: Final = 1.02
"""The growth of that capacity a second, after that time."""
WATCH_SECONDS: Final = 0.25
"""The time between readings while the next one should come soon."""


class Headroom:
    """The requests that one server should have."""

    def __init__(self, ttft_seconds: float | None = None, *, chance: Callable[[], float] = random.random) -> None:
        """Start without a reading.

        Args:
            ttft_seconds: The time within which 99 of 100 requests should have their first token.
            chance: Gives a number from 0 to 1 at random.
        """
        self.target = None if ttft_seconds is None else FirstTokenTarget(ttft_seconds)
        self.is_watching = False
        """Whether the next reading should come soon: requests began to wait, or calls are added until some do."""
        self._chance = chance
        self._least = 0 if self.target is None else 1
        self._left = self._from = UNKNOWN_CALLS
        self._read_at = float("-inf")
        self._total: float | None = None
        self._first: Buckets | None = None
        self._capacity = math.inf
        self._capacity_seen_at = 0.0
        self._waiting_at: float | None = None
        """Requests that ran at the last reading, if others waited then."""

    def read(self, metrics: ServerMetrics, ours: float, part: float, now: float) -> None:
        """Take a reading.

        Args:
            metrics: The metrics of the server now.
            ours: Calls of this process, at that time.
            part: This process's part of the model's calls.
            now: Seconds of the event loop's clock.
        """
        seconds = now - self._read_at
        total = math.nan if self._total is None else self._total
        is_settled = USED_PART * total <= metrics.requests <= SETTLED_PART * total + 1
        if self.target is not None:
            self.target.read(metrics, is_settled=is_settled)
        if self._has_counted_anew(metrics.first_token) or seconds > STALE_SECONDS:
            # The server may have restarted with other settings.
            self._total, self._capacity, self._waiting_at = None, math.inf, None
        before = self.left(now)
        self._read_at = now
        others = max(0.0, metrics.requests - ours / max(part, 1e-9))
        if self._total is None:
            self._total = others + START_REQUESTS
        seconds = min(1.0, seconds)
        is_new_wait = self._see_capacity(metrics, now, seconds)
        grows = self._follow(metrics, is_new_wait, part, seconds)
        self.is_watching = is_new_wait or (grows and self.target is None and math.isinf(self._capacity))
        left = max(self._least, int((self._total - others) * part))
        self._from, self._left = min(before, left), left

    def left(self, now: float) -> int:
        """Calls that may be in flight."""
        if (seconds := now - self._read_at) > STALE_SECONDS:
            return UNKNOWN_CALLS
        return self._from + int((self._left - self._from) * min(1.0, seconds / SPREAD_SECONDS))

    @property
    def pause(self) -> float:
        """Seconds from a call's turn to its request."""
        return 0.0 if self.target is None else self.target.pause(self._chance())

    def _has_counted_anew(self, first: Buckets | None) -> bool:
        """Whether the server's counters were reset since the last reading."""
        before, self._first = self._first, first
        return before is not None and first is not None and first.less(before) is None

    def _see_capacity(self, metrics: ServerMetrics, now: float, seconds: float) -> bool:
        """Learn from a reading how many requests run at most; returns whether requests have begun to wait."""
        if now - self._capacity_seen_at > CAPACITY_SECONDS:
            self._capacity *= CAPACITY_GROWTH**seconds
        self._capacity = max(self._capacity, metrics.running)
        before, self._waiting_at = self._waiting_at, metrics.running if metrics.waiting else None
        if before is None or not metrics.waiting or metrics.cache >= CACHE_FULL:
            return before is None and metrics.waiting > 0
        if abs(before - metrics.running) <= max(2.0, SAME_PART * before):
            running = max(before, metrics.running)
            if running >= USED_PART * self._capacity or math.isinf(self._capacity):
                self._capacity, self._capacity_seen_at = running, now
        return False

    def _follow(self, metrics: ServerMetrics, is_new_wait: bool, part: float, seconds: float) -> bool:
        """Adjust the total to the reading; returns whether it grows."""
        assert self._total is not None, "it was set"
        factor = None if self.target is None else self.target.factor
        growth = GROWTH if factor is None else min(GROWTH, factor)
        before = self._total
        if metrics.waiting:
            self._total = min(self._total, metrics.running if not is_new_wait else metrics.requests)
        elif growth < 1:
            self._total = min(self._total, metrics.requests * growth)
        elif metrics.requests >= USED_PART * self._total or self._total * part < 1:
            # If its part of the total is less than one call, the process could never use it.
            self._total = self._total * growth**seconds + (factor is None) * seconds
        # The cache of an idle server holds no request's entries.
        is_shown = metrics.running and metrics.cache
        by_cache = metrics.running * FILLED_PART / metrics.cache if is_shown else math.inf
        self._total = min(self._total, self._filled(factor is not None), by_cache)
        return self._total > before

    def _filled(self, has_target: bool) -> float:
        """The part of the capacity that may be used, which is one request at least."""
        if not has_target or math.isinf(self._capacity):
            return max(1.0, FILLED_PART * self._capacity)
        # Kept free for people between two readings; the target does the rest.
        return self._capacity - max(BETWEEN_PART * self._capacity, math.sqrt(self._capacity))
