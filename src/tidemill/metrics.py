"""All metrics of Tidemill; docs/reference/metrics.md has the same table.

Names begin with `tidemill_`, units are base units, and no label contains an id, a project or text of users, so a
process has about a hundred series at any load. A stage moves a counter once per record, not once per line, and
gauges are computed at a scrape. All use the library's registry of the process.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tidemill.schemas.log.codec import LineMark

OUTCOMES: Final = ("completed", "failed")
STAGES: Final = ("ingest", "processors", "results", "webhooks")
CLOSED_FOR: Final = ("room", "full", "handshake", "invalid", "late", "head", "body", "unsent", "answer")
"""Why the API closes connections, as in the table of docs/reference/connections.md."""

LINES: Final = Counter("tidemill_lines", "Finished lines, by the file that has their result.", ("outcome",))
ATTEMPTS: Final = Counter(
    "tidemill_line_attempts",
    "Backend calls for these lines, including failed ones; one for several lines counts for each.",
    ("outcome",),
)
DEAD_LETTERS: Final = Counter(
    "tidemill_dlq_messages", "Records that a stage could not handle; they are in `tidemill.dead`.", ("stage",)
)
MISMATCHES: Final = Counter(
    "tidemill_reconcile_mismatch", "Batches whose receipt has a missing or duplicate line. Alert above 0."
)
USAGE_UNKNOWN: Final = Counter(
    "tidemill_usage_unknown_lines",
    "Lines whose server reported impossible token counts; they are not billed.",
)
CONNECTIONS_CLOSED: Final = Counter(
    "tidemill_api_connections_closed",
    "Connections that the API closed and requests that it refused, to bound the resources of clients.",
    ("reason",),
)
LOG_LINES_SUPPRESSED: Final = Counter(
    "tidemill_log_lines_suppressed", "Log lines suppressed because they repeat recent ones."
)
KEYS_REFUSED: Final = Counter(
    "tidemill_key_records_refused",
    "Records of `tidemill.keys` that the api has not signed; they have no effect. Above 0, another client "
    "writes to the topic.",
)
WEBHOOK_RESULTS: Final = ("2xx", "3xx", "4xx", "5xx", "timeout", "connection", "refused_address", "secret")
WEBHOOK_ATTEMPTS: Final = Counter(
    "tidemill_webhook_attempts",
    "Calls of webhook endpoints, by the class of the reply's status, or why there was no reply.",
    ("result",),
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
    WEBHOOK_ATTEMPTS,
)

# To Prometheus, a series that first appears with 1 has not increased, so no alert fires.
for _counter, _values in (
    (LINES, OUTCOMES),
    (ATTEMPTS, OUTCOMES),
    (DEAD_LETTERS, STAGES),
    (CONNECTIONS_CLOSED, CLOSED_FOR),
    (WEBHOOK_ATTEMPTS, WEBHOOK_RESULTS),
):
    for _value in _values:
        _counter.labels(_value)

Values = Mapping[str, float]
Sample = Callable[[], Values]
"""Returns the values by label."""


class Sampled(NamedTuple):
    """A gauge whose values are computed at each scrape."""

    name: str
    text: str
    label: str


LAG: Final = Sampled("tidemill_lag_seconds", "Age of a consumer's oldest unfinished record.", "consumer")
IN_FLIGHT: Final = Sampled("tidemill_model_inflight", "Backend calls in flight.", "model")
UNACKNOWLEDGED: Final = Sampled(
    "tidemill_model_unacknowledged", "Results of a model that the log has not acknowledged.", "model"
)
SERVER_IN_FLIGHT: Final = Sampled(
    "tidemill_server_inflight", "Calls in flight at a server, of all models.", "server"
)
SERVER_UNACKNOWLEDGED: Final = Sampled(
    "tidemill_server_unacknowledged",
    "Results of calls at a server that the log has not acknowledged. "
    "A process that is killed repeats at most these calls and those in flight.",
    "server",
)
SERVER_LIMIT: Final = Sampled(
    "tidemill_server_limit",
    "Concurrency limit of a server for this process, as currently estimated.",
    "server",
)
MODEL_SERVERS: Final = Sampled(
    "tidemill_model_servers",
    "Servers of a model that take calls. Take the maximum over processes.",
    "model",
)
WAITING_LINES: Final = Sampled(
    "tidemill_model_waiting_lines",
    "Lines of running batches without a result, those in flight included; 0 while the model is paused.",
    "model",
)
WAITING_TOKENS: Final = Sampled(
    "tidemill_model_waiting_tokens",
    "Tokens of these lines and of their answers, as estimated from the results so far.",
    "model",
)
WAITING_SECONDS: Final = Sampled(
    "tidemill_model_waiting_seconds",
    "Age of the oldest batch with such a line. Take the maximum over processes.",
    "model",
)
HELD: Final = Sampled(
    "tidemill_records_held",
    "Request records that wait for the key of their batch; `tidemill.waiting` of the batch says why.",
    "model",
)
BATCHES: Final = Sampled("tidemill_batches", "Unfinished batches in the partitions of this process.", "status")
AT_RISK: Final = Sampled(
    "tidemill_batches_at_risk", "Unfinished batches whose records the log may remove before they finish.", "status"
)
STALLED: Final = Sampled(
    "tidemill_batches_stalled",
    "Unfinished batches that wait longer than usual; `tidemill.waiting` of the batch says why.",
    "reason",
)
SLACK: Final = Sampled(
    "tidemill_deadline_slack_seconds",
    "Least time from the expected end of an active batch to its deadline. Below 0, one is late.",
    "model",
)
CONNECTIONS: Final = Sampled(
    "tidemill_api_connections",
    "Clients' connections to the API: waiting for a request, or working on one.",
    "state",
)
DISK_FREE: Final = Sampled(
    "tidemill_disk_free_bytes",
    "Free bytes on the fullest disk of the log, and on the disk of a store in a folder.",
    "disk",
)
WEBHOOK_DELIVERIES: Final = Sampled(
    "tidemill_webhook_deliveries", "Deliveries of webhooks that have not ended: waiting, or in flight.", "state"
)
WEBHOOK_OLDEST: Final = Sampled(
    "tidemill_webhook_oldest_seconds",
    "Age of the oldest delivery that has not ended. Take the maximum over processes.",
    "state",
)
WEBHOOK_ENDPOINTS: Final = Sampled(
    "tidemill_webhook_endpoints", "Webhook endpoints that fail, and those disabled for that.", "state"
)
SAMPLED: Final = (
    LAG, IN_FLIGHT, UNACKNOWLEDGED, SERVER_IN_FLIGHT, SERVER_UNACKNOWLEDGED, SERVER_LIMIT, MODEL_SERVERS,
    WAITING_LINES, WAITING_TOKENS, WAITING_SECONDS, HELD, BATCHES, AT_RISK, STALLED, SLACK, CONNECTIONS, DISK_FREE,
    WEBHOOK_DELIVERIES, WEBHOOK_OLDEST, WEBHOOK_ENDPOINTS,
)  # fmt: skip


class _Collector(Collector):
    """Computes the gauges at each scrape."""

    def __init__(self) -> None:
        self.sources: dict[Sampled, Sample] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for metric, source in list(self.sources.items()):
            family = GaugeMetricFamily(metric.name, metric.text, labels=[metric.label])
            for label, value in source().items():
                family.add_metric([label], value)
            yield family


_collector: Final = _Collector()
REGISTRY.register(_collector)


def sample(metric: Sampled, source: Sample) -> None:
    """Set the source of a gauge; it replaces an earlier one, runs on the scraping thread, and must not wait."""
    _collector.sources[metric] = source


def count_lines(marks: Sequence[LineMark]) -> None:
    """Count the lines of a record of outcomes, and their backend calls."""
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
