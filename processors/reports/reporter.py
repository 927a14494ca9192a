"""Reports to the log what this process measures of its servers and models.

While calls are in flight or lines wait, there is at most one report a second, and none if nothing has changed.
Otherwise there is one every `HEARTBEAT_SECONDS`, which tells an idle process from one that is gone.
"""

import asyncio
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final, TypeVar

from tidemill.processors.backends.backend import Backend
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.backends.server import Server
from tidemill.processors.backends.servers import Servers
from tidemill.processors.dispatcher import Dispatcher
from tidemill.processors.reports.server_log import ServerLog
from tidemill.processors.reports.window import Reading, Window, read
from tidemill.processors.scheduling import stalls
from tidemill.schemas.bounds import NAME_CHARS_MAX
from tidemill.schemas.log import codec
from tidemill.schemas.ports import Clock, Monotonic
from tidemill.schemas.resources.load import (
    HEARTBEAT_SECONDS,
    SERVERS_MAX,
    Cause,
    ModelLoad,
    ProcessReport,
    ServerLoad,
)
from tidemill.schemas.resources.waiting import USUAL, Reason

REPORT_SECONDS: Final = 1.0
"""Between two reports of a process."""
GOODBYE_SECONDS_MAX: Final = 1.0
"""How long the last report of a process may take."""
Send = Callable[[str, bytes | None], Awaitable[object]]
"""Appends a report under the name of the process; None says that the process ends. Raises `OSError`."""
L = TypeVar("L", ServerLoad, ModelLoad)

_log = logging.getLogger(__name__)


def process_name() -> str:
    """The name of this process in its reports."""
    return f"{socket.gethostname()}:{os.getpid()}"[:NAME_CHARS_MAX]


class Reporter:
    """Sends the reports of a process."""

    def __init__(
        self,
        servers: Servers,
        at_work: Callable[[], Iterable[tuple[str, Dispatcher]]],
        send: Send,
        *,
        clock: Clock,
        monotonic: Monotonic,
    ) -> None:
        """Send nothing before `run`; `at_work` are the dispatchers of the models that are awake, by model."""
        self._servers = servers
        self._at_work = at_work
        self._send = send
        self._name = process_name()
        self._clock, self._monotonic = clock, monotonic
        self._windows: dict[tuple[str, str], Window] = {}
        self._causes: dict[tuple[str, Reason], int] = {}
        """Since when each server has had a cause, Unix seconds."""
        self._still: dict[tuple[str, Reason], int] = {}
        """The same for the report under construction."""
        self._server_log = ServerLog()
        self._last: bytes | None = None
        self._sent_at = float("-inf")
        self._is_moving = False
        """Whether the last look found something new."""

    async def run(self) -> None:
        """Report until cancelled, then report that the process ends."""
        try:
            while True:
                await asyncio.sleep(REPORT_SECONDS)
                try:
                    await self.step()
                except OSError as error:
                    _log.info("the load of the servers is not reported: %s", error)
                except Exception:  # noqa: BLE001  the next report may go out
                    _log.exception("the load of the servers is not reported")
        finally:
            with suppress(OSError):
                async with asyncio.timeout(GOODBYE_SECONDS_MAX):
                    await self._send(self._name, None)

    async def step(self) -> None:
        """Send a report, if one is due."""
        now = self._monotonic()
        is_due = now >= self._sent_at + HEARTBEAT_SECONDS
        if not (is_due or self._is_moving or self._is_busy()):
            return
        report = self.report(now)
        self._server_log.look(report.servers, now)
        value = codec.encode(report)
        self._is_moving = value != self._last
        if is_due or self._is_moving:
            self._last, self._sent_at = value, now
            await self._send(self._name, value)

    def report(self, now: float) -> ProcessReport:
        """The report at `now`, by the event loop's clock."""
        backends: defaultdict[Server, list[Backend]] = defaultdict(list)
        for pool in self._servers.pools.values():
            for backend in pool.backends:
                backends[backend.server].append(backend)
        dispatchers = dict(self._at_work())
        own = self._own_causes(dispatchers, now)
        causes = self._found_causes(backends, own, now)
        waiting: defaultdict[Server, int] = defaultdict(int)
        for name, dispatcher in dispatchers.items():
            for backend in self._servers.pools[name].backends if name in self._servers.pools else ():
                waiting[backend.server] += _waiting(dispatcher)
        servers = [
            self._server(server, backends[server], waiting[server], causes.get(server.name), now)
            for server in self._servers
        ]
        models = [
            self._model(
                name, pool, _waiting(dispatchers[name]) if name in dispatchers else 0, own.get(name, {}), now
            )
            for name, pool in self._servers.pools.items()
        ]
        self._forget({("server", one.name) for one in servers} | {("model", one.name) for one in models})
        kept_servers, kept_models = _busiest(servers), _busiest(models)
        omitted = len(servers) + len(models) - len(kept_servers) - len(kept_models)
        return ProcessReport(process=self._name, servers=kept_servers, models=kept_models, omitted=omitted)

    def _is_busy(self) -> bool:
        return any(server.is_used for server in self._servers) or any(one.pending for _, one in self._at_work())

    def _server(
        self, server: Server, backends: list[Backend], lines: int, cause: Cause | None, now: float
    ) -> ServerLoad:
        reading = read([one.metrics for one in backends], now)._replace(first_bytes=server.first_byte.counts)
        # A server without a model is gone, and another one may have its name: forget its counters.
        is_gone = not backends
        minute, line_rate, token_rate = self._windowed("gone" if is_gone else "server", server.name, reading)
        said = server.fresh_metrics(now)
        return ServerLoad(
            name=server.name[:NAME_CHARS_MAX],
            limit=0 if is_gone else max(0, server.allowed(now)),
            in_flight=server.in_flight,
            unacknowledged=server.unacknowledged,
            refused=minute.refused,
            lines_per_second=round(line_rate, 1),
            tokens_per_second=round(token_rate),
            durations=minute.durations,
            first_bytes=minute.first_bytes,
            queued=None if said is None else round(said.waiting),
            running=None if said is None else round(said.running),
            lines_waiting=lines,
            breaker=server.breaker.state(now),
            cause=cause or self._full(server, lines, now),
        )

    def _model(self, name: str, pool: BackendPool, lines: int, own: dict[str, Cause], now: float) -> ModelLoad:
        reading = read([one.metrics for one in pool.backends], now)
        _, line_rate, _ = self._windowed("model", name, reading)
        causes = [own.get(one.name) or self._full(one.server, lines, now) for one in pool.backends]
        found = [cause for cause in causes if cause is not None]
        return ModelLoad(
            name=name,
            in_flight=pool.in_flight,
            lines_waiting=lines,
            lines_per_second=round(line_rate, 1),
            cause=None
            if None in causes
            else min(found, key=lambda one: (one.reason in USUAL, one.since), default=None),
        )

    def _windowed(self, kind: str, name: str, reading: Reading) -> tuple[Reading, float, float]:
        if (window := self._windows.get((kind, name))) is None:
            window = self._windows[kind, name] = Window(reading)
        return window.add(reading)

    def _own_causes(self, dispatchers: dict[str, Dispatcher], now: float) -> dict[str, dict[str, Cause]]:
        """Why servers take no call of a model now, for each model; those with the most waiting lines come last."""
        latest = self._clock() - stalls.STALL_SECONDS
        found: dict[str, dict[str, Cause]] = {}
        for model, dispatcher in sorted(dispatchers.items(), key=lambda item: _waiting(item[1])):
            causes = {name: self._since(name, one) for name, one in dispatcher.stalls.of_servers(now).items()}
            # While calls go on, the log is behind for a moment now and then.
            found[model] = {
                name: one
                for name, one in causes.items()
                if one.reason is not Reason.DELIVERY or one.since <= latest
            }
        return found

    def _found_causes(
        self, backends: dict[Server, list[Backend]], own: dict[str, dict[str, Cause]], now: float
    ) -> dict[str, Cause]:
        """Why each server takes no call now, by the model with the most waiting lines or by its own state."""
        found = {
            server.name: self._since(server.name, cause)
            for server, each in backends.items()
            if (cause := stalls.cause(each[0], now)) is not None
        }
        for causes in own.values():
            found |= causes
        for server, each in backends.items():
            silent = [causes for causes in own.values() if _is_silent(causes.get(server.name))]
            if len(silent) < sum(backend.in_flight > 0 for backend in each) and _is_silent(found.get(server.name)):
                # It answers another model.
                del found[server.name]
        return found

    def _full(self, server: Server, lines: int, now: float) -> Cause | None:
        """The cause if lines wait for a server at its limit; None if none wait, or it has room."""
        if not lines or server.in_flight < server.allowed(now):
            return None
        words = "As many calls are in flight as its limit allows."
        return self._since(server.name, Cause(reason=Reason.QUEUED, message=words, since=0))

    def _since(self, name: str, cause: Cause) -> Cause:
        """The cause, since the time when this process first saw it."""
        key = (name, cause.reason)
        since = self._still[key] = self._causes.get(key, int(self._clock()))
        return cause.model_copy(update={"since": since})

    def _forget(self, known: set[tuple[str, str]]) -> None:
        """Forget the windows of servers and models that are gone, and causes that are over."""
        for key in self._windows.keys() - known:
            del self._windows[key]
        self._causes, self._still = self._still, {}


def _is_silent(cause: Cause | None) -> bool:
    return cause is not None and cause.reason is Reason.SERVER_SILENT


def _waiting(dispatcher: Dispatcher) -> int:
    """Lines that wait for a call."""
    return max(0, dispatcher.pending - dispatcher.busy)


def _busiest(found: list[L]) -> tuple[L, ...]:
    """The entries with the most calls and lines, in the order of their names."""
    found.sort(key=lambda one: -one.in_flight - one.lines_waiting)
    return tuple(sorted(found[:SERVERS_MAX], key=lambda one: one.name))
