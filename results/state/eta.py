"""The progress of a batch: its rate of final lines, and the time at which it will end.

There are two moving averages of the rate, a fast and a slow one. In a young batch both cover only a part of its
life, so that a slow beginning is soon forgotten. The expected end lies between the predictions of the two.

If no line becomes final for some seconds, or for longer than usual in this batch, its rate is 0 and it has no end.
"""

import math
from dataclasses import dataclass
from typing import Final

from tidemill.schemas.resources.batch import Progress

FAST_SECONDS: Final = 10.0
SLOW_SECONDS: Final = 40.0
"""Time constants of the fast and the slow average."""
YOUTH: Final = 3
"""The first half of a young batch's life has a weight of 1 / 2 ** YOUTH."""
SURE_LINES: Final = 20
"""Final lines that a rate needs before it is published."""
SPREAD_MIN: Final = 0.1
"""The least uncertainty of the end, as a share of the remaining time."""
QUIET_SECONDS: Final = 10.0
QUIET_GAPS: Final = 3
"""A batch is quiet after this many usual gaps between lines: calls may be long, and end together."""
QUIET_SECONDS_MAX: Final = 300.0
GAP_KEPT: Final = 0.9
"""Decay of the usual gap with each shorter gap."""
LEFT_SECONDS_MAX: Final = 10 * 365 * 86_400
"""A batch that would take longer has no expected end: an average falls towards 0 between two long calls."""
MARGIN_SECONDS: Final = 60
"""Readers may use a record this much longer than it takes to replace it, since clocks differ."""


@dataclass(slots=True)
class Eta:
    """The rate of one batch in this process; times are those of the monotonic clock."""

    started_at: float
    """The last observation before the first line: until then the batch may have waited for others."""
    done_before: int
    """Final lines at that time."""
    at: float
    """The last observation."""
    done: int
    """Final lines at that time."""
    moved_at: float
    """The last observation with new lines, or before the first line."""
    gap: float = 0.0
    """The usual time between observations with new lines, in seconds."""
    fast: float = 0.0
    slow: float = 0.0
    """The two averages, in lines a second."""
    last: float = 0.0
    """The higher average at `moved_at`."""
    published_quiet: bool = False
    """Whether the last published progress was quiet."""

    @classmethod
    def start(cls, at: float, done: int) -> "Eta":
        """The first observation."""
        return cls(started_at=at, done_before=done, at=at, done=done, moved_at=at)

    def observe(self, at: float, done: int) -> None:
        """Note the number of final lines."""
        elapsed = at - self.at
        if elapsed <= 0:
            return
        if done <= self.done_before:
            self.started_at = self.at = self.moved_at = at
            return
        has_moved = done > self.done
        rate = (done - self.done) / elapsed
        self.at, self.done = at, done
        seen = at - self.started_at
        young = 1 - ((seen - elapsed) / seen) ** YOUTH
        self.fast += max(young, 1 - math.exp(-elapsed / FAST_SECONDS)) * (rate - self.fast)
        self.slow += max(young, 1 - math.exp(-elapsed / SLOW_SECONDS)) * (rate - self.slow)
        if has_moved:
            self.gap = max(at - self.moved_at, GAP_KEPT * self.gap)
            self.moved_at = at
            self.last = max(self.fast, self.slow)

    @property
    def quiet_at(self) -> float:
        """When the batch becomes quiet, unless a line becomes final earlier."""
        return self.moved_at + min(max(QUIET_SECONDS, QUIET_GAPS * self.gap), QUIET_SECONDS_MAX)

    @property
    def unpublished_quiet_at(self) -> float | None:
        """When to publish that the batch is quiet; None if that is published, or no line was final yet."""
        return None if self.published_quiet or self.done <= self.done_before else self.quiet_at

    @property
    def is_quiet(self) -> bool:
        """Whether the batch was quiet at the last observation."""
        return self.at >= self.quiet_at

    def progress(self, total: int, deadline: int, now: float) -> Progress:
        """The progress of the batch.

        Args:
            total: Lines of the batch.
            deadline: When it expires, Unix seconds.
            now: The Unix time of the last observation.
        """
        percent = round(100 * self.done / total, 2) if total else 0.0
        if self.done - self.done_before < SURE_LINES:
            return Progress(percent=percent)
        left = total - self.done
        low, high = sorted((self.fast, self.slow))
        if self.is_quiet or left > low * LEFT_SECONDS_MAX:
            slack = math.floor(deadline - now - left / self.last)
            return Progress(percent=percent, lines_per_second=0.0, slack_seconds=slack, observed_at=int(now))
        earliest = now + left / high * (1 - SPREAD_MIN)
        latest = now + left / low * (1 + SPREAD_MIN)
        return Progress(
            percent=percent,
            lines_per_second=float(f"{self.fast:.3g}"),
            done_earliest_at=math.floor(earliest),
            done_latest_at=math.ceil(latest),
            slack_seconds=math.floor(deadline - latest),
            observed_at=int(now),
            holds_until=math.ceil(now + self.quiet_at - self.at) + MARGIN_SECONDS,
        )
