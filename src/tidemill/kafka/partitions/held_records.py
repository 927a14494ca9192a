"""Holds work on one batch that cannot go on at the moment: its key is missing, or the store refuses its objects.

It waits beside its partition, with the later work on the same batch behind it, and the other batches go on. The
owner of the partition tries each batch again with growing pauses, since only the owner may write its tables. At a
bound the whole partition waits.
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
"""Of a partition."""
BYTES_MAX: Final = 16 << 20

log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]
"""Does some work on a batch; may be called again after it has raised `Unavailable`."""


class Unavailable(OSError):
    """Something that one batch needs is unavailable at the moment; the text says why, and names only ids."""

    def __init__(self, why: str, reason: Reason = Reason.STORE) -> None:
        super().__init__(why)
        self.reason = reason


Report = Callable[[str, Unavailable | None, float], None]
"""Called with why a batch waits and when it is tried again; with None once it waits no more."""


@dataclass(slots=True)
class _Waiting:
    pauses: int = 0
    again_at: float = 0.0
    records: deque[tuple[Work, int]] = field(default_factory=deque)


class HeldRecords:
    """Of one partition; its calls never overlap."""

    def __init__(self, report: Report, monotonic: Monotonic) -> None:
        self._report = report
        self._monotonic = monotonic
        self._waiting: dict[str, _Waiting] = {}
        self._records = self._bytes = 0

    @property
    def due_in(self) -> float | None:
        """Seconds until the next batch is to be tried again; None where none waits."""
        if not self._waiting:
            return None
        return min(waiting.again_at for waiting in self._waiting.values()) - self._monotonic()

    def __contains__(self, batch_id: str) -> bool:
        """Whether work on a batch is held."""
        return batch_id in self._waiting

    async def run_or_hold(self, batch_id: str | None, work: Work, size: int) -> None:
        """Do work, or hold it.

        Args:
            batch_id: The batch; None for work that never waits.
            work: See there.
            size: Bytes of the records it holds.
        """
        if batch_id is None or batch_id not in self._waiting:
            try:
                await work()
            except Unavailable as error:
                assert batch_id is not None
                self._waiting[batch_id] = _Waiting()
                self._put(batch_id, work, size)
                self._put_off(batch_id, error)
        else:
            self._put(batch_id, work, size)
        await self.retry_due()
        await self.wait_while(lambda: self._records > RECORDS_MAX or self._bytes > BYTES_MAX)

    async def wait_while(self, is_full: Callable[[], bool]) -> None:
        """Have the partition wait for held work, as long as a bound is reached."""
        while self._waiting and is_full():
            await asyncio.sleep(max(0.0, self.due_in or 0.0))
            await self.retry_due()

    async def retry_due(self) -> None:
        """Try those whose time has come."""
        now = self._monotonic()
        for batch_id in [batch_id for batch_id, waiting in self._waiting.items() if waiting.again_at <= now]:
            records = self._waiting[batch_id].records
            try:
                while records:
                    await records[0][0]()
                    self._records -= 1
                    self._bytes -= records.popleft()[1]
            except Unavailable as error:
                self._put_off(batch_id, error)
            else:
                del self._waiting[batch_id]
                self._report(batch_id, None, 0.0)

    def _put(self, batch_id: str, work: Work, size: int) -> None:
        self._waiting[batch_id].records.append((work, size))
        self._records += 1
        self._bytes += size

    def _put_off(self, batch_id: str, error: Unavailable) -> None:
        waiting = self._waiting[batch_id]
        pause = pause_seconds(waiting.pauses)
        waiting.pauses += 1
        waiting.again_at = self._monotonic() + pause
        log.warning("%s waits: %s; next try in %.1f s", batch_id, error, pause)
        self._report(batch_id, error, waiting.again_at)
