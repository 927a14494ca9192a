"""Every metric of Tidemill, defined once; docs/reference/metrics.md has the same table.

Names begin with `tidemill_`, units are base units, and no label ever holds an id, a project or a user's text: a
process has some hundred series, whatever runs on it. A counter is moved once a record, not once a line; what can
be asked for is asked for when somebody reads. The library's own registry of the process is used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tidemill.schemas.log.codec import LineMark

OUTCOMES: Final = ("completed", "failed")
STAGES: Final = ("ingest", "processors", "results")
CLOSED_FOR: Final = ("room", "full", "handshake", "invalid", "late", "head", "body", "unsent", "answer")
"""Why the API closes connections, as the table of docs/reference/connections.md has it."""

LINES: Final = Counter("tidemill_lines", "Lines whose end is settled, by the file they go into.", ("outcome",))
ATTEMPTS: Final = Counter(
    "tidemill_line_attempts", "Calls that were made for these lines, those that failed included.", ("outcome",)
)
DEAD_LETTERS: Final = Counter(
    "tidemill_dlq_messages", "Records that a stage could not read; they are in `tidemill.dead`.", ("stage",)
)
MISMATCHES: Final = Counter(
    "tidemill_reconcile_mismatch", "Batches whose receipt has a line missing or double. More than 0 is an alarm."
)
USAGE_UNKNOWN: Final = Counter(
    "tidemill_usage_unknown_lines", "Lines whose server named counts of tokens that cannot be; nothing is billed."
)
CONNECTIONS_CLOSED: Final = Counter(
    "tidemill_api_connections_closed",
    "Clients' connections that the API closed, or requests that it would not answer, to bound what they take.",
    ("reason",),
)
LOG_LINES_SUPPRESSED: Final = Counter(
    "tidemill_log_lines_suppressed", "Lines that the log does not have, since it had the same ones of late."
)
KEYS_REFUSED: Final = Counter(
    "tidemill_key_records_refused",
    "Records of `tidemill.keys` that the api has not signed, and that change nothing. More than 0: somebody else "
    "writes there.",
)
COUNTERS: Final = (
    LINES,
    ATTEMPTS,
    DEAD_LETTERS,
    MISMATCHES,
    USAGE_UNKNOWN,
    CONNECTIONS_CLOSED,
    LOG_LINES_SUPPRESSED,
    KEYS_REFUSED,
)

# What first appears with 1 has not increased, as Prometheus sees it, and raises no alarm.
for _counter, _values in (
    (LINES, OUTCOMES),
    (ATTEMPTS, OUTCOMES),
    (DEAD_LETTERS, STAGES),
    (CONNECTIONS_CLOSED, CLOSED_FOR),
):
    for _value in _values:
        _counter.labels(_value)

Values = Mapping[str, float]
Sample = Callable[[], Values]
"""Gives the values by label."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A metric whose values are asked for when somebody reads."""

    name: str
    text: str
    label: str


LAG: Final = Sampled(
    name="tidemill_lag_seconds",
    label="consumer",
    text="Age of the oldest record that a consumer has not done with.",
)
IN_FLIGHT: Final = Sampled(
    name="tidemill_backend_inflight", label="model", text="Calls in flight, and results on their way to the log."
)
LIMIT: Final = Sampled(
    name="tidemill_backend_limit", label="model", text="How many its servers take, as far as is known."
)
HELD: Final = Sampled(
    name="tidemill_records_held",
    label="model",
    text="Records of requests that wait for the key of their batch; `tidemill.waiting` of the batch says why.",
)
BATCHES: Final = Sampled(
    name="tidemill_batches", label="status", text="Batches that are not over, in the partitions of this process."
)
AT_RISK: Final = Sampled(
    name="tidemill_batches_at_risk",
    label="status",
    text="Those of them that the log may drop records of before they are over.",
)
STALLED: Final = Sampled(
    name="tidemill_batches_stalled",
    label="reason",
    text="Those of them that wait longer than usual; `tidemill.waiting` of the batch says what for.",
)
SLACK: Final = Sampled(
    name="tidemill_deadline_slack_seconds",
    label="model",
    text="From the expected end of a batch to its deadline, the least of those at work. Below 0 one is late.",
)
CONNECTIONS: Final = Sampled(
    name="tidemill_api_connections",
    label="state",
    text="Clients' connections to the API: those that wait for a request, and those at work.",
)
DISK_FREE: Final = Sampled(
    name="tidemill_disk_free_bytes",
    label="disk",
    text="Free on the fullest disk of the log, and on that of the store where it is a folder.",
)
SAMPLED: Final = (LAG, IN_FLIGHT, LIMIT, HELD, BATCHES, AT_RISK, STALLED, SLACK, CONNECTIONS, DISK_FREE)


class _Collector(Collector):
    """Asks when it is read; what a metric is asked from is replaced by what comes later."""

    def __init__(self) -> None:
        self.sources: dict[Sampled, Sample] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for metric, ask in list(self.sources.items()):
            family = GaugeMetricFamily(metric.name, metric.text, labels=[metric.label])
            for label, value in ask().items():
                family.add_metric([label], value)
            yield family


_collector: Final = _Collector()
REGISTRY.register(_collector)


def sample(metric: Sampled, source: Sample) -> None:
    """Have a metric asked for at `source`, which is called on the thread that reads and waits for nothing."""
    _collector.sources[metric] = source


def count_lines(marks: Sequence[LineMark]) -> None:
    """Count the lines of a record of outcomes, and the calls made for them."""
    if unknown := sum(mark.usage is None for mark in marks):
        USAGE_UNKNOWN.inc(unknown)
    failed = [mark.attempts for mark in marks if mark.failed]
    if len(failed) < len(marks):
        LINES.labels("completed").inc(len(marks) - len(failed))
        ATTEMPTS.labels("completed").inc(sum(mark.attempts for mark in marks) - sum(failed))
    if failed:
        LINES.labels("failed").inc(len(failed))
        ATTEMPTS.labels("failed").inc(sum(failed))


def text() -> tuple[bytes, str]:
    """All metrics in Prometheus' text format, and its content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
