"""Polls the metrics page of a server, and adjusts the server's limits to the metrics.

No call waits for the poller. Most servers have no such page; the poller asks them less and less often.
"""

import asyncio
import logging
from typing import Final

from tidemill.processors.backends.server import Server
from tidemill.processors.failures import FailureKind
from tidemill.processors.http.client import HttpUpstream
from tidemill.processors.limits import server_metrics
from tidemill.processors.limits.headroom import STALE_SECONDS, WATCH_SECONDS
from tidemill.processors.limits.server_metrics import ServerMetrics
from tidemill.schemas.ports import Monotonic

POLL_SECONDS: Final = 1.0
SILENT_SECONDS_MAX: Final = 60.0
"""The longest wait between two polls of a server without metrics."""
HEADROOM_SECONDS_MAX: Final = 5.0
"""The same for a server that hardly gets a call without metrics."""
SILENT_POLLS: Final = 3
"""Polls without a reading, in a row, before a warning is logged."""
REPLY_SECONDS_MAX: Final = 2.0
REPLY_BYTES_MAX: Final = 4 << 20
"""vLLM's page has some 100 KiB."""

_OK: Final = 200
_log = logging.getLogger(__name__)


class MetricsPoller:
    """Polls one server."""

    def __init__(
        self,
        server: Server,
        url: str,
        headers: dict[str, str],
        *,
        client: HttpUpstream,
        monotonic: Monotonic,
    ) -> None:
        """Start without polling.

        Args:
            server: The server.
            url: The URL of its metrics page.
            headers: The headers of the request.
            client: The HTTP client.
            monotonic: A monotonic clock.
        """
        self._server = server
        self._url = url
        self._headers = headers
        self._client = client
        self._monotonic = monotonic
        self._read_at = float("-inf")
        self._silent = 0
        """Polls in a row without a reading."""
        self._is_warned = False
        self._has_failed = False

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            # The metrics of an idle server matter only if the load of other clients decides whether it gets a
            # first call.
            if self._server.in_flight or self._server.headroom is not None:
                try:
                    await self.poll()
                except Exception:  # noqa: BLE001  the next reading may be well
                    self._fail()
            await asyncio.sleep(self.pause_seconds)

    @property
    def pause_seconds(self) -> float:
        """Until the next poll."""
        headroom = self._server.headroom
        if headroom is not None and headroom.is_watching and not self._silent:
            return WATCH_SECONDS
        rare = SILENT_SECONDS_MAX if headroom is None else HEADROOM_SECONDS_MAX
        return min(rare, POLL_SECONDS * 2.0 ** min(self._silent, 10))

    async def poll(self) -> None:
        """Poll once."""
        before = self._server.in_flight
        reading = await self._reading()
        now = self._monotonic()
        if reading is not None:
            # The server counted its requests at some time between our two counts.
            self._server.apply_metrics(reading, (before + self._server.in_flight) / 2, now)
            self._silent = 0
            self._read_at = now
            self._warn()
        else:
            self._miss(now)
        self._server.queue.changed()

    def _miss(self, now: float) -> None:
        """Count a poll without a reading."""
        self._silent += 1
        if self._server.headroom is not None and self._silent == SILENT_POLLS:
            _log.warning("the metrics of %s cannot be read: headroom allows one call", self._server.name)
        if now - self._read_at > STALE_SECONDS:
            self._server.limit.release()

    def _fail(self) -> None:
        """Count a poll that failed because of a bug in Tidemill; log the first one."""
        if not self._has_failed:
            self._has_failed = True
            _log.exception("the metrics of %s cannot be used", self._server.name)
        self._miss(self._monotonic())
        # The failure may come from a call that starts now.
        asyncio.get_running_loop().call_soon(self._server.queue.changed)

    def _warn(self) -> None:
        """Warn if the metrics do not show whether the server meets its target."""
        target = None if self._server.headroom is None else self._server.headroom.target
        if target is None or target.is_measured or self._is_warned:
            return
        self._is_warned = True
        _log.warning(
            "the metrics of %s have no histogram of the time to the first token with a bound up to ttft_ms; "
            "a quarter of its capacity stays free instead", self._server.name,
        )  # fmt: skip

    async def _reading(self) -> ServerMetrics | None:
        try:
            outcome = await self._client.get(self._url, self._headers, REPLY_SECONDS_MAX, REPLY_BYTES_MAX)
        except ValueError:
            # The key cannot be written into a request; the calls report that.
            return None
        if isinstance(outcome, FailureKind) or outcome.status != _OK:
            return None
        return server_metrics.read(outcome.body)
