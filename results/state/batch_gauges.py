"""Metrics of the active batches of a process."""

from collections import Counter
from collections.abc import Callable, Iterable

from tidemill import metrics
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.results.state.stalls import reasons
from tidemill.schemas.ports import Clock, Monotonic
from tidemill.schemas.resources.batch import TERMINAL, Batch, Status
from tidemill.schemas.resources.waiting import Reason

Partitions = Iterable[Iterable[ActiveBatch]]
"""The active batches by partition."""


def register(active_batches: Callable[[], Partitions], clock: Clock, monotonic: Monotonic) -> None:
    """Register the gauges."""
    metrics.BATCHES.sample(lambda: statuses(active_batches()))
    metrics.AT_RISK.sample(lambda: statuses(active_batches(), _is_at_risk))
    metrics.STALLED.sample(lambda: stalled(active_batches()))
    metrics.SLACK.sample(lambda: slack(active_batches(), clock(), monotonic()))


def statuses(partitions: Partitions, of: Callable[[ActiveBatch], bool] | None = None) -> Counter[str]:
    """The number of batches in each status that is not final; `of` selects the batches to count."""
    counts = Counter({status.value: 0 for status in Status if status not in TERMINAL})
    found = (active for partition in partitions for active in partition if of is None or of(active))
    counts.update(active.state.batch.status.value for active in found if active.state.batch is not None)
    return counts


def slack(partitions: Partitions, now: float, monotonic: float) -> dict[str, float]:
    """The least slack of each model's batches, in seconds; without an expected end, the time to the deadline.

    Args:
        partitions: The active batches.
        now: Unix seconds.
        monotonic: The same moment by the monotonic clock.
    """
    least: dict[str, float] = {}
    for partition in partitions:
        for active in partition:
            batch = active.state.batch
            if batch is None or not (models := _unfinished(batch)):
                continue
            progress = active.progress(now, monotonic)
            seconds = progress.slack_seconds if progress and progress.slack_seconds is not None else None
            value = float(seconds) if seconds is not None else batch.expires_at - now
            for model in models:
                least[model] = min(value, least.get(model, value))
    return least


def _unfinished(batch: Batch) -> list[str]:
    """The models of a batch that have lines without a result."""
    if batch.model is not None:
        return [batch.model]
    return [share.model for share in batch.tidemill.models if share.unanswered]


def _is_at_risk(active: ActiveBatch) -> bool:
    return active.state.batch is not None and active.state.batch.tidemill.at_risk is not None


def stalled(partitions: Partitions) -> Counter[str]:
    """The number of batches that wait for each reason; a batch counts for each of its reasons."""
    found: Counter[str] = Counter(dict.fromkeys(Reason, 0))
    for active in (active for partition in partitions for active in partition if active.state.batch is not None):
        found.update(reasons(active.waiting))
    return found
