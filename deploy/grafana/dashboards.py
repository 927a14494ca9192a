# ruff: noqa: INP001 - a script
"""Writes the dashboards beside this file: `make docs`.

A panel is a title, a unit, and a query for each legend. `$model` and `$server` stand for what a reader chooses.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

FOLDER: Final = Path(__file__).resolve().parent
WIDTH, HEIGHT = 8, 8
COLUMNS: Final = 3
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
MODELS: Final = 'model=~"$model"'
SERVERS: Final = 'server=~"$server"'
VARIABLES: Final = {"model": "tidemill_model_servers", "server": "tidemill_server_calls_limit"}
"""The metric that has all values of a variable."""


class Panel(NamedTuple):
    """A chart over time."""

    title: str
    unit: str
    queries: Mapping[str, str]
    """By legend."""


def rate(metric: str, by: str, where: str = "") -> str:
    """The rate of a counter, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


def quantiles(metric: str, where: str = "", by: str = "") -> dict[str, str]:
    """The median, and the value of 95 %, of a histogram."""
    labels = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    return {
        f"{legend}{name}": f"histogram_quantile({part}, {rate(f'{metric}_bucket', labels, where)})"
        for name, part in (("median", 0.5), ("95 %", 0.95))
    }


OVERVIEW: Final = [
    Panel("Batches at work", "short", {"{{status}}": "sum by (status) (tidemill_batches)"}),
    Panel(
        "Lines without a result",
        "short",
        {"{{model}}": f"sum by (model) (tidemill_model_waiting_lines{{{MODELS}}})"},
    ),
    Panel("Lines done", "ops", {"{{model}} {{outcome}}": rate("tidemill_lines_total", "model, outcome", MODELS)}),
    Panel(
        "Slack to the deadline",
        "s",
        {"{{model}}": f"min by (model) (tidemill_deadline_slack_seconds{{{MODELS}}})"},
    ),
    Panel("Batches that wait", "short", {"{{reason}}": "sum by (reason) (tidemill_batches_stalled) > 0"}),
    Panel(
        "Ended batches in an hour",
        "short",
        {
            "{{result}}": "sum by (result) (increase(tidemill_batch_deadlines_total[1h]))",
        },
    ),
    Panel("Error budget left", "percentunit", {"of 30 days": "tidemill:error_budget:ratio"}),
    Panel("Requests", "reqps", {"{{status}}": rate("tidemill_api_requests_total", "status")}),
    Panel("Processes that answer", "short", {"{{stage}}": 'sum by (stage) (up{job="tidemill"})'}),
]
BATCH: Final = [
    Panel("1. Uploads", "Bps", {"stored": "sum(rate(tidemill_upload_bytes_total[$__rate_interval]))"}),
    Panel("1. Files and parts", "ops", {"{{kind}} {{result}}": rate("tidemill_uploads_total", "kind, result")}),
    Panel("2. Time to answer a request", "s", quantiles("tidemill_api_request_duration_seconds")),
    Panel("3. Wait for the first call", "s", quantiles("tidemill_line_queue_seconds", MODELS, "model")),
    Panel(
        "4. Calls in flight",
        "short",
        {"{{model}}": f"sum by (model) (tidemill_model_calls_in_flight{{{MODELS}}})"},
    ),
    Panel("4. Time of a call", "s", quantiles("tidemill_call_duration_seconds", MODELS, "model")),
    Panel("5. Results", "ops", {"{{kind}}": rate("tidemill_results_lines_total", "kind")}),
    Panel("5. From the batch to a result", "s", quantiles("tidemill_line_duration_seconds", MODELS, "model")),
    Panel("6. Time to write the files", "s", quantiles("tidemill_finalize_duration_seconds")),
    Panel("7. From the batch to its files", "s", quantiles("tidemill_batch_duration_seconds", by="status")),
    Panel("8. Calls of webhooks", "ops", {"{{result}}": rate("tidemill_webhook_attempts_total", "result")}),
    Panel("8. Webhooks that wait", "short", {"{{state}}": "sum by (state) (tidemill_webhook_deliveries)"}),
]
PLACES: Final = f"{MODELS}, {SERVERS}"
SERVER: Final = [
    Panel(
        "Calls in flight",
        "short",
        {
            "{{server}}": f"sum by (server) (tidemill_server_calls_in_flight{{{SERVERS}}})",
            "{{server}} limit": f"sum by (server) (tidemill_server_calls_limit{{{SERVERS}}})",
        },
    ),
    Panel("Calls", "reqps", {"{{server}} {{status}}": rate("tidemill_calls_total", "server, status", PLACES)}),
    Panel("Calls by endpoint", "reqps", {"{{endpoint}}": rate("tidemill_calls_total", "endpoint", PLACES)}),
    Panel("Time of a call", "s", quantiles("tidemill_call_duration_seconds", PLACES, "server")),
    Panel("Time to the first byte", "s", quantiles("tidemill_call_first_byte_seconds", SERVERS, "server")),
    Panel(
        "Refused calls",
        "percentunit",
        {"{{server}}": f"max by (server) (tidemill_server_refused_ratio{{{SERVERS}}})"},
    ),
    Panel(
        "Servers that take calls", "short", {"{{model}}": f"max by (model) (tidemill_model_servers{{{MODELS}}})"}
    ),
    Panel(
        "Calls a line",
        "short",
        {
            "{{model}}": " / ".join(
                rate(metric, "model", MODELS)
                for metric in ("tidemill_line_attempts_total", "tidemill_lines_total")
            ),
        },
    ),
    Panel(
        "Results that the log lacks",
        "short",
        {
            "{{server}}": f"sum by (server) (tidemill_server_unacknowledged_results{{{SERVERS}}})",
        },
    ),
]
KAFKA: Final = [
    Panel("Behind, in seconds", "s", {"{{consumer}}": "max by (consumer) (tidemill_kafka_consumer_lag_seconds)"}),
    Panel(
        "Behind, in records",
        "short",
        {
            "{{consumer}} {{topic}}": "sum by (consumer, topic) (tidemill_kafka_consumer_lag_records)",
        },
    ),
    Panel(
        "Rebalances in an hour",
        "short",
        {
            "{{consumer}}": "sum by (consumer) (increase(tidemill_kafka_rebalances_total[1h]))",
        },
    ),
    Panel("Fetched", "Bps", {"{{consumer}}": rate("tidemill_kafka_fetched_bytes_total", "consumer")}),
    Panel("Fetched records", "ops", {"{{consumer}}": rate("tidemill_kafka_fetched_records_total", "consumer")}),
    Panel("Time to append a record", "s", quantiles("tidemill_kafka_produce_duration_seconds", by="stage")),
    Panel("Failures to append", "ops", {"{{stage}}": rate("tidemill_kafka_produce_failures_total", "stage")}),
    Panel(
        "Dead letters in an hour",
        "short",
        {
            "{{stage}}": "sum by (stage) (increase(tidemill_dead_letters_total[1h]))",
        },
    ),
    Panel("Age of the api's view", "s", {"{{topic}}": "max by (topic) (tidemill_view_age_seconds)"}),
    Panel("Free space", "bytes", {"{{disk}}": "min by (disk) (tidemill_disk_free_bytes)"}),
    Panel(
        "Store: operations",
        "ops",
        {
            "{{operation}} {{result}}": rate("tidemill_store_requests_total", "operation, result"),
        },
    ),
    Panel("Store: time", "s", quantiles("tidemill_store_request_duration_seconds", by="operation")),
    Panel("Store: bytes", "Bps", {"{{direction}}": rate("tidemill_store_bytes_total", "direction")}),
]
DASHBOARDS: Final = {
    "overview": ("Tidemill: overview", OVERVIEW),
    "batch": ("Tidemill: the way of a batch", BATCH),
    "servers": ("Tidemill: models and servers", SERVER),
    "kafka-store": ("Tidemill: Kafka and the store", KAFKA),
}


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + place),
            "datasource": SOURCE,
            "expr": query.replace("{}", ""),
            "legendFormat": legend,
        }
        for place, (legend, query) in enumerate(panel.queries.items())
    ]
    row, column = divmod(number, COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": None if panel.unit == "s" else 0},
            "overrides": [],
        },
        "targets": targets,
    }


def _variable(name: str, metric: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values({metric}, {name})",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard(uid: str) -> dict[str, Any]:
    """A dashboard, as Grafana imports it."""
    title, panels = DASHBOARDS[uid]
    text = json.dumps([panel.queries for panel in panels])
    variables = [_variable(name, metric) for name, metric in VARIABLES.items() if f"${name}" in text]
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    return {
        "uid": f"tidemill-{uid}",
        "title": title,
        "tags": ["tidemill"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "links": [{"type": "dashboards", "title": "Tidemill", "tags": ["tidemill"], "asDropdown": True}],
        "templating": {"list": [source, *variables]},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def files() -> dict[Path, str]:
    """The text of each file."""
    return {FOLDER / f"{uid}.json": json.dumps(dashboard(uid), indent=1) + "\n" for uid in DASHBOARDS}


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, "utf-8")
