"""Samples the backend while a case runs, and changes its capacity as the case says."""

import asyncio
import time
from contextlib import suppress

from tidemill.bench.cases import Case
from tidemill.bench.service import Mock

SAMPLE_SECONDS = 0.05


class Flow:
    """Calls in flight over time, from the first call to the last answer."""

    def __init__(self, case: Case, backend: Mock) -> None:
        self._case = case
        self.backend = backend
        self._began = 0.0
        self._in_flight: list[int] = []
        self.ended_at = 0.0
        """Monotonic time of the last successful answer; 0 until then."""

    def idle_share(self, ideal_seconds: float) -> float:
        """Share of the backend that was idle from its first call to its last answer; 0 if unbounded."""
        return 1 - ideal_seconds / (self.ended_at - self._began) if self.ended_at and ideal_seconds else 0.0

    @property
    def mean(self) -> float:
        """Mean number of calls in flight."""
        return sum(self._in_flight) / max(1, len(self._in_flight))

    async def watch(self) -> None:
        """Sample until every line has its answer, or until cancelled."""
        total = self._case.lines * self._case.batches
        changes = list(self._case.changes)
        with suppress(OSError):
            while not self.ended_at:
                stats = await self.backend.stats()
                now = time.monotonic()
                if stats["calls"]:
                    self._began = self._began or now
                    if changes and now - self._began >= changes[0][0]:
                        await self.backend.change({"capacity": str(changes.pop(0)[1])})
                    self._in_flight.append(stats["inflight"])
                if stats["ok"] >= total:
                    self.ended_at = time.monotonic()
                await asyncio.sleep(SAMPLE_SECONDS)
