"""Health probes: requests for a few tokens, sent if no other line shows whether the server or a line is at fault.

As long as no other line is answered, the failures of a line do not show whose fault they are. A health probe
stands in for other lines: at the end of a batch, or if all other lines call another endpoint. The probe sends one
request at a time, and only while such a line waits. So a server that is down, or rejects our key, gets few of
them, and the lines wait; a healthy server shows with a few answers which lines are bad.

What an answer proves (docs/decisions/0017-fault-by-evidence.md):

| answer | proves that |
|---|---|
| 2xx | the server is healthy, like an answer to a line |
| a 4xx that ends a line at once, like 400 or 422 | the server accepts our key and has the endpoint |
| anything else | nothing |

After such a 4xx the next request has only the fields that the endpoint requires. A server that refuses that form,
too, gets no other for `REFUSED_SECONDS`.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary

import orjson

from tidemill.processors.backends.backend import NEVER, Backend, Permit
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.calls import forms, request_codec
from tidemill.processors.calls.body_rules import UNCHANGED, BodyRules
from tidemill.processors.calls.request_codec import Success
from tidemill.processors.failures import CallFailure, FailureKind, Fault
from tidemill.processors.http.client import HttpUpstream
from tidemill.processors.lines import Line
from tidemill.processors.timer import EarliestTimer
from tidemill.schemas.endpoints import ENDPOINTS, PROMPT, address

DOUBLINGS_MAX: Final = 4
"""How often the wait between two requests doubles, once for each failure."""
REPLY_SECONDS_MAX: Final = 60.0
DOUBT_PART: Final = 0.25
"""Part of the wait that remains if a breaker opened for failures that may be the fault of lines."""
REFUSED_SECONDS: Final = 600.0
"""How long a server that refused all forms of the request gets no further one."""

_log = logging.getLogger(__name__)


class HealthProbe:
    """Sends health probes to the servers of one model; needs a running event loop."""

    def __init__(
        self,
        model: str,
        pool: BackendPool,
        upstream: HttpUpstream,
        on_change: Callable[[], None],
        wait_seconds: float,
        *,
        rules: BodyRules = UNCHANGED,
    ) -> None:
        """Send nothing yet.

        Args:
            model: The name that the servers know.
            pool: The model's servers.
            upstream: The HTTP client.
            on_change: Called after each probe, and when the next one may be sent.
            wait_seconds: Between two probes.
            rules: Changes to each body.
        """
        self._model = model
        self._rules = rules
        self._pool = pool
        self._upstream = upstream
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._timer = EarliestTimer(on_change)
        self._asked: WeakKeyDictionary[Backend, tuple[float, int]] = WeakKeyDictionary()
        """When each server was probed last, and how many probes in a row failed."""
        self._wait_seconds = wait_seconds
        self._refused: WeakKeyDictionary[Backend, dict[str, int]] = WeakKeyDictionary()
        """By server and endpoint, how many forms of the request it refused."""
        self._refused_until: WeakKeyDictionary[Backend, dict[str, float]] = WeakKeyDictionary()

    def cannot_help(self, line: Line) -> bool:
        """Whether the line's server gets no probe, refused all forms of it, or failed the last one."""
        backend, endpoint = line.avoid, line.head.url
        if backend is None or self._is_down(backend, endpoint) or not self._can_ask(backend, endpoint):
            return True
        return backend.server.allowed(self._loop.time()) <= 0

    def ask(self, line: Line, *, patience_seconds: float = 0.0) -> None:
        """Probe the server that failed a line, unless it was probed lately.

        Args:
            line: It has failed repeatedly.
            patience_seconds: How long after its last failure to wait for answers to other lines first.
        """
        if line.avoid is None or self._task is not None or not self._can_ask(line.avoid, line.head.url):
            return
        now = self._loop.time()
        asked_at, failures = self._last(line.avoid)
        at = max(asked_at + self._wait_seconds * 2.0**failures, line.since + patience_seconds)
        if now < at:
            self._timer.set(at)
        elif (permit := self._pool.acquire_health_probe(line.avoid, now)) is not None:
            self._start(permit, line.head.url)

    def ask_doubtful(self, endpoint: str) -> None:
        """Probe a server whose breaker opened for failures that may be the fault of lines."""
        if self._task is not None:
            return
        now = self._loop.time()
        for backend in self._pool.backends:
            asked_at, failures = self._last(backend)
            if not backend.is_doubtful or not self._can_ask(backend, endpoint):
                continue
            if self._is_down(backend, endpoint):
                continue
            if now < asked_at + DOUBT_PART * self._wait_seconds * 2.0**failures:
                continue
            if (permit := self._pool.acquire_health_probe(backend, now)) is not None:
                self._start(permit, endpoint)
                return

    async def close(self) -> None:
        """Send no more probes."""
        self._timer.cancel()
        if self._task is not None:
            # A task that has not begun would end without giving its permit back.
            self._loop.call_soon(self._task.cancel)
            await asyncio.gather(self._task, return_exceptions=True)

    def _last(self, backend: Backend | None) -> tuple[float, int]:
        return (NEVER, 0) if backend is None else self._asked.get(backend, (NEVER, 0))

    def _is_down(self, backend: Backend | None, endpoint: str) -> bool:
        """Whether the last probe failed, and the server has answered no line of the endpoint since."""
        asked_at, failures = self._last(backend)
        return backend is not None and failures > 0 and not backend.has_answered(endpoint, asked_at)

    def _can_ask(self, backend: Backend | None, endpoint: str) -> bool:
        if backend is None or backend.is_gone or backend.server.drain or endpoint not in ENDPOINTS:
            return False
        return self._loop.time() >= self._refused_until.get(backend, {}).get(endpoint, NEVER)

    def _start(self, permit: Permit, endpoint: str) -> None:
        self._timer.cancel()
        self._task = self._loop.create_task(self._ask(self._pool.charge(permit, len(PROMPT)), endpoint))
        self._task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._task = None
        if not task.cancelled():
            self._on_change()

    async def _ask(self, permit: Permit, endpoint: str) -> None:
        backend = permit.backend
        began_at = self._loop.time()
        try:
            url, headers, body = self._request(backend, endpoint)
            outcome = await self._upstream.post(url, headers, body, REPLY_SECONDS_MAX)
            end = request_codec.judge(outcome, endpoint)
        except Exception:  # noqa: BLE001  the lines must not wait for ever
            _log.exception("server %s could not be probed", backend.server.name)
            end = request_codec.judge(FailureKind.READ, endpoint)
        except BaseException:
            self._pool.release(permit, is_sent=True)
            raise
        self._note(permit, endpoint, end, began_at)
        if end.share is not None:
            end.share.close()

    def _request(self, backend: Backend, endpoint: str) -> tuple[str, dict[str, str], bytes]:
        """Address, headers and body."""
        form = requests(endpoint)[self._refused.get(backend, {}).get(endpoint, 0)]
        body = bytes(self._rules.apply(orjson.dumps({"model": self._model, **form})))
        url, headers = address(backend.base, endpoint), backend.server.options.headers
        if ENDPOINTS[endpoint].files:
            return url, {**headers, **forms.CONTENT_TYPE}, forms.inline(ENDPOINTS[endpoint], body)
        return url, headers, body

    def _note(self, permit: Permit, endpoint: str, end: Success | CallFailure, began_at: float) -> None:
        now, backend = self._loop.time(), permit.backend
        is_well = isinstance(end, Success)
        if isinstance(end, Success):
            self._pool.answered(permit, now, endpoint=endpoint, begun=began_at)
            for breaker in backend.breakers:
                breaker.trust()
        else:
            end = request_codec.located(end, server=backend.server.name, endpoint=endpoint, at=now)
            self._pool.failed(permit, end)
            if end.fault is Fault.LINE:
                self._note_refusal(backend, endpoint, began_at)
        _, failures = self._last(backend)
        self._asked[backend] = now, 0 if is_well else min(DOUBLINGS_MAX, failures + 1)

    def _note_refusal(self, backend: Backend, endpoint: str, began_at: float) -> None:
        backend.accepted_at[endpoint] = began_at
        refused = self._refused.setdefault(backend, {})
        refused[endpoint] = refused.get(endpoint, 0) + 1
        if refused[endpoint] == len(requests(endpoint)):
            del refused[endpoint]
            self._refused_until.setdefault(backend, {})[endpoint] = self._loop.time() + REFUSED_SECONDS


def requests(endpoint: str) -> list[dict[str, object]]:
    """The request with a bound on the reply, and the one with the required fields alone."""
    entry = ENDPOINTS[endpoint]
    smallest = entry.smallest
    required = {name: smallest[name] for name in entry.form(smallest)}
    return [smallest] if required == smallest else [smallest, required]
