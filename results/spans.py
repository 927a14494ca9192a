"""Spans of a batch in results: its fold, and the writing of its files."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import time_ns
from typing import Final

from opentelemetry.trace import SpanKind

from tidemill import metrics
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.schemas.log.topics import OUTCOMES
from tidemill.telemetry import context, tracing

FOLD: Final = f"fold {OUTCOMES.name}"


class BatchSpans:
    """The batches whose lines this owner folds."""

    def __init__(self) -> None:
        self._since: dict[str, int | None] = {}
        """When the first line came, Unix time in nanoseconds; None once the span of the fold has ended."""

    def folds(self, batch_id: str) -> None:
        """Note that a line of a batch is folded, which may come before the batch itself."""
        if batch_id not in self._since:
            self._since[batch_id] = time_ns()

    def forget(self, batch_id: str) -> None:
        """Forget a batch that is over."""
        self._since.pop(batch_id, None)

    @contextmanager
    def finalizing(self, active: ActiveBatch) -> Iterator[None]:
        """The writing of a batch's files, which ends its fold.

        The fold has length 0 if a former owner folded all lines.
        """
        batch = active.state.batch
        assert batch is not None
        since, self._since[batch.id] = self._since.get(batch.id, time_ns()), None
        if since is not None:
            attributes = tracing.messaging("fold", "process", OUTCOMES.name) | {tracing.COUNT: active.bitmap.done}
            tracing.past(FOLD, SpanKind.CONSUMER, batch, attributes, since=since)
        counts = batch.request_counts
        lines: tracing.Attributes = {"tidemill.lines": counts.total, "tidemill.lines.failed": counts.failed}
        with (
            metrics.FINALIZE.time(),
            context.bound(batch_id=batch.id),
            tracing.step("finalize", SpanKind.INTERNAL, batch, lines),
        ):
            yield
