"""The metrics of results and batches, except the gauges of active batches (`state/batch_gauges.py`)."""

from collections.abc import Callable, Container
from typing import Final

from tidemill import metrics
from tidemill.instruments import Buckets
from tidemill.schemas.resources.batch import Batch, Status

_STATUSES: Final = {Status.COMPLETED, Status.EXPIRED, Status.CANCELLED, Status.FAILED}
_WITH_DEADLINE: Final = {Status.COMPLETED, Status.EXPIRED}


class ResultMetrics:
    """The results that a process has read, counted once a record."""

    def __init__(self) -> None:
        """Start with zero counts."""
        self._new = self._repeated = self._bytes = 0
        self._seconds: dict[str, Buckets] = {}
        """From the creation of a batch to the results of its lines, by model."""

    def register(self, models: Callable[[], Container[str]]) -> None:
        """Register the sources of the metrics; only `models`, those of the settings, get time series."""

        def seconds() -> dict[str, Buckets]:
            named = models()
            self._seconds = {name: buckets for name, buckets in self._seconds.items() if name in named}
            return self._seconds

        metrics.LINE_DURATION.sample(seconds)
        metrics.FOLDED_LINES.sample(lambda: {"new": self._new, "repeated": self._repeated})
        metrics.FOLDED_BYTES.sample(lambda: {(): self._bytes})

    def folded(self, model: str, lines: int, *, new: int, size: int, seconds: float) -> None:
        """Count the result lines of a record.

        Args:
            model: The model of the lines; it is one of the batch.
            lines: Their number.
            new: How many of them are not repetitions.
            size: Their bytes.
            seconds: Time since the creation of the batch.
        """
        self._new += new
        self._repeated += lines - new
        self._bytes += size
        if (buckets := self._seconds.get(model)) is None:
            buckets = self._seconds[model] = Buckets(metrics.WAIT_SECONDS)
        buckets.observe(seconds, new)


def count_ended(batch: Batch, now: float) -> None:
    """Count a batch that has ended at a Unix time."""
    if batch.status not in _STATUSES:
        return
    metrics.BATCH_DURATION.labels(batch.status.value).observe(max(0.0, now - batch.created_at))
    if batch.status in _WITH_DEADLINE:
        is_met = batch.status is Status.COMPLETED and (batch.finalizing_at or 0) <= batch.expires_at
        metrics.DEADLINES.labels("met" if is_met else "missed").inc()
