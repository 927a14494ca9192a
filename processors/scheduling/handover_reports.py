"""Reports to results that lines wait for calls of the former owner of their partition.

The lines are unread, so the process knows only which batches of its models are open: it reports those of which it
has no pending line.
"""

from collections.abc import Collection
from typing import Final

from tidemill.processors.scheduling.stalls import (
    CHECK_SECONDS,
    HOLD_TIMES,
    REPORT_SECONDS,
    REPORTS_MAX,
    STALL_SECONDS,
)
from tidemill.schemas.log.messages import HOLD_SECONDS_MAX, Stalled
from tidemill.schemas.log.stall_reports import StallReports
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.waiting import Reason, Waiting

WORDS: Final = "Lines wait for calls in flight: those of the process that read them before, or of one that stops."
_NEVER: Final = float("-inf")


class HandoverReports:
    """The reports of one process, by model and batch."""

    def __init__(self, clock: Clock) -> None:
        """Start without reports."""
        self._clock = clock
        self._sources: dict[str, StallReports] = {}
        self._reported: dict[tuple[str, str], float] = {}
        """When each batch was last reported."""

    def check(self, now: float, since: float | None, batches: Collection[tuple[str, str]]) -> list[Stalled]:
        """The reports to send at `now`, if lines have waited `since` then, on a monotonic clock."""
        waiting = set(batches) if since is not None and now >= since + STALL_SECONDS else set()
        over = [key for key in self._reported if key not in waiting]
        facts = [self._withdraw(*key) for key in over[:REPORTS_MAX]]
        cycle = max(REPORT_SECONDS, CHECK_SECONDS * len(waiting) / REPORTS_MAX)
        due = [key for key in waiting if now >= self._reported.get(key, _NEVER) + cycle]
        due.sort(key=lambda key: self._reported.get(key, _NEVER))
        for key in due[: REPORTS_MAX - len(facts)]:
            self._reported[key] = now
            wait = Waiting.of(Reason.IN_FLIGHT, WORDS, since=self._clock() - now + (since or now))
            facts.append(self._source(key[0]).on(key[1], wait, hold_seconds=_hold(cycle)))
        return facts

    def _withdraw(self, model: str, batch_id: str) -> Stalled:
        """Withdraw a report."""
        del self._reported[model, batch_id]
        return self._source(model).on(batch_id)

    def _source(self, model: str) -> StallReports:
        return self._sources.setdefault(model, StallReports("handover", model=model))


def _hold(cycle: float) -> int:
    return min(HOLD_SECONDS_MAX, int(HOLD_TIMES * cycle))
