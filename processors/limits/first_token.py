"""A target for the time to the first token: how many requests a server may have to meet it.

A request waits for the step that runs when it arrives, and for the one that computes its prompt. So its time to
the first token is some multiple of a step's time, and a step takes longer the more sequences run. Two numbers
suffice:

- the mean *time between tokens*, which is the time of a step. The server counts thousands of them a second, so the
  total of requests follows it at once;
- the *steps to the first token*, as 99 of 100 requests have them. Each request whose first token came too late
  raises this number, and each other one lowers it by about a hundredth as much: it settles where one in a hundred
  is late. It changes with the prompts, so slowly.

Both count all clients' requests, ours included, and must hold for people's. Answers come at the end of a step, so
a line that took the next turn at once would always wait for a whole step, and several would arrive together. So
each call pauses at random for up to three steps: then lines arrive at any moment, as people's requests do, and
wait as long.
"""

import math
from typing import Final

from tidemill.processors.limits.server_metrics import Buckets, Mean, ServerMetrics

STEPS: Final = 2.5
"""The initial number: the rest of the running step, the request's own, and the work on prompts."""
STEPS_MIN: Final = 1.0
STEPS_MAX: Final = 100.0
LATE_PART: Final = 0.012
"""Late requests come in groups, and not all of a group count."""
LATE_GAIN: Final = 0.01
LATE_MAX: Final = 2.0
"""Late requests of one reading that count; they come in groups, when many prompts are in one step."""
AT_TARGET: Final = 0.85
"""Requests in time count as evidence if a step takes at least this part of its allowed time."""
MEMORY: Final = 0.98
"""The weight that each reading leaves to earlier ones."""
UNSEEN: Final = 0.2
STEP_SECONDS_MIN: Final = 1e-6
"""No server takes less: metrics that say so are wrong."""
STEP_SECONDS_MAX: Final = 0.2
PAUSE_STEPS: Final = 3.0
FOLLOW: Final = 0.25
"""The part of the way to the target that one reading goes."""


class FirstTokenTarget:
    """Adjusts the requests of one server to the target, reading by reading."""

    def __init__(self, seconds: float) -> None:
        """Start without a reading."""
        self._seconds = seconds
        self._steps = STEPS
        self._first: Buckets | None = None
        self._between: Mean | None = None
        self.is_measured = True
        """Whether the last reading had the metrics that the target needs."""
        self._step: float | None = None
        self._longer = [0.0, 0.0]
        """A moving sum of requests that took longer than the lower and the upper bound of the target's bucket."""

    @property
    def factor(self) -> float | None:
        """The factor by which the requests of the server should change; None if its metrics do not show it."""
        if self._step is None:
            return None
        return 1 + FOLLOW * (self._seconds / self._steps / self._step - 1)

    def pause(self, chance: float) -> float:
        """Seconds from a call's turn to its request, at most three steps; `chance` is from 0 to 1."""
        return PAUSE_STEPS * min(STEP_SECONDS_MAX, self._step or 0.0) * chance

    def read(self, metrics: ServerMetrics, *, is_settled: bool) -> None:
        """Take a reading.

        Args:
            metrics: The metrics of the server now.
            is_settled: Whether the server had about as many requests as it should.
        """
        first, self._first = self._first, metrics.first_token
        between, self._between = self._between, metrics.between_tokens
        bounds = () if self._first is None else self._first.bounds
        self.is_measured = self._between is not None and bool(bounds) and bounds[0] <= self._seconds < bounds[-1]
        if self._first is None or self._between is None or not self.is_measured:
            self._step = None
            return
        if first is None or between is None:
            return
        came, tokens = self._first.less(first), self._between.less(between)
        if came is None or tokens is None:
            self._step = None
            return
        if tokens.count and (step := tokens.total / tokens.count) >= STEP_SECONDS_MIN:
            self._step = step
        if self._step is not None and is_settled:
            self._count(came, self._seconds / self._steps)

    def _count(self, came: Buckets, step_max: float) -> None:
        """Learn from the requests how many steps they took."""
        assert self._step is not None, "there is one"
        late = min(LATE_MAX, self._late(came))
        in_time = came.count - late if self._step >= AT_TARGET * step_max else 0.0
        self._steps *= (1 + LATE_GAIN) ** (late - LATE_PART * in_time)
        self._steps = min(STEPS_MAX, max(STEPS_MIN, self._steps))

    def _late(self, came: Buckets) -> float:
        """Requests whose first token came too late; inside a bucket they are taken to decay exponentially."""
        low, high, part = came.around(self._seconds)
        self._longer = [MEMORY * before + longer for before, longer in zip(self._longer, (low, high), strict=True)]
        ratio = (self._longer[1] + UNSEEN) / (self._longer[0] + UNSEEN)
        return low * math.pow(ratio, part)
