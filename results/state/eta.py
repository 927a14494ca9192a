"""The pace of a batch: how fast its lines get done, and when that will bring it to its end.

Two rates are kept, one with a short memory and one with a long one. While the batch is young both look back over
a part of its life only, so that a slow beginning is soon forgotten. Where the two differ the pace is changing, and
the expected end lies between what each of them predicts.

No line for some seconds, or for longer than this batch is used to, is no pace: its rate is 0, and it has no end.
"""

import math
from dataclasses import dataclass
from typing import Final

from tidemill.schemas.resources.batch import Progress

QUICK_SECONDS: Final = 10.0
STEADY_SECONDS: Final = 40.0
"""What is longer ago than this counts for little in the rate."""
YOUTH: Final = 3
"""Of a young batch's life the first half has the weight 1 / 2 ** YOUTH."""
SURE_LINES: Final = 20
"""With fewer lines done no rate is published."""
SPREAD_MIN: Final = 0.1
"""An end is never said to be more exact than this share of what is left."""
QUIET_SECONDS: Final = 10.0
QUIET_GAPS: Final = 3
"""So many times the usual time between lines is no pause yet: calls may be long, and end together."""
QUIET_SECONDS_MAX: Final = 300.0
GAP_KEPT: Final = 0.9
"""Of the longest time between lines, with each that is shorter."""
MARGIN_SECONDS: Final = 60
"""A record is believed for so much longer than it takes to replace it: clocks differ."""


@dataclass(slots=True)
class Eta:
    """The rate of one batch, from counts at times; it begins anew where a process takes the batch over."""

    started_at: float
    """When it was last observed before the first line: until then it may have waited for others. These times are
    those of the monotonic clock."""
    done_before: int
    """Lines that were done then."""
    at: float
    done: int
    moved_at: float
    """When it was last seen that lines got done, or that there was none yet."""
    gap: float = 0.0
    """The usual time between such moments, in seconds."""
    quick: float = 0.0
    monotonic: float = 0.0
    """Lines a second."""
    last: float = 0.0
    """The higher of both when lines got done last."""
    published_quiet: bool = False
    """Whether it was published last that it has no pace."""

    @classmethod
    def start(cls, at: float, done: int) -> "Eta":
        """Begin to observe."""
        return cls(started_at=at, done_before=done, at=at, done=done, moved_at=at)

    def observe(self, at: float, done: int) -> None:
        """Note how many lines are done."""
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
        self.quick += max(young, 1 - math.exp(-elapsed / QUICK_SECONDS)) * (rate - self.quick)
        self.monotonic += max(young, 1 - math.exp(-elapsed / STEADY_SECONDS)) * (rate - self.monotonic)
        if has_moved:
            self.gap = max(at - self.moved_at, GAP_KEPT * self.gap)
            self.moved_at = at
            self.last = max(self.quick, self.monotonic)

    @property
    def quiet_at(self) -> float:
        """From when on it has no pace, if no line gets done."""
        return self.moved_at + min(max(QUIET_SECONDS, QUIET_GAPS * self.gap), QUIET_SECONDS_MAX)

    @property
    def unpublished_quiet_at(self) -> float | None:
        """When to publish that no line gets done any more; None if that was published, or no line was."""
        return None if self.published_quiet or self.done <= self.done_before else self.quiet_at

    @property
    def is_quiet(self) -> bool:
        """Whether it had none when it was last observed."""
        return self.at >= self.quiet_at

    def progress(self, total: int, deadline: int, now: float) -> Progress:
        """What can be said of a batch of so many lines.

        Args:
            total: Its lines.
            deadline: When it expires, Unix seconds.
            now: The Unix time of the last observation.
        """
        percent = round(100 * self.done / total, 2) if total else 0.0
        if self.done - self.done_before < SURE_LINES:
            return Progress(percent=percent)
        left = total - self.done
        if self.is_quiet:
            slack = math.floor(deadline - now - left / self.last)
            return Progress(percent=percent, lines_per_second=0.0, slack_seconds=slack, observed_at=int(now))
        slow, fast = sorted((self.quick, self.monotonic))
        earliest = now + left / fast * (1 - SPREAD_MIN)
        latest = now + left / slow * (1 + SPREAD_MIN)
        return Progress(
            percent=percent,
            lines_per_second=float(f"{self.quick:.3g}"),
            done_earliest_at=math.floor(earliest),
            done_latest_at=math.ceil(latest),
            slack_seconds=math.floor(deadline - latest),
            observed_at=int(now),
            holds_until=math.ceil(now + self.quiet_at - self.at) + MARGIN_SECONDS,
        )
