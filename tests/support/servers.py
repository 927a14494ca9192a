"""Servers and pools for tests that need no settings."""

from typing import Any

from tidemill.processors.backends.breaker import PAUSES, Breaker, Pauses
from tidemill.processors.backends.pool import Backend
from tidemill.processors.backends.server import Server
from tidemill.processors.backends.token_bucket import TokenBucket
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
