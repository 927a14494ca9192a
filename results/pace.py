"""The pace of a batch: how fast its lines get done, and when that will bring it to its end."""

import math
from dataclasses import dataclass
from typing import Final

from tidemill.schemas.batch import Progress

MEMORY_SECONDS: Final = 20.0
"""What is longer ago than this counts for little in the rate."""
SURE_LINES: Final = 20
"""With fewer lines done there is nothing to be told of the rate."""
SPREAD_MIN: Final = 0.1
"""An ETA is never said to be more exact than this share of what is left."""


@dataclass(slots=True)
class Pace:
    """The rate of one batch, from counts at times; it begins anew where a process takes the batch over."""

    started_at: float
    """Unix seconds of the first observation."""
    done_before: int
    """Lines that were done then."""
    at: float
    done: int
    recent: float | None = None
    """Lines a second, recent times weighing more."""

    @classmethod
    def start(cls, at: float, done: int) -> "Pace":
        """Begin to observe."""
        return cls(started_at=at, done_before=done, at=at, done=done)

    def observe(self, at: float, done: int) -> None:
        """Note how many lines are done."""
        elapsed = at - self.at
        if elapsed <= 0:
            return
        rate = (done - self.done) / elapsed
        weight = 1 - math.exp(-elapsed / MEMORY_SECONDS)
        if self.recent is None:
            self.recent = rate
        else:
            # While it has seen little, the mean over everything is the better memory.
            seen = at - self.started_at
            self.recent += max(weight, elapsed / seen if seen > 0 else 1) * (rate - self.recent)
        self.at, self.done = at, done

    def progress(self, total: int, deadline: int) -> Progress:
        """What can be said of a batch of so many lines.

        Args:
            total: Its lines.
            deadline: When it expires, Unix seconds.
        """
        percent = round(100 * self.done / total, 2) if total else 0.0
        seen, elapsed = self.done - self.done_before, self.at - self.started_at
        if seen < SURE_LINES or elapsed <= 0 or not self.recent:
            return Progress(percent=percent)
        left, whole = total - self.done, seen / elapsed
        fast, slow = max(self.recent, whole), min(self.recent, whole)
        earliest = self.at + left / fast * (1 - SPREAD_MIN)
        latest = self.at + left / slow * (1 + SPREAD_MIN)
        return Progress(
            percent=percent,
            lines_per_second=round(self.recent, 2),
            done_earliest_at=math.floor(earliest),
            done_latest_at=math.ceil(latest),
            slack_seconds=math.floor(deadline - latest),
        )
