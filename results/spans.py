"""Spans of a batch in results: its fold, and the writing of its files."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import time_ns
from typing import Final

from opentelemetry.trace import SpanKind

from tidemill import metrics
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.schemas.log.topics import OUTCOMES
from tidemill.schemas.resources.batch import Batch
from tidemill.telemetry import context, tracing

FOLD: Final = f"fold {OUTCOMES.name}"


class BatchSpans:
    """The batches with a trace whose lines this owner folds."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        """When the first line came, Unix time in nanoseconds."""

    def folds(self, batch: Batch) -> None:
        """Note that a line of a batch with a trace is folded."""
        self._since.setdefault(batch.id, time_ns())

    def forget(self, batch_id: str) -> None:
        """Forget a batch that is over."""
        self._since.pop(batch_id, None)

    @contextmanager
    def finalizing(self, active: ActiveBatch) -> Iterator[None]:
        """The writing of a batch's files, which ends its fold."""
        batch = active.state.batch
        assert batch is not None
        if (since := self._since.pop(batch.id, None)) is not None:
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
