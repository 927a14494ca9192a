"""What the backend and the processors say while a case runs, sampled."""

import asyncio
import time
from contextlib import suppress

from tidemill.bench.cases import Case
from tidemill.bench.plot import Sample
from tidemill.bench.service import Mock, Service

SAMPLE_SECONDS = 0.05


class Flow:
    """Calls in flight, refused ones and the limit, over time; changes the backend as its case says."""

    def __init__(self, case: Case, backend: Mock, service: Service) -> None:
        self._case = case
        self.backend = backend
        self._service = service
        self._began = 0.0
        self.samples: list[Sample] = []
        """From the first call on."""
        self.last = 0.0
        """When the last good answer was there."""

    def idle_share(self, ideal_seconds: float) -> float:
        """How much of the backend was idle from its first call to its last answer; 0 where it has no bound."""
        return 1 - ideal_seconds / (self.last - self._began) if self.last and ideal_seconds else 0.0

    @property
    def mean(self) -> float:
        """Calls in flight, while there were lines."""
        return sum(sample.in_flight for sample in self.samples) / max(1, len(self.samples))

    async def watch(self) -> None:
        """Sample until every line has its answer, or until cancelled."""
        total = self._case.lines * self._case.batches
        changes = list(self._case.changes)
        capacity = self._case.capacity
        with suppress(OSError):
            while not self.last:
                stats = await self.backend.stats()
                now = time.monotonic()
                if stats["calls"]:
                    self._began = self._began or now
                    seconds = now - self._began
                    if changes and seconds >= changes[0][0]:
                        capacity = changes.pop(0)[1]
                        await self.backend.change({"capacity": str(capacity)})
                    # To ask the processors costs them time, and only a case with changes is looked at so closely.
                    limit = await self._service.limit() if self._case.changes else 0.0
                    self.samples.append(
                        Sample(
                            seconds=seconds,
                            limit=limit,
                            in_flight=stats["inflight"],
                            calls=stats["calls"],
                            refused=stats["calls"] - stats["ok"] - stats["inflight"],
                            capacity=capacity,
                        )
                    )
                if stats["ok"] >= total:
                    self.last = time.monotonic()
                await asyncio.sleep(SAMPLE_SECONDS)
