"""Rate limit of requests: a token bucket for each key.

Each route has a cost: about the CPU time of its answer, in units of reading one object (0.25 ms).
Each api process counts only its own requests. If too few tokens are left, the answer is a 429 that says when to
retry; the SDKs do so by themselves.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl

from fastapi import Request

from tidemill.api import error_bodies, errors
from tidemill.bounded_dict import BoundedDict
from tidemill.configuration.projects import Limits
from tidemill.schemas.ports import Clock

READ: Final = 1
"""The cost of reading one object."""
MANY: Final = 5
"""The cost of a list, a download, or a change."""
HEAVY: Final = 20
"""The cost of a request that reads all lines of a batch."""
KEYS_MAX: Final = 10_000
"""Keys with a bucket; above it the least recently used key loses its bucket, and starts again with a full one."""

COSTS: Final = {
    ("GET", "/v1/batches"): MANY,
    ("GET", "/v1/files"): MANY,
    ("GET", "/v1/admin/dead_letters"): HEAVY,
    ("GET", "/v1/admin/dead_letters/{letter}"): HEAVY,
    ("GET", "/v1/webhook_endpoints/{endpoint_id}/deliveries"): MANY,
    ("GET", "/v1/usage"): MANY,
    ("GET", "/v1/queues"): MANY,
    ("GET", "/v1/throughput"): MANY,
    ("GET", "/v1/admin/keys"): MANY,
    ("GET", "/v1/admin/audit"): MANY,
    ("GET", "/v1/files/{file_id}/content"): MANY,
    ("GET", "/v1/batches/{batch_id}/results"): MANY,
    ("GET", "/v1/batches/{batch_id}/compare"): HEAVY,
    ("GET", "/v1/batches/{batch_id}/errors"): HEAVY,
    ("POST", "/v1/batches/{batch_id}/rerun"): HEAVY,
    ("POST", "/v1/batches/estimate"): HEAVY,
    ("POST", "/v1/replays"): HEAVY,
    ("GET", "/v1/messages/batches"): MANY,
    ("GET", "/v1/messages/batches/{batch_id}/results"): MANY,
}
"""Costs of routes that differ from those of their method."""
SEARCHES: Final = {
    "/v1/batches": {"search", "model"},
    "/v1/batches/{batch_id}/results": {"custom_id", "contains", "code", "server"},
}
"""Parameters that make a list read more than it shows; such a request costs `HEAVY`."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Rates:
    """The buckets of one process."""

    def __init__(self, clock: Clock) -> None:
        """`clock` is monotonic, in seconds."""
        self._clock = clock
        self._buckets: BoundedDict[str, _Bucket] = BoundedDict(KEYS_MAX)

    def take(self, key_id: str, cost: int, limits: Limits) -> tuple[dict[str, str], float]:
        """Take the tokens of a request.

        Returns:
            Headers with the requests that are left, as OpenAI names them, and the seconds until there are enough
            tokens: 0 if there were, and they are taken.
        """
        rate, most, now = limits.requests_per_second, float(limits.requests_burst), self._clock()
        bucket = self._buckets[key_id] = self._buckets.get(key_id) or _Bucket(most, now)
        bucket.tokens = min(most, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        if (lacking := cost - bucket.tokens) <= 0:
            bucket.tokens -= cost
        headers = {
            "x-ratelimit-limit-requests": str(limits.requests_burst),
            "x-ratelimit-remaining-requests": str(int(bucket.tokens)),
            "x-ratelimit-reset-requests": f"{(most - bucket.tokens) / rate:.3f}s",
        }
        return headers, max(0.0, lacking / rate)


def cost(request: Request) -> int:
    """The cost of a request."""
    method = request.method
    path = getattr(request.scope.get("route"), "path_format", "")
    if (names := SEARCHES.get(path)) is not None:
        # The route counts a parameter without a value, too.
        given = parse_qsl(request.url.query, keep_blank_values=True)
        if any(name in names for name, _ in given):
            return HEAVY
    return COSTS.get((method, path), READ if method in {"GET", "HEAD"} else MANY)


def _anthropic(headers: dict[str, str]) -> dict[str, str]:
    """The headers as Anthropic names them, with the time of the reset (its API reference, "Rate limits")."""
    limit, remaining, seconds = headers.values()
    reset = datetime.now(UTC) + timedelta(seconds=float(seconds.removesuffix("s")))
    return {
        "anthropic-ratelimit-requests-limit": limit,
        "anthropic-ratelimit-requests-remaining": remaining,
        "anthropic-ratelimit-requests-reset": reset.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def charge(request: Request, rates: Rates, key_id: str, limits: Limits) -> None:
    """Charge a request to its key; the headers of the answer say how many requests are left.

    Raises:
        ApiError: 429, with the time to wait.
    """
    headers, seconds = rates.take(key_id, cost(request), limits)
    request.state.headers = _anthropic(headers) if error_bodies.is_anthropic_scope(request.scope) else headers
    if seconds:
        raise errors.rate_limited(limits.requests_per_second, int(seconds * 1000) + 1)
