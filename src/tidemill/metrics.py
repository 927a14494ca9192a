"""All metrics of Tidemill; docs/reference/metrics.md is made from this module.

Names begin with `tidemill_`, units are base units, and no label contains an id, a project or text of users:
models, servers and endpoints are those of the settings. A stage moves a counter once per record where it can, and
gauges are computed at a scrape (`instruments.py`). All use the library's registry of the process.
"""

from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, disable_created_metrics, generate_latest

from tidemill.instruments import counter, histogram, sampled

# They would be the times of the import, which a fork of a stage does not repeat.
disable_created_metrics()  # type: ignore[no-untyped-call]

API: Final = "api"
INGEST: Final = "ingest"
PROCESSORS: Final = "processors"
RESULTS: Final = "results"
WEBHOOKS: Final = "webhooks"
STAGES: Final = (INGEST, PROCESSORS, RESULTS, WEBHOOKS)
ALL: Final = (API, *STAGES)
CLOSED_FOR: Final = ("room", "full", "handshake", "invalid", "late", "head", "body", "unsent", "answer")
"""Why the API closes connections, as in the table of docs/reference/connections.md."""
WEBHOOK_RESULTS: Final = (
    "2xx", "3xx", "4xx", "5xx", "timeout", "connection", "refused_address", "secret", "internal",
)  # fmt: skip
STORE_OPERATIONS: Final = ("read", "write", "create", "join", "size", "link", "free", "delete", "keys")
OTHER: Final = "other"
"""The label of whatever has no name of its own."""

SHORT_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Of requests and of calls of Kafka and the store, which end within seconds."""
CALL_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Of calls of model servers, up to `timeout_seconds`."""
WAIT_SECONDS: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3_600, 10_800, 21_600, 43_200, 86_400)
"""Of lines and batches, up to the longest completion window."""


def _each(*values: str) -> tuple[tuple[str], ...]:
    return tuple((value,) for value in values)


# A definition is a row of a table, so the formatter leaves it alone.
# fmt: off

# Lines and the calls for them.

LINES: Final = sampled(
    "tidemill_lines_total",
    "Finished lines that the log has, by the file that has their result: `completed` or `failed`.",
    PROCESSORS, labels=("model", "outcome"), kind="counter",
)
ATTEMPTS: Final = sampled(
    "tidemill_line_attempts_total",
    "Backend calls for these lines, including failed ones; one for several lines counts for each.",
    PROCESSORS, labels=("model", "outcome"), kind="counter",
)
USAGE_UNKNOWN: Final = counter(
    "tidemill_usage_unknown_lines_total",
    "Lines whose server reported impossible token counts: delivered, and billed as nothing.", PROCESSORS,
)
CALLS: Final = sampled(
    "tidemill_calls_total",
    "Ended backend calls, by the class of the reply's status, or of the error in a 2xx (`4xx` if it names no "
    "status); `unusable` is a 2xx that is no answer. Without a reply: `connect`, `lost`, `timeout`, `other`. "
    "Several lines in one call count once.",
    PROCESSORS, labels=("model", "server", "endpoint", "status"), kind="counter",
)
CALL_DURATION: Final = sampled(
    "tidemill_call_duration_seconds", "Time from the begin of a backend call to its end, whatever it is.",
    PROCESSORS, labels=("model", "server"), kind="histogram",
)
FIRST_BYTE: Final = sampled(
    "tidemill_call_first_byte_seconds", "Time from a sent backend call to the head of the reply.",
    PROCESSORS, labels=("server",), kind="histogram",
)
QUEUE_WAIT: Final = sampled(
    "tidemill_line_queue_seconds", "Time from the publication of a line to the begin of its first call.",
    PROCESSORS, labels=("model", "server"), kind="histogram",
)
LINE_DURATION: Final = sampled(
    "tidemill_line_duration_seconds",
    "Time from the creation of a line's batch until results has its result. Repeated results do not count.",
    RESULTS, labels=("model",), kind="histogram",
)

# Models and servers.

IN_FLIGHT: Final = sampled(
    "tidemill_model_calls_in_flight", "Backend calls in flight.", PROCESSORS, labels=("model",)
)
UNACKNOWLEDGED: Final = sampled(
    "tidemill_model_unacknowledged_results", "Results of a model that the log has not acknowledged.",
    PROCESSORS, labels=("model",),
)
MODEL_SERVERS: Final = sampled(
    "tidemill_model_servers",
    "Servers of a model that take calls: not drained, and no breaker open. Take the maximum over processes.",
    PROCESSORS, labels=("model",),
)
WAITING_LINES: Final = sampled(
    "tidemill_model_waiting_lines",
    "Lines of running batches without a result, those in flight included; 0 while the model is paused.",
    RESULTS, labels=("model",),
)
WAITING_TOKENS: Final = sampled(
    "tidemill_model_waiting_tokens",
    "Tokens of these lines and of their answers, estimated from the results so far, 512 a line before the first.",
    RESULTS, labels=("model",),
)
WAITING_SECONDS: Final = sampled(
    "tidemill_model_waiting_seconds",
    "Age of the oldest batch with such a line. Take the maximum over processes.", RESULTS, labels=("model",),
)
HELD: Final = sampled(
    "tidemill_records_held",
    "Request records that wait for the key of their batch; `tidemill.waiting` of the batch says why.",
    PROCESSORS, labels=("model",),
)
SERVER_IN_FLIGHT: Final = sampled(
    "tidemill_server_calls_in_flight", "Calls in flight at a server, of all models.",
    PROCESSORS, labels=("server",),
)
SERVER_UNACKNOWLEDGED: Final = sampled(
    "tidemill_server_unacknowledged_results",
    "Results of calls at a server that the log has not acknowledged. "
    "A process that is killed repeats at most these calls and those in flight.",
    PROCESSORS, labels=("server",),
)
SERVER_LIMIT: Final = sampled(
    "tidemill_server_calls_limit",
    "Concurrency limit of a server for this process, as currently estimated.", PROCESSORS, labels=("server",),
)
SERVER_REFUSED: Final = sampled(
    "tidemill_server_refused_ratio",
    "Moving average of the calls that a server refused because it was full, as a share of 1. "
    "Take the maximum over processes.",
    PROCESSORS, labels=("server",),
)

# Batches and results.

BATCHES: Final = sampled(
    "tidemill_batches", "Unfinished batches in the partitions of this process.", RESULTS, labels=("status",)
)
AT_RISK: Final = sampled(
    "tidemill_batches_at_risk", "Unfinished batches whose records the log may remove before they finish.",
    RESULTS, labels=("status",),
)
STALLED: Final = sampled(
    "tidemill_batches_stalled",
    "Unfinished batches that wait longer than usual, by reason; one with two reasons counts under both.",
    RESULTS, labels=("reason",),
)
SLACK: Final = sampled(
    "tidemill_deadline_slack_seconds",
    "Least time from the expected end of an active batch to its deadline. Below 0, one is late. "
    "Take the minimum over processes.",
    RESULTS, labels=("model",),
)
BATCH_DURATION: Final = histogram(
    "tidemill_batch_duration_seconds",
    "Time from the creation of a batch to its files, by its last status.",
    RESULTS, labels=("status",), bounds=WAIT_SECONDS,
)
DEADLINES: Final = counter(
    "tidemill_batch_deadlines_total",
    "Ended batches: `met` if all lines were done within the completion window, `missed` if it ended before. "
    "Cancelled batches and refused inputs do not count.",
    RESULTS, labels=("result",), values=_each("met", "missed"),
)
FINALIZE: Final = histogram(
    "tidemill_finalize_duration_seconds", "Time that the files of a closed batch took, with all attempts.",
    RESULTS, bounds=CALL_SECONDS,
)
FOLDED_LINES: Final = sampled(
    "tidemill_results_lines_total",
    "Result lines read from the log: `new`, or `repeated` if the batch had one already.",
    RESULTS, labels=("kind",), kind="counter",
)
FOLDED_BYTES: Final = sampled(
    "tidemill_results_bytes_total", "Bytes of these lines, those in the store included.",
    RESULTS, labels=(), kind="counter",
)
MISMATCHES: Final = counter(
    "tidemill_receipt_mismatches_total",
    "Batches whose receipt has a missing or duplicate line. This must never happen.", RESULTS,
)

# The API.

REQUESTS: Final = counter(
    "tidemill_api_requests_total",
    "Answered requests, by the template of the route and the class of the status; `499` if the client went first.",
    API, labels=("method", "route", "status"),
)
REQUEST_DURATION: Final = histogram(
    "tidemill_api_request_duration_seconds", "Time from a request to the head of its answer.",
    API, labels=("method", "route"), bounds=SHORT_SECONDS,
)
REQUESTS_IN_FLIGHT: Final = sampled(
    "tidemill_api_requests_in_flight", "Requests whose answer has not ended, event streams included.",
    API, labels=(),
)
CONNECTIONS: Final = sampled(
    "tidemill_api_connections",
    "Clients' connections to the API: `waiting` for a request, or `working` on one.", API, labels=("state",),
)
CONNECTIONS_CLOSED: Final = counter(
    "tidemill_api_connections_closed_total",
    "Connections that the API closed and requests that it refused, to bound the resources of clients.",
    API, labels=("reason",), values=_each(*CLOSED_FOR),
)
UPLOAD_BYTES: Final = counter(
    "tidemill_upload_bytes_total", "Bytes of uploaded files and parts that the store has.", API
)
UPLOADS: Final = counter(
    "tidemill_uploads_total",
    "Files and parts of files whose upload began: `stored`, `refused`, or `broken` if client or store failed.",
    API, labels=("kind", "result"),
    values=[(kind, result) for kind in ("file", "part") for result in ("stored", "refused", "broken")],
)

# Webhooks.

WEBHOOK_ATTEMPTS: Final = counter(
    "tidemill_webhook_attempts_total",
    "Calls of webhook endpoints, by the class of the reply's status, or why there was no reply.",
    WEBHOOKS, labels=("result",), values=_each(*WEBHOOK_RESULTS),
)
WEBHOOK_DURATION: Final = histogram(
    "tidemill_webhook_attempt_duration_seconds", "Time that a call of a webhook endpoint took.",
    WEBHOOKS, bounds=SHORT_SECONDS,
)
WEBHOOK_DELIVERIES: Final = sampled(
    "tidemill_webhook_deliveries", "Deliveries of webhooks that have not ended: `waiting`, or `in_flight`.",
    WEBHOOKS, labels=("state",),
)
WEBHOOK_OLDEST: Final = sampled(
    "tidemill_webhook_oldest_delivery_age_seconds",
    "Age of the oldest delivery that has not ended. Take the maximum over processes.", WEBHOOKS, labels=("state",),
)
WEBHOOK_ENDPOINTS: Final = sampled(
    "tidemill_webhook_endpoints", "Webhook endpoints that are `failing`, and those `disabled` for that.",
    WEBHOOKS, labels=("state",),
)

# Kafka.

LAG: Final = sampled(
    "tidemill_kafka_consumer_lag_seconds",
    "Age of a consumer's oldest unfinished record, without batches whose input is copied from a bucket. "
    "Take the maximum over processes.",
    *STAGES, labels=("consumer",),
)
LAG_RECORDS: Final = sampled(
    "tidemill_kafka_consumer_lag_records",
    "Records of a topic that a consumer has not committed, as of its last fetch.",
    *STAGES, labels=("consumer", "topic"),
)
VIEW_AGE: Final = sampled(
    "tidemill_view_age_seconds",
    "Time since the api had all records of a topic: some seconds, unless it lags or cannot read it.",
    API, labels=("topic",),
)
STORE_FOREIGN: Final = sampled(
    "tidemill_store_foreign",
    "1 while the api takes nothing to store: the store belongs to another log, or is not mounted; else 0.",
    API, labels=(),
)
FETCHED_RECORDS: Final = sampled(
    "tidemill_kafka_fetched_records_total", "Records that a consumer has fetched.",
    *STAGES, labels=("consumer",), kind="counter",
)
FETCHED_BYTES: Final = sampled(
    "tidemill_kafka_fetched_bytes_total", "Bytes of their keys and values.",
    *STAGES, labels=("consumer",), kind="counter",
)
REBALANCES: Final = sampled(
    "tidemill_kafka_rebalances_total", "Assignments of partitions that a consumer got from its group.",
    *STAGES, labels=("consumer",), kind="counter",
)
PRODUCE_DURATION: Final = sampled(
    "tidemill_kafka_produce_duration_seconds",
    "Time from a record in the producer's queue to its acknowledgement by all replicas.",
    *ALL, labels=(), kind="histogram",
)
PRODUCE_FAILURES: Final = counter(
    "tidemill_kafka_produce_failures_total",
    "Records without an acknowledgement in time, or without a broker that answers: the process sends them again "
    "or reports it.", *ALL,
)
PRODUCERS: Final = counter(
    "tidemill_kafka_producers_started_total",
    "Connections of producers; one more than there are producers for each that was replaced after a fault.", *ALL,
)
DEAD_LETTERS: Final = counter(
    "tidemill_dead_letters_total", "Records that a stage could not handle; they are in `tidemill.dead`.",
    *STAGES,
)
COPIES_DROPPED: Final = counter(
    "tidemill_intake_copies_dropped_total",
    "Records of direct producers that ingest dropped, since their `tidemill-seq` was not above those before.",
    INGEST,
)
KEYS_REFUSED: Final = counter(
    "tidemill_key_records_refused_total",
    "Records of `tidemill.keys` that the api has not signed; they have no effect. Above 0, another client "
    "writes to the topic.",
    API, INGEST,
)

# The store and the process.

STORE_DURATION: Final = histogram(
    "tidemill_store_request_duration_seconds",
    "Time of an operation of the store; of a read, until its first bytes.",
    *ALL, labels=("operation",), bounds=SHORT_SECONDS,
)
STORE_REQUESTS: Final = counter(
    "tidemill_store_requests_total", "Operations of the store: `ok`, `missing` without the object, or `error`.",
    *ALL, labels=("operation", "result"),
    values=[(name, result) for name in STORE_OPERATIONS for result in ("ok", "missing", "error")],
)
STORE_BYTES: Final = counter(
    "tidemill_store_bytes_total", "Bytes read from the store and written to it.",
    *ALL, labels=("direction",), values=_each("read", "written"),
)
TRANSFERS: Final = counter(
    "tidemill_transfers_total",
    "Inputs read from buckets of users, and batches whose output was written to one. `failed` ones are given up.",
    INGEST, RESULTS, labels=("direction", "result"),
    values=[(direction, result) for direction in ("read", "written") for result in ("done", "failed")],
)
TRANSFER_BYTES: Final = counter(
    "tidemill_transfer_bytes_total", "Bytes read from buckets of users and written to them.",
    INGEST, RESULTS, labels=("direction",), values=_each("read", "written"),
)
DISK_FREE: Final = sampled(
    "tidemill_disk_free_bytes",
    "Free bytes on the fullest disk of the log, and on the disk of a store in a folder. "
    "Take the minimum over processes.",
    API, INGEST, PROCESSORS, labels=("disk",),
)
DISK_RESERVE: Final = sampled(
    "tidemill_disk_reserve_bytes",
    "Bytes of these disks to keep free (`disk_reserve_bytes`); with less than twice as many the api refuses work.",
    API, INGEST, PROCESSORS, labels=("disk",),
)
LOG_LINES_SUPPRESSED: Final = counter(
    "tidemill_log_lines_suppressed_total", "Log lines suppressed because they repeat recent ones.", *ALL
)

# fmt: on


def text() -> tuple[bytes, str]:
    """All metrics in Prometheus' text format, and its content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
