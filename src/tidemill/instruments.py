"""The kinds of metrics: counters and histograms of the library, and series that are read at each scrape.

A process has a line's metrics on the objects that do its work: one for each server of a model, for instance. A
scrape asks for them, so the series of a server end with the server, and no name from outside makes one.
`Buckets` costs a quarter of the library's histogram, which locks; only the event loop may use it.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import Any, Final, Literal, NamedTuple

from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """What the docs say of a metric."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    stages: tuple[str, ...]
    text: str


class Buckets:
    """A histogram of one series."""

    __slots__ = ("_counts", "_sum", "bounds")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Have observed nothing; `bounds` are the upper bounds of the buckets, ascending, without infinity."""
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count a value `count` times."""
        self._counts[bisect_left(self.bounds, value)] += count
        self._sum += value * count

    def observe_all(self, values: Sequence[float]) -> None:
        """Count values at once."""
        bounds, counts = self.bounds, self._counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self._sum += sum(values)

    @property
    def counts(self) -> tuple[int, ...]:
        """The values in each bucket, the last one beyond all bounds."""
        return tuple(self._counts)

    def scraped(self) -> tuple[list[tuple[str, float]], float]:
        """The cumulative buckets by their bound, and the sum of the values."""
        bounds = map(floatToGoString, (*self.bounds, inf))
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True)), self._sum


Source = Callable[[], Mapping[Any, "float | Buckets"]]
"""Returns the values, or the buckets, by the values of the labels: a tuple, or a text if there is one label."""

METRICS: Final[list[Metric]] = []
"""All metrics of the program."""


def counter(
    name: str, text: str, *stages: str, labels: Sequence[str] = (), values: Sequence[tuple[str, ...]] = ()
) -> Counter:
    """Define a counter, whose name ends with `_total`; it has these values of its labels from the start.

    To Prometheus, a series that first appears with 1 has not increased, so no alert fires.
    """
    METRICS.append(Metric(name, "counter", tuple(labels), stages, text))
    made = Counter(name, text, labels)
    for each in values:
        made.labels(*each)
    return made


def histogram(
    name: str, text: str, *stages: str, labels: Sequence[str] = (), bounds: Sequence[float]
) -> Histogram:
    """Define a histogram of the library, which any thread may use."""
    METRICS.append(Metric(name, "histogram", tuple(labels), stages, text))
    return Histogram(name, text, labels, buckets=bounds)


class Sampled(Collector):
    """A metric that is read at each scrape."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._source: Source | None = None
        REGISTRY.register(self)

    def sample(self, source: Source) -> None:
        """Set the source of the values.

        It replaces an earlier one, runs on the scraping thread, which is the event loop's, and must not wait.
        """
        self._source = source

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """See `Collector`."""
        if self._source is not None:
            yield _family(self.metric, self._source())


def sampled(name: str, text: str, *stages: str, labels: Sequence[str], kind: Kind = "gauge") -> Sampled:
    """Define a metric that is read at each scrape; it has no series before it has a source."""
    METRICS.append(metric := Metric(name, kind, tuple(labels), stages, text))
    return Sampled(metric)


def _family(
    metric: Metric, values: Mapping[Any, float | Buckets]
) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    made = (metric.name, metric.text)
    if metric.kind == "histogram":
        buckets = HistogramMetricFamily(*made, labels=metric.labels)
        for key, value in values.items():
            assert isinstance(value, Buckets), metric.name
            buckets.add_metric((key,) if isinstance(key, str) else key, *value.scraped())
        return buckets
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(*made, labels=metric.labels)
    for key, value in values.items():
        assert not isinstance(value, Buckets), metric.name
        family.add_metric((key,) if isinstance(key, str) else key, value)
    return family
