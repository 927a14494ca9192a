"""Holds records of a blocked batch, whose key is missing or whose objects the store refuses.

The later records of the same batch wait behind them; the other batches of the partition continue. The owner of the
partition, which alone writes its tables, retries each batch with back-off. At a bound the whole partition waits.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from tidemill.retrying import pause_seconds
from tidemill.schemas.ports import Monotonic
from tidemill.schemas.resources.waiting import Reason

RECORDS_MAX: Final = 10_000
"""Held records of a partition; at `RECORDS_MAX` or `BYTES_MAX` the partition waits."""
BYTES_MAX: Final = 16 << 20

log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]
"""Handles a record of a batch; called again after it has raised `Unavailable`."""


class Unavailable(OSError):
    """A batch is blocked; the text gives the cause, and has ids as its only user data."""

    def __init__(self, why: str, reason: Reason = Reason.STORE) -> None:
        super().__init__(why)
        self.reason = reason


Report = Callable[[str, Unavailable | None, float], None]
"""Called with a batch, why it is blocked and when the next retry is; with None once it is no longer blocked."""


@dataclass(slots=True)
class _Blocked:
    pauses: int = 0
    retry_at: float = 0.0
    records: deque[tuple[Work, int]] = field(default_factory=deque)


class HeldRecords:
    """The held records of one partition; its calls must not overlap."""

    def __init__(self, report: Report, monotonic: Monotonic) -> None:
        self._report = report
        self._monotonic = monotonic
        self._blocked: dict[str, _Blocked] = {}
        self._records = self._bytes = 0

    @property
    def due_in(self) -> float | None:
        """Seconds until the next retry; None if no record is held."""
        if not self._blocked:
            return None
        return min(blocked.retry_at for blocked in self._blocked.values()) - self._monotonic()

    def __contains__(self, batch_id: str) -> bool:
        """Whether records of a batch are held."""
        return batch_id in self._blocked

    async def run_or_hold(self, batch_id: str | None, work: Work, size: int) -> None:
        """Handle a record, or hold it behind others of its batch; then retry due batches, and wait at a bound.

        `size` is the record's bytes. Without a `batch_id`, `work` must not raise `Unavailable`.
        """
        if batch_id is None or batch_id not in self._blocked:
            try:
                await work()
            except Unavailable as error:
                assert batch_id is not None
                self._blocked[batch_id] = _Blocked()
                self._put(batch_id, work, size)
                self._postpone(batch_id, error)
        else:
            self._put(batch_id, work, size)
        await self.retry_due()
        await self.wait_while(lambda: self._records > RECORDS_MAX or self._bytes > BYTES_MAX)

    async def wait_while(self, is_full: Callable[[], bool]) -> None:
        """Retry due batches until `is_full` is false or no record is held."""
        while self._blocked and is_full():
            await asyncio.sleep(max(0.0, self.due_in or 0.0))
            await self.retry_due()

    async def retry_due(self) -> None:
        """Retry the batches that are due."""
        now = self._monotonic()
        for batch_id in [batch_id for batch_id, blocked in self._blocked.items() if blocked.retry_at <= now]:
            records = self._blocked[batch_id].records
            try:
                while records:
                    await records[0][0]()
                    self._records -= 1
                    self._bytes -= records.popleft()[1]
            except Unavailable as error:
                self._postpone(batch_id, error)
            else:
                del self._blocked[batch_id]
                self._report(batch_id, None, 0.0)

    def _put(self, batch_id: str, work: Work, size: int) -> None:
        self._blocked[batch_id].records.append((work, size))
        self._records += 1
        self._bytes += size

    def _postpone(self, batch_id: str, error: Unavailable) -> None:
        blocked = self._blocked[batch_id]
        pause = pause_seconds(blocked.pauses)
        blocked.pauses += 1
        blocked.retry_at = self._monotonic() + pause
        log.warning("%s is blocked: %s; next attempt in %.1f s", batch_id, error, pause)
        self._report(batch_id, error, blocked.retry_at)
