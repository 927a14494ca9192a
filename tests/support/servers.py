"""Servers and pools for tests, with settings and without."""

from collections.abc import Callable, Mapping
from typing import Any

from tidemill.configuration.servers import Model
from tidemill.configuration.servers import Server as Settings
from tidemill.configuration.serving import serving
from tidemill.processors.backends.backend import Backend
from tidemill.processors.backends.breaker import PAUSES, Breaker, Pauses
from tidemill.processors.backends.server import Server
from tidemill.processors.backends.servers import Servers
from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.http.client import HttpUpstream
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit

CALLS_MAX = 10_000


def server(base: str, limit: ConcurrencyLimit, *, pauses: Pauses = PAUSES, **more: Any) -> Server:
    """A server that is called by its address."""
    return Server(base, base, limit, **{"calls_max": CALLS_MAX, "breaker": Breaker(pauses), **more})


def backend(
    base: str,
    limit: ConcurrencyLimit,
    *,
    pauses: Pauses = PAUSES,
    buckets: tuple[TokenBucket, ...] = (),
    **more: Any,
) -> Backend:
    """A server that one model uses; `more` are fields of the server."""
    return Backend(server(base, limit, pauses=pauses, **more), Breaker(pauses), buckets)


def configured(
    models: Mapping[str, Model],
    named: Mapping[str, Settings] | None = None,
    *,
    clock: Callable[[], float] = lambda: 0.0,
    client: HttpUpstream | None = None,
) -> Servers:
    """The servers of a process by settings; `clock` gives Unix time and the loop's."""
    made = Servers(clock, clock, client=client)
    made.apply(serving(named or {}, models))
    return made
