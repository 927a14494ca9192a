"""What a server says of itself at `/metrics`, in Prometheus' text format: vLLM's names, and llama.cpp's.

A server with several engines, or several models, has a line for each: requests add up, and of caches the fullest
counts. vLLM called its cache `gpu_cache_usage_perc` first; both names say a part between 0 and 1.
"""

import math
from dataclasses import dataclass
from typing import Final

_RUNNING: Final = frozenset({b"vllm:num_requests_running", b"llamacpp:requests_processing"})
_WAITING: Final = frozenset({b"vllm:num_requests_waiting", b"llamacpp:requests_deferred"})
_CACHE: Final = frozenset({b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"})
_NAMES: Final = tuple(_RUNNING | _WAITING | _CACHE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerMetrics:
    """One reading."""

    running: float
    """Requests that the server works on, of all clients."""
    waiting: float
    """Requests that have come and are not worked on yet."""
    cache: float = 0.0
    """The used part of the cache of keys and values; 0 where nothing is said of it."""

    @property
    def requests(self) -> float:
        """Those that run and those that wait."""
        return self.running + self.waiting


def read(text: bytes) -> ServerMetrics | None:
    """The gauges of a page of metrics; None where it does not say what runs and what waits."""
    running: list[float] = []
    waiting: list[float] = []
    cache: list[float] = []
    for line in text.split(b"\n"):
        if not line.startswith(_NAMES):
            continue
        name, number = _sample(line)
        if number is None:
            continue
        for names, numbers in ((_RUNNING, running), (_WAITING, waiting), (_CACHE, cache)):
            if name in names:
                numbers.append(number)
    if not running or not waiting:
        return None
    return ServerMetrics(running=sum(running), waiting=sum(waiting), cache=max(cache, default=0.0))


def _sample(line: bytes) -> tuple[bytes, float | None]:
    """The name and the value of a line; no value where it has none that is a number from 0 on.

    A label may hold anything, a brace as well; after the labels come only a value and perhaps a time.
    """
    name, brace, rest = line.partition(b"{")
    if brace:
        name, rest = name.strip(), rest.rpartition(b"}")[2]
    else:
        name, _, rest = line.partition(b" ")
    try:
        number = float(rest.split()[0])
    except (IndexError, ValueError):
        return name, None
    return name, number if math.isfinite(number) and number >= 0 else None
