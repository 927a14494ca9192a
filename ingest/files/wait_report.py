"""Tells a batch why ingest has not checked or published its input yet."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from tidemill.ingest.files.packing import RequestPublisher
from tidemill.retrying import reason
from tidemill.schemas.log.stall_reports import StallReports
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.waiting import Reason, Waiting
from tidemill.sealing.wrapping import KeyUnavailable
from tidemill.storage.owner import StoreFault

HOLD_SECONDS: Final = 300
"""How long a report is valid: longer than an attempt and its pause."""
_reports: Final = StallReports("ingest")

log = logging.getLogger(__name__)


class WaitReport:
    """What ingest reports on one batch; a report that the log does not take is lost."""

    def __init__(self, batch_id: str, requests: RequestPublisher, clock: Clock) -> None:
        """Report nothing yet."""
        self._batch_id = batch_id
        self._requests = requests
        self._since = int(clock())
        self._waits = False

    async def show(self, why: Reason, words: str) -> None:
        """Report why the batch waits."""
        await self._send(Waiting.of(why, words, since=self._since))

    @asynccontextmanager
    async def faults(self) -> AsyncGenerator[None, None]:
        """Report that the batch waits for its key or for the store, if one is away inside; the error goes on."""
        try:
            yield
        except KeyUnavailable as error:
            await self.show(Reason.KEY, f"The key of the batch is unavailable: {reason(error)}.")
            raise
        except StoreFault as error:
            await self.show(Reason.STORE, f"The files cannot be read: {reason(error)}.")
            raise

    async def clear(self) -> None:
        """Report that the batch waits no longer, if the last report says that it does."""
        if self._waits:
            await self._send()

    async def _send(self, *waiting: Waiting) -> None:
        self._waits = bool(waiting)
        fact = _reports.on(self._batch_id, *waiting, hold_seconds=HOLD_SECONDS)
        try:
            await self._requests.send_fact(fact)
        except OSError as error:
            log.warning("a report on %s is lost (%s)", self._batch_id, reason(error))
