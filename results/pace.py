"""The pace of a batch: how fast its lines get done, and when that will bring it to its end.

Two rates are kept, one with a short memory and one with a long one. While the batch is young both look back over
a part of its life only, so that a slow beginning is soon forgotten. Where the two differ the pace is changing, and
the end is told as lying between what each of them promises.
"""

import math
from dataclasses import dataclass
from typing import Final

from tidemill.schemas.batch import Progress

QUICK_SECONDS: Final = 10.0
STEADY_SECONDS: Final = 40.0
"""What is longer ago than this counts for little in the rate."""
YOUTH: Final = 3
"""Of a young batch's life the first half has the weight 1 / 2 ** YOUTH."""
SURE_LINES: Final = 20
"""With fewer lines done there is nothing to be told of the rate."""
SPREAD_MIN: Final = 0.1
"""An end is never said to be more exact than this share of what is left."""


@dataclass(slots=True)
class Pace:
    """The rate of one batch, from counts at times; it begins anew where a process takes the batch over."""

    started_at: float
    """When it was last observed before the first line: until then it may have waited for others. These times are
    those of a clock that nobody steps."""
    done_before: int
    """Lines that were done then."""
    at: float
    done: int
    quick: float = 0.0
    steady: float = 0.0
    """Lines a second."""

    @classmethod
    def start(cls, at: float, done: int) -> "Pace":
        """Begin to observe."""
        return cls(started_at=at, done_before=done, at=at, done=done)

    def observe(self, at: float, done: int) -> None:
        """Note how many lines are done."""
        elapsed = at - self.at
        if elapsed <= 0:
            return
        if done <= self.done_before:
            self.started_at = self.at = at
            return
        rate = (done - self.done) / elapsed
        self.at, self.done = at, done
        seen = at - self.started_at
        young = 1 - ((seen - elapsed) / seen) ** YOUTH
        self.quick += max(young, 1 - math.exp(-elapsed / QUICK_SECONDS)) * (rate - self.quick)
        self.steady += max(young, 1 - math.exp(-elapsed / STEADY_SECONDS)) * (rate - self.steady)

    def progress(self, total: int, deadline: int, now: float) -> Progress:
        """What can be said of a batch of so many lines.

        Args:
            total: Its lines.
            deadline: When it expires, Unix seconds.
            now: The Unix time of the last observation.
        """
        percent = round(100 * self.done / total, 2) if total else 0.0
        slow, fast = sorted((self.quick, self.steady))
        if self.done - self.done_before < SURE_LINES or not slow:
            return Progress(percent=percent)
        left = total - self.done
        earliest = now + left / fast * (1 - SPREAD_MIN)
        latest = now + left / slow * (1 + SPREAD_MIN)
        return Progress(
            percent=percent,
            lines_per_second=round(self.quick, 2),
            done_earliest_at=math.floor(earliest),
            done_latest_at=math.ceil(latest),
            slack_seconds=math.floor(deadline - latest),
        )
