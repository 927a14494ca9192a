"""The metrics of a server at `/metrics`, in Prometheus' text format: names of vLLM, SGLang and llama.cpp.

A server with several engines, or several models, has a line for each: requests are added up, and the fullest cache
counts. Several ranks of SGLang report the same requests, which count once. Older versions of vLLM call the use of
the cache `gpu_cache_usage_perc`, and the time between tokens `time_per_output_token`.
"""

import math
import re
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

from tidemill.schemas.bounds import NUMBER_MAX

_RUNNING: Final = frozenset(
    {b"vllm:num_requests_running", b"sglang:num_running_reqs", b"llamacpp:requests_processing"}
)
_WAITING: Final = frozenset(
    {b"vllm:num_requests_waiting", b"sglang:num_queue_reqs", b"llamacpp:requests_deferred"}
)
_CACHE: Final = frozenset({b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc", b"sglang:token_usage"})
_FIRST: Final = frozenset(
    {b"vllm:time_to_first_token_seconds_bucket", b"sglang:time_to_first_token_seconds_bucket"}
)
_BETWEEN: Final = (
    b"vllm:inter_token_latency_seconds",
    b"vllm:time_per_output_token_seconds",
    b"sglang:inter_token_latency_seconds",
)
_SUMS: Final = frozenset(name + b"_sum" for name in _BETWEEN)
_COUNTS: Final = frozenset(name + b"_count" for name in _BETWEEN)
_NAMES: Final = (*_RUNNING, *_WAITING, *_CACHE, *_SUMS, *_COUNTS, *_FIRST)
_RANK: Final = re.compile(rb'(?:tp|pp|moe_ep)_rank="[^"]*",?')
_LE: Final = re.compile(rb'(?:^|,)\s*le="([^"]{1,32})"')
BOUNDS_MAX: Final = 100
"""Buckets that a histogram may have."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A sum of observations, and how many there are."""

    total: float
    count: float

    def less(self, before: "Mean") -> "Mean | None":
        """The increase since an earlier reading; None if the server has reset the count."""
        since = Mean(self.total - before.total, self.count - before.count)
        return since if since.total >= 0 and since.count >= 0 else None


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram."""

    bounds: tuple[float, ...]
    """Upper bounds in rising order; the last one may be infinite."""
    counts: tuple[float, ...]
    """Observations up to each bound."""

    @property
    def count(self) -> float:
        """All observations."""
        return self.counts[-1]

    def around(self, value: float) -> tuple[float, float, float]:
        """The bucket of a value: observations above its lower bound, above its upper one, and where the value is.

        The last is a part of the bucket: near 0 at the lower bound, 1 at the upper one.
        """
        index = bisect_left(self.bounds, value)
        low, below = (self.bounds[index - 1], self.counts[index - 1]) if index else (0.0, 0.0)
        if index == len(self.bounds) or math.isinf(self.bounds[index]):
            return self.count - below, 0.0, 0.0
        part = (value - low) / (self.bounds[index] - low)
        return self.count - below, self.count - self.counts[index], part

    def less(self, before: "Buckets") -> "Buckets | None":
        """The increase since an earlier reading; None if the server began to count anew, or in other buckets."""
        if before.bounds != self.bounds:
            return None
        counts = tuple(count - old for count, old in zip(self.counts, before.counts, strict=True))
        return Buckets(self.bounds, counts) if min(counts) >= 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerMetrics:
    """One reading."""

    running: float
    """Requests that the server works on, of all clients."""
    waiting: float
    """Requests that have arrived and are not processed yet."""
    cache: float = 0.0
    """The used part of the KV cache; 0 if the server does not report it."""
    first_token: Buckets | None = None
    """Seconds to the first token, of all requests since the server began."""
    between_tokens: Mean | None = None
    """Seconds between two tokens of a request, since the server began."""

    @property
    def requests(self) -> float:
        """Running and waiting requests."""
        return self.running + self.waiting

    def in_calls(self, inputs: float) -> "ServerMetrics":
        """The same in calls, if the server counts each call as `inputs` requests."""
        return self if inputs == 1 else replace(self, running=self.running / inputs, waiting=self.waiting / inputs)


def read(text: bytes) -> ServerMetrics | None:
    """Parse a page of metrics; None if it does not say how many requests run and wait."""
    gauges: defaultdict[bytes, list[float]] = defaultdict(list)
    ranks: dict[tuple[bytes, bytes], float] = {}
    buckets: defaultdict[float, float] = defaultdict(float)
    for line in text.split(b"\n"):
        if not line.startswith(_NAMES):
            continue
        name, labels, number = _sample(line)
        if number is None:
            continue
        if name not in _FIRST:
            if name.startswith(b"sglang:"):
                place = name, _RANK.sub(b"", labels)
                number -= min(number, ranks.get(place, 0.0))
                ranks[place] = ranks.get(place, 0.0) + number
            gauges[name].append(number)
        elif (bound := _bound(labels)) is not None and len(buckets) <= BOUNDS_MAX:
            buckets[bound] += number
    running, waiting, cache, sums, counts = (
        [number for name in names for number in gauges.get(name, ())]
        for names in (_RUNNING, _WAITING, _CACHE, _SUMS, _COUNTS)
    )
    if not running or not waiting or max(sum(running), sum(waiting)) > NUMBER_MAX:
        return None
    return ServerMetrics(
        running=sum(running),
        waiting=sum(waiting),
        cache=max(cache, default=0.0),
        first_token=_buckets(buckets),
        between_tokens=Mean(sum(sums), sum(counts)) if sums and counts else None,
    )


def _buckets(found: dict[float, float]) -> Buckets | None:
    if not 0 < len(found) <= BOUNDS_MAX:
        return None
    bounds = tuple(sorted(found))
    return Buckets(bounds, tuple(accumulate((found[bound] for bound in bounds), max)))


def _bound(labels: bytes) -> float | None:
    """The upper bound of a bucket; None if it has none."""
    if (found := _LE.search(labels)) is None:
        return None
    try:
        bound = float(found[1])
    except ValueError:
        return None
    return bound if bound > 0 else None


def _sample(line: bytes) -> tuple[bytes, bytes, float | None]:
    """The name, the labels and the value of a line; None as the value if it is not a valid number.

    A label may contain anything, even a brace; after the labels come only a value and perhaps a timestamp.
    """
    labels = b""
    name, brace, rest = line.partition(b"{")
    if brace:
        name = name.strip()
        labels, _, rest = rest.rpartition(b"}")
    else:
        name, _, rest = line.partition(b" ")
    try:
        number = float(rest.split()[0])
    except (IndexError, ValueError):
        return name, labels, None
    return name, labels, number if 0 <= number <= NUMBER_MAX else None
