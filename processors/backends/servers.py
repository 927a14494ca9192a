"""The servers of a process by name, and the pool of each model; both follow the settings while calls go on.

A server whose settings change stays the same object, so its limit and its breaker keep what they have learnt; an
open breaker lets a probe through at once. A server with another address is another server. A server that is gone
gets no new call; it is forgotten when the log has the result of its last one. A server whose addresses are
discovered (`addresses.py`) counts as one server for each address. All changes happen in one step of the event
loop, so no call sees half of them.
"""

import asyncio
import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tidemill import metrics
from tidemill.configuration.servers import Model, Serving
from tidemill.configuration.servers import Server as Settings
from tidemill.processors.backends import server_settings
from tidemill.processors.backends.addresses import Addresses, Lookup, system_lookup
from tidemill.processors.backends.call_metrics import CallMetrics
from tidemill.processors.backends.clocks import TurnClocks
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.backends.server import Server
from tidemill.processors.backends.server_settings import Target
from tidemill.processors.http.client import HttpUpstream, origin
from tidemill.schemas.ports import Clock, Monotonic
from tidemill.schemas.resources.waiting import Reason

LACK_SECONDS: Final = 3.0
"""Between two looks for the key and the files of a server that lacks one."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    """A server, and the poller of its metrics."""

    server: Server
    target: Target
    poller: "asyncio.Task[None] | None" = None


@dataclass(slots=True)
class _Discovery:
    addresses: Addresses
    task: "asyncio.Task[None]"


class Servers:
    """The servers of a process."""

    def __init__(
        self,
        clock: Clock,
        monotonic: Monotonic,
        *,
        client: HttpUpstream | None = None,
        lookup: Lookup = system_lookup,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Start without servers.

        Args:
            clock: Unix time, for schedules.
            monotonic: The event loop's time.
            client: The HTTP client; without it no metrics are polled.
            lookup: Finds the addresses of servers that are discovered.
            weights: Those of projects; the default is 1.
        """
        self.pools: dict[str, BackendPool] = {}
        """By model, in the order of the settings."""
        self._clock = clock
        self._monotonic = monotonic
        self._client = client
        self._lookup = lookup
        self._weights = weights
        self._serving: Serving | None = None
        self._entries: dict[str, _Entry] = {}
        self._discovered: dict[str, _Discovery] = {}
        """By the name in the settings."""
        self._leaving: list[Server] = []
        """Servers that are gone and have calls in flight, or results that the log has not acknowledged."""
        self._later: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Server]:
        """Iterate over all servers, first those that are gone and still used: others may have their names."""
        leaving = (server for server in self._leaving if server.is_used)
        return iter([*leaving, *(entry.server for entry in self._entries.values())])

    def apply(self, serving: Serving) -> None:
        """Follow the settings.

        A model that has none any more keeps a pool without servers, so its lines wait, while it has a dispatcher.
        """
        self._serving = serving
        self._follow()

    def show(self, models: Callable[[], Container[str]]) -> None:
        """Register the sources of the metrics; only `models`, those of the settings, get time series."""

        def pools() -> Iterator[tuple[str, BackendPool]]:
            return ((name, pool) for name, pool in self.pools.items() if name in models() or pool.in_flight)

        def calls() -> Iterator[tuple[tuple[str, str], CallMetrics]]:
            return (((name, one.name), one.metrics.folded()) for name, pool in pools() for one in pool.backends)

        metrics.SERVER_IN_FLIGHT.sample(lambda: {server.name: server.in_flight for server in self})
        metrics.SERVER_UNACKNOWLEDGED.sample(lambda: {server.name: server.unacknowledged for server in self})
        metrics.SERVER_LIMIT.sample(
            lambda: {server.name: server.proven_calls(self._monotonic()) for server in self}
        )
        metrics.SERVER_REFUSED.sample(lambda: {server.name: server.refused_part for server in self})
        metrics.MODEL_SERVERS.sample(lambda: {name: pool.well for name, pool in pools()})
        metrics.IN_FLIGHT.sample(lambda: {name: pool.in_flight for name, pool in pools()})
        metrics.UNACKNOWLEDGED.sample(lambda: {name: pool.unacknowledged for name, pool in pools()})
        metrics.QUEUE_WAIT.sample(lambda: {key: one.waits for key, one in calls()})
        metrics.LINES.sample(
            lambda: {
                (name, each): count for name, pool in pools() for each, count in pool.line_counts.lines.items()
            }
        )
        metrics.ATTEMPTS.sample(
            lambda: {
                (name, each): count for name, pool in pools() for each, count in pool.line_counts.attempts.items()
            }
        )
        metrics.CALL_DURATION.sample(lambda: {key: one.duration for key, one in calls()})
        metrics.CALLS.sample(
            lambda: {(*key, *of): count for key, one in calls() for of, count in one.ended.items()}
        )
        # After the calls, whose collection folds the calls since the last scrape.
        metrics.FIRST_BYTE.sample(lambda: {server.name: server.first_byte for server in self})

    async def close(self) -> None:
        """Stop polling."""
        if self._later is not None:
            self._later.cancel()
        tasks = [entry.poller for entry in self._entries.values() if entry.poller is not None]
        tasks += [discovery.task for discovery in self._discovered.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _follow(self) -> None:
        """Bring servers and pools in line with the settings and the addresses."""
        try:
            self._set_all()
        finally:
            self._follow_later()

    def _set_all(self) -> None:
        assert self._serving is not None, "there are settings"
        serving = self._serving
        now, models = self._monotonic(), serving.models
        called = {server for servers in serving.by_model.values() for server in servers}
        by_server: dict[str, list[str]] = {}
        for model, servers in serving.by_model.items():
            for name in servers:
                by_server.setdefault(name, []).append(model)
        self._discover({name: serving.servers[name] for name in called if serving.servers[name].discover})
        targets = {name: self._targets(name, serving.servers[name]) for name in sorted(called)}
        self._keep({name: target.base for of_name in targets.values() for name, target in of_name.items()})
        for name, of_name in targets.items():
            of_server = {model: models[model] for model in by_server[name]}
            for each, target in of_name.items():
                self._set(each, target, of_server, now)
        self._set_pools(serving, targets, now)
        self._share_clocks(serving)
        self._tell(serving)

    def _follow_later(self) -> None:
        """Look again as long as a server lacks a key or a file, which may come without a change."""
        if self._later is not None:
            self._later.cancel()
        is_lacking = any(entry.server.drain is Reason.ACCESS for entry in self._entries.values())
        self._later = asyncio.get_running_loop().call_later(LACK_SECONDS, self._follow) if is_lacking else None

    def _discover(self, wanted: Mapping[str, Settings]) -> None:
        """Follow the addresses of these servers, and of no others."""
        places = {name: (settings.url.host or "", settings.url.port or 0) for name, settings in wanted.items()}
        for name, discovery in list(self._discovered.items()):
            if places.get(name) != discovery.addresses.place:
                discovery.task.cancel()
                del self._discovered[name]
        for name in places.keys() - self._discovered.keys():
            addresses = Addresses(name, places[name], self._lookup, self._follow, self._monotonic)
            task = asyncio.get_running_loop().create_task(addresses.run())
            self._discovered[name] = _Discovery(addresses, task)

    def _targets(self, name: str, settings: Settings) -> dict[str, Target]:
        """The servers of one name: itself, or one for each of its addresses."""
        if (discovery := self._discovered.get(name)) is None:
            return {name: Target(settings)}
        return {f"{name}@{address}": Target(settings, address) for address in discovery.addresses.present}

    def _keep(self, bases: Mapping[str, str]) -> None:
        """Remove all other servers, and those with another address."""
        self._leaving = [server for server in self._leaving if server.is_used]
        for name, entry in list(self._entries.items()):
            if bases.get(name) == entry.server.base:
                continue
            del self._entries[name]
            if entry.poller is not None:
                entry.poller.cancel()
            if entry.server.is_used:
                self._leaving.append(entry.server)

    def _set(self, name: str, target: Target, models: Mapping[str, Model], now: float) -> None:
        """Add a server, or change its settings."""
        calls_max = server_settings.calls_max(target.settings, models.values())
        entry = self._entries.get(name)
        before = None if entry is None else (entry.target, entry.server.drain)
        if entry is None:
            entry = self._entries[name] = _Entry(server_settings.made(name, target, calls_max), target)
        server = entry.server
        server.resize(calls_max, server_settings.unacknowledged_max(target.settings, calls_max), server.part)
        server_settings.configure(server, target, None if before is None else before[0].settings, self._clock, now)
        entry.target = target
        if (target, server.drain) != before:
            if server.drain is Reason.ACCESS:
                _log.warning("server %s is not called: %s", name, target.settings.lack)
            self._poll(entry)
            server.breaker.retry()
            for pool in self.pools.values():
                for backend in pool.backends:
                    if backend.server is server:
                        backend.breaker.retry()

    def _poll(self, entry: _Entry) -> None:
        """Poll the metrics of a server at its current address, with its current headers."""
        if entry.poller is not None:
            entry.poller.cancel()
            entry.poller = None
        if self._client is None:
            return
        poller = server_settings.poller(entry.server, entry.target, self._client, self._monotonic)
        if poller is None:
            entry.server.limit.release()
        else:
            entry.poller = asyncio.get_running_loop().create_task(poller.run())

    def _set_pools(self, serving: Serving, targets: Mapping[str, Iterable[str]], now: float) -> None:
        removed = [name for name, pool in self.pools.items() if pool.is_joined]
        self.pools = {
            name: self.pools.get(name) or BackendPool([], name, clocks=TurnClocks(self._weights))
            for name in (*serving.models, *removed)
        }
        for name, pool in self.pools.items():
            if (model := serving.models.get(name)) is None:
                pool.configure([], calls_max=None, now=now)
                continue
            pool.paused = model.paused
            pool.bucket = server_settings.bucket(pool.bucket, model.tokens_per_minute, pool.part, now)
            named = serving.by_model[name]
            pool.unresolved = [server for server in named if not targets[server]]
            servers = [self._entries[each].server for server in named for each in targets[server]]
            pool.configure(servers, calls_max=model.max_in_flight, now=now)

    def _share_clocks(self, serving: Serving) -> None:
        """Let models that share servers, directly or through others, share the clocks of projects."""
        taken: set[TurnClocks] = set()
        for group in _groups({name: serving.by_model.get(name, ()) for name in self.pools}):
            of_group = [self.pools[name].clocks for name in group]
            clocks = next((one for one in of_group if one not in taken), None) or TurnClocks(self._weights)
            taken.add(clocks)
            for name in group:
                self.pools[name].clocks = clocks

    def _tell(self, serving: Serving) -> None:
        """Let connections, servers and models act on the changes."""
        if self._client is not None:
            targets = [entry.target for entry in self._entries.values()]
            urls = [url for target in targets for url in (target.base, target.metrics_url) if url is not None]
            trusts = server_settings.trusts(serving)
            proxies = {trust.proxy for trust in trusts.values() if trust.proxy is not None}
            self._client.follow(trusts, {*proxies, *(origin(url) for url in urls)})
        for pool in self.pools.values():
            pool.changed()
        for entry in self._entries.values():
            entry.server.queue.changed()


def _groups(servers: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The models that share servers, directly or through others; each group in the order of the models."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while (parent := parents.setdefault(name, name)) != name:
            parents[name] = name = parents.setdefault(parent, parent)
        return name

    first: dict[str, str] = {}
    for model, named in servers.items():
        for name in named:
            first.setdefault(model, name)
            parents[root(name)] = root(first[model])
    groups: dict[str, list[str]] = {}
    for model in servers:
        key = root(first[model]) if model in first else f"/{model}"
        groups.setdefault(key, []).append(model)
    return list(groups.values())
