"""Asks a server for the smallest answer there is, where nothing else can tell whether it answers anybody.

A line that fails again and again says nothing of whose fault that is as long as no other line is answered. Where
none is there that could be, or none is answered for a while, a request of a few tokens takes its place: for the
last lines of a batch, for example, or where all others ask for another endpoint. It is made only while such a line
waits, by one call at a time. So a server that is away, or refuses our key, is asked in vain and rarely, and the
lines wait; of one that is well, a few answers tell which lines are bad.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import orjson

from tidemill.processors.backends.pool import NEVER, Backend, BackendPool, Failed, Permit
from tidemill.processors.calls import request_codec
from tidemill.processors.failures import Broken, Kind
from tidemill.processors.http.client import Upstream
from tidemill.processors.lines import Line
from tidemill.schemas.endpoints import BY_PATH, PROMPT

DOUBLINGS_MAX: Final = 4
"""Of the wait between two requests, which doubles with each that fails."""
REPLY_SECONDS_MAX: Final = 60.0
DOUBT_PART: Final = 0.25
"""Of the wait, where lines fail in a row."""
USELESS_SECONDS: Final = 600.0
"""How long a server is not asked that took the request for a wrong one."""
NO_LINE: Final = ("", -1)

_log = logging.getLogger(__name__)


class Proof:
    """Asks the servers of one model; needs a running event loop."""

    def __init__(
        self, model: str, fleet: BackendPool, upstream: Upstream, told: Callable[[], None], wait_seconds: float
    ) -> None:
        """Take the doors.

        Args:
            model: Its name, as its servers know it.
            fleet: Its servers.
            upstream: The HTTP client.
            told: Called when something is known that was not.
            wait_seconds: Between two requests.
        """
        self._model = model
        self._fleet = fleet
        self._upstream = upstream
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked: dict[Backend, tuple[float, int]] = {}
        """When each was asked last, and how many requests in a row it did not answer well."""
        self._wait = wait_seconds
        self._useless_until: dict[str, float] = {}

    def is_in_vain(self, line: Line) -> bool:
        """Whether no request tells anything for a line: it is not known how to ask, or the last one failed."""
        return self._is_away(line.avoid, line.head.url) or not self._can_ask(line.head.url)

    def ask(self, line: Line, *, patience_seconds: float = 0.0) -> None:
        """Ask the server that failed a line, unless that was done lately.

        Args:
            line: It has failed again and again.
            patience_seconds: How long after its last failure another line may still answer the question.
        """
        if line.avoid is None or self._task is not None or not self._can_ask(line.head.url):
            return
        now = self._loop.time()
        asked_at, failures = self._last(line.avoid)
        at = max(asked_at + self._wait * 2.0**failures, line.mark + patience_seconds)
        if now < at:
            if self._timer is None or at < self._timer.when():
                self._stop_timer()
                self._timer = self._loop.call_at(at, self._wake)
        elif (place := self._fleet.ask(line.avoid, now)) is not None:
            self._start(place, line.head.url)

    def doubt(self, endpoint: str) -> None:
        """Lines of an endpoint fail in a row: find out at once whether that is their servers' fault."""
        if self._task is not None or not self._can_ask(endpoint):
            return
        now = self._loop.time()
        for backend in self._fleet.backends:
            asked_at, failures = self._last(backend)
            if not backend.breaker.is_doubtful or self._is_away(backend, endpoint):
                continue
            if now < asked_at + DOUBT_PART * self._wait * 2.0**failures:
                continue
            if (place := self._fleet.ask(backend, now)) is not None:
                self._start(place, endpoint)
                return

    def _last(self, backend: Backend | None) -> tuple[float, int]:
        return (NEVER, 0) if backend is None else self._asked.get(backend, (NEVER, 0))

    def _is_away(self, backend: Backend | None, endpoint: str) -> bool:
        """Whether the last request was not answered well, and no line of the endpoint was since."""
        asked_at, failures = self._last(backend)
        return backend is not None and failures > 0 and not backend.has_answered(endpoint, asked_at)

    def _start(self, place: Permit, endpoint: str) -> None:
        self._stop_timer()
        self._task = self._loop.create_task(self._ask(self._fleet.load(place, len(PROMPT)), endpoint))
        self._task.add_done_callback(self._done)

    async def close(self) -> None:
        """Ask no more."""
        self._stop_timer()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _wake(self) -> None:
        self._timer = None
        self._told()

    def _can_ask(self, endpoint: str) -> bool:
        return endpoint in BY_PATH and self._loop.time() >= self._useless_until.get(endpoint, NEVER)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._task = None
        if not task.cancelled():
            self._told()

    async def _ask(self, place: Permit, endpoint: str) -> None:
        backend = place.backend
        begun = self._loop.time()
        body = orjson.dumps({"model": self._model, **BY_PATH[endpoint].smallest})
        try:
            outcome = await self._upstream.post(
                backend.base + endpoint.removeprefix("/v1"), backend.headers, body, REPLY_SECONDS_MAX
            )
            end = request_codec.judge(outcome, endpoint)
        except Exception:  # noqa: BLE001  whatever it was, the lines must not wait for ever
            _log.exception("backend %s could not be asked whether it answers", backend.base)
            end = request_codec.judge(Broken.CONNECTION, endpoint)
        except BaseException:
            self._fleet.leave(place)
            raise
        self._heed(place, endpoint, end, begun)

    def _heed(
        self, place: Permit, endpoint: str, end: request_codec.Success | request_codec.Failure, begun: float
    ) -> None:
        now = self._loop.time()
        is_well = isinstance(end, request_codec.Success)
        if isinstance(end, request_codec.Failure) and end.kind is not Kind.FINAL:
            self._fleet.failed(place, Failed(end.kind, NO_LINE, is_full=end.is_full), now)
        else:
            self._fleet.answered(place, now, endpoint=endpoint if is_well else None, begun=begun)
            if is_well:
                place.backend.breaker.trust()
            else:
                self._useless_until[endpoint] = now + USELESS_SECONDS
        if end.answer is not None and end.answer.share is not None:
            end.answer.share.close()
        _, failures = self._last(place.backend)
        self._asked[place.backend] = now, 0 if is_well else min(DOUBLINGS_MAX, failures + 1)
