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
        self._in_flight: list[int] = []
        self._began = 0.0
        """Monotonic time of the first call; 0 until then."""
        self._changes = list(case.changes)
        """The changes that are still to come."""
        self.ended_at = 0.0
        """Monotonic time of the last successful answer; 0 until then."""

    @property
    def mean(self) -> float:
        """Mean number of calls in flight."""
        return sum(self._in_flight) / max(1, len(self._in_flight))

    async def watch(self) -> None:
        """Sample until every line has its answer, or until cancelled; a request that fails is made again."""
        while not self.ended_at:
            with suppress(OSError):
                await self._sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _sample(self) -> None:
        stats = await self.backend.stats()
        now = time.monotonic()
        if stats["calls"]:
            self._began = self._began or now
            self._in_flight.append(stats["inflight"])
            if self._changes and now - self._began >= self._changes[0][0]:
                await self.backend.change({"capacity": str(self._changes[0][1])})
                self._changes.pop(0)
        if stats["ok"] >= self._case.total:
            self.ended_at = time.monotonic()
