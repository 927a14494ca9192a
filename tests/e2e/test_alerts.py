"""`promtool` evaluates the rules: each alert fires when it should, and only then."""

from pathlib import Path

import pytest
import yaml
from support.go_tools import promtool

pytestmark = pytest.mark.timeout(7_200)

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "rules.yml"
MINUTES = 45
"""How long the series are."""
STALLED = 'tidemill_batches_stalled{reason="%s"}'
ENDED = 'tidemill_batch_deadlines_total{result="%s"}'
CALLS = 'tidemill_calls_total{server="s", status="%s"}'
REQUESTS = 'tidemill_api_requests_total{status="%s"}'
FAILURES = "tidemill_kafka_produce_failures_total"
LAG = 'tidemill_kafka_consumer_lag_seconds{consumer="tidemill-%s"}'
CLOSED = 'tidemill_api_connections_closed_total{reason="%s"}'
STORE = 'tidemill_store_requests_total{operation="read", result="%s"}'
ENDPOINTS = 'tidemill_webhook_endpoints{state="%s"}'
DISK = 'tidemill_disk_free_bytes{disk="log"}'
SLACK = 'tidemill_deadline_slack_seconds{model="m"}'
# What fires an alert, and what comes near and does not. A number is a gauge; a text, the rise in each minute.
CASES = {
    "TidemillDown": ({'up{job="tidemill"}': 0}, {'up{job="tidemill"}': 1, 'up{job="other"}': 0}),
    "TidemillReceiptMismatch": (
        {"tidemill_receipt_mismatches_total": "1"}, {"tidemill_receipt_mismatches_total": "0"},
    ),
    "TidemillBatchesAtRisk": ({"tidemill_batches_at_risk": 1}, {"tidemill_batches_at_risk": 0}),
    "TidemillKeyRecordsRefused": (
        {"tidemill_key_records_refused_total": "1"}, {"tidemill_key_records_refused_total": "0"},
    ),
    "TidemillDiskLow": ({DISK: 3e9}, {DISK: 4e9}),
    "TidemillBatchesStalled": ({STALLED % "server_unreachable": 1}, {STALLED % "schedule": 1, STALLED % "key": 0}),
    "TidemillBatchLate": ({SLACK: -1}, {SLACK: 1}),
    "TidemillServerFails": (
        {CALLS % "5xx": "6", CALLS % "2xx": "4"}, {CALLS % "5xx": "4", CALLS % "2xx": "6"},
    ),
    "TidemillConsumerLate": ({LAG % "results": 1000}, {LAG % "results": 800, LAG % "processors": 90_000}),
    "TidemillDeadLetters": ({"tidemill_dead_letters_total": "1"}, {"tidemill_dead_letters_total": "0"}),
    "TidemillLogFails": ({FAILURES: "1"}, {FAILURES: "0"}),
    "TidemillStoreFails": ({STORE % "error": "1"}, {STORE % "error": "0", STORE % "missing": "9"}),
    "TidemillApiErrors": (
        {REQUESTS % "5xx": "2", REQUESTS % "2xx": "98"}, {REQUESTS % "5xx": "1", REQUESTS % "4xx": "199"},
    ),
    "TidemillApiFull": ({CLOSED % "full": "1"}, {CLOSED % "full": "0", CLOSED % "late": "9"}),
    "TidemillWebhookDisabled": (
        {ENDPOINTS % "disabled": 1}, {ENDPOINTS % "disabled": 0, ENDPOINTS % "failing": 1},
    ),
    "TidemillWebhooksLate": (
        {"tidemill_webhook_oldest_delivery_age_seconds": 3700},
        {"tidemill_webhook_oldest_delivery_age_seconds": 3500},
    ),
    "TidemillBudgetBurnsFast": (
        {ENDED % "met": "8", ENDED % "missed": "2"}, {ENDED % "met": "9", ENDED % "missed": "1"},
    ),
    "TidemillBudgetBurnsSlow": (
        {ENDED % "met": "93", ENDED % "missed": "7"}, {ENDED % "met": "95", ENDED % "missed": "5"},
    ),
    "TidemillBudgetBurnsSteady": (
        {ENDED % "met": "98", ENDED % "missed": "2"}, {ENDED % "met": "995", ENDED % "missed": "5"},
    ),
}  # fmt: skip


def series(found):
    """Series, as promtool reads them."""
    return [
        {
            "series": name,
            "values": f"{value}x{MINUTES}" if isinstance(value, int | float) else f"0+{value}x{MINUTES}",
        }
        for name, value in found.items()
    ]


def case(alert, found, *, fires):
    """At the end the alert fires, or not."""
    firing = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
    expected = [{"labels": "{}", "value": 1}] if fires else []
    asked = {"expr": firing, "eval_time": f"{MINUTES}m", "exp_samples": expected}
    return {
        "name": f"{alert}: {fires}",
        "interval": "1m",
        "input_series": series(found),
        "promql_expr_test": [asked],
    }


def after(minutes):
    """Whether the fast alert fires so many minutes after a bad hour that ended."""
    bad = {"series": ENDED % "missed", "values": "0+1x60 60x300"}
    good = {"series": ENDED % "met", "values": "0+4x360"}
    firing = 'ALERTS{alertname="TidemillBudgetBurnsFast", alertstate="firing"}'
    expected = [{"labels": "{}", "value": 1}] if minutes == 0 else []
    asked = {"expr": f"count({firing})", "eval_time": f"{60 + minutes}m", "exp_samples": expected}
    return {"interval": "1m", "input_series": [bad, good], "promql_expr_test": [asked]}


def test_each_alert_fires_when_it_should_and_only_then(tmp_path):
    """By Prometheus' own engine. A burn that is over ends its alert: the short window is clean."""
    rules = [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
    assert set(CASES) == {rule["alert"] for rule in rules if "alert" in rule}
    tests = [
        case(alert, found, fires=fires)
        for alert, both in CASES.items()
        for found, fires in zip(both, (True, False), strict=True)
    ]
    written = tmp_path / "rules_test.yml"
    written.write_text(
        yaml.safe_dump(
            {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [*tests, after(0), after(10)]}
        )
    )
    promtool("test", "rules", written)
    promtool("check", "config", ROOT / "deploy" / "prometheus.yml")
