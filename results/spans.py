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


@contextmanager
def finalizing(active: ActiveBatch) -> Iterator[None]:
    """The writing of a batch's files, which ends its fold.

    The fold began with the first line that this process folded; it has no length if a former owner folded all.
    """
    batch = active.state.batch
    assert batch is not None
    if not active.has_fold_span:
        active.has_fold_span = True
        attributes = tracing.messaging("fold", "process", OUTCOMES.name) | {tracing.COUNT: active.bitmap.done}
        since = active.folding_since or time_ns()
        tracing.past(FOLD, SpanKind.CONSUMER, batch, attributes, since=since)
    counts = batch.request_counts
    lines: tracing.Attributes = {"tidemill.lines": counts.total, "tidemill.lines.failed": counts.failed}
    with (
        metrics.FINALIZE.time(),
        context.bound(batch_id=batch.id),
        tracing.step("finalize", SpanKind.INTERNAL, batch, lines),
    ):
        yield
