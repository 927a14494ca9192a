"""The backlog of each model, for the gauges by which operators scale its servers.

A batch has one owner, so the sum over the processes of results is that of all batches. Tokens are estimated from
the usage of the lines that wait for a part, so no line is read for it.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from tidemill import metrics
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.schemas.lifecycle import AT_WORK
from tidemill.schemas.log.part import UNKNOWN_USAGE, USAGE
from tidemill.schemas.ports import Clock

FIRST_TOKENS: Final = 512.0
"""Assumed tokens of a line and its answer, before any result is known."""
SAMPLE_LINES: Final = 64
"""Lines of a batch that one scrape looks at."""
WEIGHT: Final = 0.2
"""The weight of a batch in the moving average of its model."""


class Backlog:
    """The lines without a result that one process owns, by model."""

    def __init__(
        self,
        active_batches: Callable[[], Iterable[Iterable[ActiveBatch]]],
        models: Callable[[], Iterable[str]],
        clock: Clock,
    ) -> None:
        """Start without estimates.

        Args:
            active_batches: The active batches by partition.
            models: The models that may be called.
            clock: Unix time.
        """
        self._active_batches = active_batches
        self._models = models
        self._clock = clock
        self._tokens: dict[str, float] = {}
        """Tokens of a line and its answer, on average."""

    def register(self) -> None:
        """Register the gauges."""
        metrics.WAITING_LINES.sample(self.lines)
        metrics.WAITING_TOKENS.sample(self.tokens)
        metrics.WAITING_SECONDS.sample(self.seconds)

    def lines(self) -> dict[str, float]:
        """Lines of each model."""
        found = dict.fromkeys(self._models(), 0.0)
        for _, model, lines in self._waiting():
            if model in found:
                found[model] += lines
        return found

    def tokens(self) -> dict[str, float]:
        """Tokens of these lines and their answers, estimated."""
        self._learn()
        lines = self.lines()
        self._tokens = {model: tokens for model, tokens in self._tokens.items() if model in lines}
        return {model: round(number * self._tokens.get(model, FIRST_TOKENS)) for model, number in lines.items()}

    def seconds(self) -> dict[str, float]:
        """Age of the oldest batch of each model; 0 without one."""
        found = dict.fromkeys(self._models(), 0.0)
        now = self._clock()
        for created_at, model, _ in self._waiting():
            if model in found:
                found[model] = max(found[model], now - created_at)
        return found

    def _waiting(self) -> Iterator[tuple[int, str, int]]:
        """Time of creation, model, and lines without a result, of each batch and model that has some."""
        for active in itertools.chain.from_iterable(self._active_batches()):
            batch = active.state.batch
            if batch is None or batch.status not in AT_WORK:
                continue
            counts = {share.model: share.unanswered for share in batch.tidemill.models}
            if batch.model is not None:
                counts = {batch.model: active.total - active.bitmap.done}
            yield from ((batch.created_at, model, lines) for model, lines in counts.items() if lines > 0)

    def _learn(self) -> None:
        for active in itertools.chain.from_iterable(self._active_batches()):
            batch = active.state.batch
            if batch is None or (model := batch.model) is None:
                continue
            recent = active.output.usages[-USAGE * SAMPLE_LINES :]
            usages = [tuple(recent[place : place + USAGE]) for place in range(0, len(recent), USAGE)]
            usages = [usage for usage in usages if any(usage) and usage != UNKNOWN_USAGE]
            if usages:
                mean = sum(usage[0] + usage[2] for usage in usages) / len(usages)
                known = self._tokens.setdefault(model, mean)
                self._tokens[model] = known + WEIGHT * (mean - known)
