"""Headroom: how many calls a backend may get if requests of others go first.

Others' requests are those that run and wait there, less our own calls. Of other processes of ours this one knows
only its own part of the model's calls (`part.py`), and takes their calls to be in proportion.

The number is as old as the last reading. After some seconds without one the needs of others are unknown, and only
the least that the operator allows is left.
"""

from typing import Final

from tidemill.processors.limits.server_metrics import ServerMetrics

STALE_SECONDS: Final = 10.0


class Headroom:
    """What is left of one backend."""

    def __init__(self, requests_max: int | None, calls_min: int) -> None:
        """Begin with the least.

        Args:
            requests_max: Requests of all clients that it should bear; without it, as many as run until some
                wait, which is the limit's matter.
            calls_min: Calls that it may have at any rate.
        """
        self.calls_min = calls_min
        self._requests_max = requests_max
        self._left: int | None = calls_min
        self._read_at = float("-inf")

    def read(self, gauges: ServerMetrics, ours: float, part: float, now: float) -> None:
        """Take a reading.

        Args:
            gauges: What the backend says.
            ours: Calls of this process, at that time.
            part: This process's part of the model's calls.
            now: Seconds of the event loop's clock.
        """
        self._read_at = now
        if self._requests_max is None:
            self._left = None
            return
        others = max(0.0, gauges.requests - ours / max(part, 1e-9))
        self._left = max(self.calls_min, int((self._requests_max - others) * part))

    def left(self, now: float) -> int | None:
        """Calls that may be in flight; None where only the limit says."""
        return self.calls_min if now - self._read_at > STALE_SECONDS else self._left
