"""The metrics page of the server of `engine.py`, with vLLM's names, labels and buckets.

They are those of `vllm/v1/metrics/loggers.py`.
"""

from bisect import bisect_left
from itertools import accumulate
from typing import Final

TO_FIRST_TOKEN: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
BETWEEN_TOKENS: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip


class Histogram:
    """Observations by bucket; a value on a bound is in the bucket below, as Prometheus has it."""

    def __init__(self, name: str, words: str, bounds: tuple[float, ...]) -> None:
        self._name = name
        self._words = words
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def lines(self, labels: str, created: float) -> list[str]:
        """Its part of the page."""
        name = self._name
        counts = list(accumulate(self._counts))
        bounds = [*map(str, self._bounds), "+Inf"]
        return [
            f"# HELP {name} {self._words}",
            f"# TYPE {name} histogram",
            *(f'{name}_bucket{{le="{bound}",{labels}}} {n:.1f}' for bound, n in zip(bounds, counts, strict=True)),
            f"{name}_count{{{labels}}} {counts[-1]:.1f}",
            f"{name}_sum{{{labels}}} {self._sum}",
            f"# HELP {name}_created {self._words}",
            f"# TYPE {name}_created gauge",
            f"{name}_created{{{labels}}} {created}",
        ]


class EngineMetrics:
    """The server's counters."""

    def __init__(self, model: str, started_at: float) -> None:
        self._labels = f'engine="0",model_name="{model}"'
        self._started_at = started_at
        self.running = self.waiting = 0
        self.cache = 0.0
        self.preemptions = 0
        self.generated = 0
        self.to_first_token = Histogram(
            "vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", TO_FIRST_TOKEN
        )
        self.between_tokens = Histogram(
            "vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", BETWEEN_TOKENS
        )

    def set(self, running: int, waiting: int, cache: float) -> None:
        """Set the gauges: as they are after a step, when vLLM sets them."""
        self.running, self.waiting, self.cache = running, waiting, cache

    @property
    def page(self) -> bytes:
        """The page in Prometheus' text format."""
        numbers = (
            ("vllm:num_requests_running", "gauge", "Number of requests in model execution batches.", self.running),
            ("vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.", self.waiting),
            ("vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", self.cache),
            ("vllm:num_preemptions_total", "counter", "Cumulative number of preemptions.", self.preemptions),
            ("vllm:generation_tokens_total", "counter", "Number of generation tokens processed.", self.generated),
        )
        lines = []
        for name, kind, words, number in numbers:
            lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}", f"{name}{{{self._labels}}} {number}"]
        for histogram in (self.to_first_token, self.between_tokens):
            lines += histogram.lines(self._labels, self._started_at)
        return ("\n".join(lines) + "\n").encode()
