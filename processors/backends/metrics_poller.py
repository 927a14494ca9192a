"""Asks a backend at times how much it has to do, and tells the limit of calls to it.

It stands beside the calls: nothing waits for it. Most servers have no such metrics, which is found out by asking;
they are asked again ever more rarely.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from tidemill.processors.backends.pool import Backend
from tidemill.processors.failures import Answer, Broken
from tidemill.processors.limits import server_metrics
from tidemill.processors.limits.headroom import STALE_SECONDS
from tidemill.processors.limits.server_metrics import ServerMetrics
from tidemill.schemas.ports import Steady

POLL_SECONDS: Final = 1.0
RARE_SECONDS_MAX: Final = 60.0
"""Between two looks at a backend that told nothing."""
SPARE_RARE_SECONDS_MAX: Final = 5.0
"""The same where hardly a call goes out as long as it tells nothing."""
REPLY_SECONDS_MAX: Final = 2.0
REPLY_BYTES_MAX: Final = 4 << 20
"""vLLM says some 100 KiB."""

_OK: Final = 200


class Getter(Protocol):
    """What it needs of an HTTP client."""

    async def get(self, url: str, headers: dict[str, str], seconds: float, bytes_max: int) -> Answer | Broken:
        """Read a page; it ends within `seconds`, and never raises for what the other side does."""
        ...


class MetricsPoller:
    """Looks at one backend."""

    def __init__(
        self,
        backend: Backend,
        url: str,
        headers: dict[str, str],
        *,
        getter: Getter,
        steady: Steady,
        told: Callable[[], None],
    ) -> None:
        """Take the doors.

        Args:
            backend: What it looks at.
            url: Where its metrics are.
            headers: What goes with the request.
            getter: The HTTP client.
            steady: A clock that nobody steps.
            told: Called after each reading: there may be room for calls.
        """
        self._backend = backend
        self._url = url
        self._headers = headers
        self._getter = getter
        self._steady = steady
        self._told = told
        self._read_at = float("-inf")
        self._silent = 0
        """Looks in a row that told nothing."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            # An idle backend has nothing to say that matters, unless others' load decides on the first call.
            if self._backend.in_flight or self._backend.spare is not None:
                await self.look()
            await asyncio.sleep(self.pause_seconds)

    @property
    def pause_seconds(self) -> float:
        """Until the next look."""
        rare = RARE_SECONDS_MAX if self._backend.spare is None else SPARE_RARE_SECONDS_MAX
        return min(rare, POLL_SECONDS * 2.0 ** min(self._silent, 10))

    async def look(self) -> None:
        """Look once."""
        before = self._backend.in_flight
        reading = await self._reading()
        now = self._steady()
        if reading is not None:
            self._silent = 0
            self._read_at = now
            # Nobody knows when between the two the server counted.
            self._backend.heed(reading, (before + self._backend.in_flight) / 2, now)
        else:
            self._silent += 1
            if now - self._read_at > STALE_SECONDS:
                self._backend.limit.release()
        self._told()

    async def _reading(self) -> ServerMetrics | None:
        try:
            outcome = await self._getter.get(self._url, self._headers, REPLY_SECONDS_MAX, REPLY_BYTES_MAX)
        except ValueError:
            # The key cannot be written into a request; the calls tell of that.
            return None
        if isinstance(outcome, Broken) or outcome.status != _OK:
            return None
        return server_metrics.read(outcome.body)
