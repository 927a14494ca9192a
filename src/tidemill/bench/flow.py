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
        self.ended_at = 0.0
        """Monotonic time of the last successful answer; 0 until then."""

    @property
    def mean(self) -> float:
        """Mean number of calls in flight."""
        return sum(self._in_flight) / max(1, len(self._in_flight))

    async def watch(self) -> None:
        """Sample until every line has its answer, or until cancelled."""
        began = 0.0
        changes = list(self._case.changes)
        with suppress(OSError):
            while not self.ended_at:
                stats = await self.backend.stats()
                now = time.monotonic()
                if stats["calls"]:
                    began = began or now
                    if changes and now - began >= changes[0][0]:
                        await self.backend.change({"capacity": str(changes.pop(0)[1])})
                    self._in_flight.append(stats["inflight"])
                if stats["ok"] >= self._case.total:
                    self.ended_at = time.monotonic()
                await asyncio.sleep(SAMPLE_SECONDS)
