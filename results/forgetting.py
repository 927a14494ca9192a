"""Batches that ended so long ago that the log can bring nothing of them any more are forgotten.

What the api shows of them has its own place (`tidemill.batches`); this is about the state tables, and about
results too large for a record, which would be needed to make the files again. A few are looked at each time, so
that it costs the same however many batches there ever were.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Final

from tidemill.results.fold import State
from tidemill.results.leftovers import Leftovers
from tidemill.results.tables import Tables

LOOK_SECONDS: Final = 600.0
"""Between two looks."""
LOOK_BATCHES: Final = 1_000
"""Batches that are looked at each time: 20 ms."""
OUTLIVED: Final = 2
"""A broker drops whole segments, so a record may be there for twice as long as it has to be."""


class Forgetting:
    """Of one partition.

    Args:
        tables: Its tables.
        leftovers: What its batches have left in the store.
        kept_seconds: How long the log keeps what a batch needs; infinite while that is not known.
        now: Unix seconds.
    """

    def __init__(
        self, tables: Tables, leftovers: Leftovers, kept_seconds: Callable[[], float], now: float
    ) -> None:
        self._tables = tables
        self._leftovers = leftovers
        self._kept_seconds = kept_seconds
        self._look_at = now + LOOK_SECONDS
        self._last = ""
        self._cleared: list[State] = []

    @property
    def due_at(self) -> float | None:
        """When to look again; None as long as the log keeps everything, as far as is known."""
        return None if self._kept_seconds() == float("inf") else self._look_at

    def look(self, now: float) -> Coroutine[Any, Any, None] | None:
        """Within an event: forget batches whose large results are gone, and look at some more.

        Returns:
            The removal of large results of the next ones, if there are any; it need not be awaited.
        """
        if self.due_at is None or now < self._look_at:
            return None
        self._look_at = now + LOOK_SECONDS
        cleared, self._cleared = self._cleared, []
        for state in cleared:
            self._tables.forget(state)
        seen = self._tables.over(self._last, LOOK_BATCHES)
        self._last = seen[-1].id if len(seen) == LOOK_BATCHES else ""
        gone_at = now - OUTLIVED * self._kept_seconds()
        due = [state for state in seen if state.ended_at < gone_at]
        return self._clear(due) if due else None

    async def _clear(self, due: list[State]) -> None:
        done = await self._leftovers.forget([state.id for state in due])
        self._cleared += due[:done]
