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
RESERVE = 'tidemill_disk_reserve_bytes{disk="log"}'
UP = 'up{job="tidemill", stage="%s"}'
SLACK = 'tidemill_deadline_slack_seconds{model="m"}'
LINES = 'tidemill_lines_total{model="m", outcome="%s"}'
STARTED = 'process_start_time_seconds{job="tidemill", stage="results", instance="r"}'
# Series that fire each alert, and series just below it. A number is a gauge; a text, the rise per minute. A text
# with a space has the samples of each minute, as promtool writes them.
CASES = {
    "TidemillDown": ({'up{job="tidemill"}': 0}, {'up{job="tidemill"}': 1, 'up{job="other"}': 0}),
    "TidemillStageMissing": (
        {UP % stage: 1 for stage in ("api", "ingest", "results", "webhooks")},
        {UP % stage: 0 for stage in ("api", "ingest", "processors", "results")},
    ),
    "TidemillRestarts": ({STARTED: "0x20 1x7 2x7 3x7"}, {STARTED: "0x20 1x11 2x11"}),
    "TidemillViewOld": (
        {'tidemill_view_age_seconds{topic="a"}': 1, 'tidemill_view_age_seconds{topic="b"}': 130},
        {'tidemill_view_age_seconds{topic="b"}': 110},
    ),
    "TidemillReceiptMismatch": (
        {"tidemill_receipt_mismatches_total": "1"}, {"tidemill_receipt_mismatches_total": "0"},
    ),
    "TidemillBatchesAtRisk": ({"tidemill_batches_at_risk": 1}, {"tidemill_batches_at_risk": 0}),
    "TidemillKeyRecordsRefused": (
        {"tidemill_key_records_refused_total": "1"}, {"tidemill_key_records_refused_total": "0"},
    ),
    "TidemillDiskLow": ({DISK: 29e9, RESERVE: 10e9}, {DISK: 31e9, RESERVE: 10e9}),
    "TidemillBatchesStalled": (
        {STALLED % "server_unreachable": 1},
        {STALLED % "schedule": 1, STALLED % "import": 1, STALLED % "key": 0, STALLED % "bucket": 0},
    ),
    "TidemillBatchLate": ({SLACK: -1}, {SLACK: 1}),
    "TidemillServerFails": (
        {CALLS % "5xx": "2", CALLS % "lost": "2", CALLS % "unusable": "2", CALLS % "2xx": "4"},
        {CALLS % "5xx": "4", CALLS % "4xx": "5", CALLS % "2xx": "1"},
    ),
    "TidemillLinesFail": (
        {LINES % "failed": "60", LINES % "completed": "40"}, {LINES % "failed": "5", LINES % "completed": "4"},
    ),
    "TidemillConsumerLate": ({LAG % "results": 1000}, {LAG % "results": 800, LAG % "processors": 90_000}),
    "TidemillDeadLetters": ({"tidemill_dead_letters_total": "1"}, {"tidemill_dead_letters_total": "0"}),
    "TidemillLogFails": ({FAILURES: "1"}, {FAILURES: "0"}),
    "TidemillStoreFails": ({STORE % "error": "1"}, {STORE % "error": "0", STORE % "missing": "9"}),
    "TidemillStoreForeign": ({"tidemill_store_foreign": 1}, {"tidemill_store_foreign": 0}),
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
    """Series in promtool's format."""

    def values(value):
        if isinstance(value, int | float):
            return f"{value}x{MINUTES}"
        return value if " " in value else f"0+{value}x{MINUTES}"

    return [{"series": name, "values": values(value)} for name, value in found.items()]


def case(alert, found, *, fires):
    """A test that the alert fires at the end, or does not."""
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
    """Whether the fast alert fires some minutes after the end of a bad hour."""
    bad = {"series": ENDED % "missed", "values": "0+1x60 60x300"}
    good = {"series": ENDED % "met", "values": "0+4x360"}
    firing = 'ALERTS{alertname="TidemillBudgetBurnsFast", alertstate="firing"}'
    expected = [{"labels": "{}", "value": 1}] if minutes == 0 else []
    asked = {"expr": f"count({firing})", "eval_time": f"{60 + minutes}m", "exp_samples": expected}
    return {"interval": "1m", "input_series": [bad, good], "promql_expr_test": [asked]}


def lasting(alert, found):
    """A test that the alert fires for as long as the trouble lasts, whatever becomes of its series."""
    firing = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
    asked = [
        {"expr": firing, "eval_time": f"{minute}m", "exp_samples": [{"labels": "{}", "value": 1}]}
        for minute in range(MINUTES - 15, MINUTES)
    ]
    return {"name": f"{alert} lasts", "interval": "1m", "input_series": series(found), "promql_expr_test": asked}


LASTING = [
    # The broker of a full disk is dead from the tenth minute on; other processes end every three minutes.
    lasting("TidemillDiskLow", {DISK: f"1e9x9 stale _x{MINUTES}", RESERVE: 10e9}),
    *(
        lasting(alert, {name: f"{values} stale " * (MINUTES // 3)})
        for alert, name, values in (
            ("TidemillBatchesStalled", STALLED % "server_unreachable", "0 1"),
            ("TidemillBatchLate", SLACK, "9 -9"),
            ("TidemillConsumerLate", LAG % "results", "0 1000"),
        )
    ),
]
# The first event of a process that has just started: its series begins with 1.
BEGUN = {
    "TidemillDeadLetters": 'tidemill_dead_letters_total{stage="results"}',
    "TidemillReceiptMismatch": "tidemill_receipt_mismatches_total",
    "TidemillKeyRecordsRefused": "tidemill_key_records_refused_total",
}


def scraped(alert, name, values, *labels):
    """A test of the alerts that fire at the last of samples, one every 15 seconds; by the label `further`."""
    seconds = 15 * (len(values) - 1)
    asked = {
        "expr": f'count by (further) (ALERTS{{alertname="{alert}", alertstate="firing"}})',
        "eval_time": f"{seconds}s",
        "exp_samples": [{"labels": one, "value": 1} for one in labels],
    }
    found = [{"series": name, "values": " ".join(map(str, values))}]
    return {"name": f"{alert} by samples", "interval": "15s", "input_series": found, "promql_expr_test": [asked]}


OUTAGE = [1] * 40 + [15 * number for number in range(24)]
VIEW = 'tidemill_view_age_seconds{topic="a"}'
DISABLED = ENDPOINTS % "disabled"
SAMPLED = {"TidemillViewOld", "TidemillBatchesStalled", "TidemillWebhookDisabled"}
SAMPLES = [
    scraped("TidemillViewOld", VIEW, OUTAGE, "{}"),
    # An outage of two minutes, or any other one, is over when the view is young again.
    *(scraped("TidemillViewOld", VIEW, OUTAGE[:50] + [1] * more) for more in range(1, 20)),
    scraped("TidemillViewOld", VIEW, [*OUTAGE, 1, 1]),
    scraped("TidemillBatchesStalled", STALLED % "server_refuses", ([0] * 9 + [50]) * 10),
    scraped("TidemillBatchesStalled", STALLED % "server_refuses", ([0] * 3 + [50] * 7) * 10, "{}"),
    scraped("TidemillWebhookDisabled", DISABLED, [2] * 300 + [1] * 100, "{}"),
    scraped("TidemillWebhookDisabled", DISABLED, [1] * 300 + [2] * 100, "{}", '{further="yes"}'),
    scraped("TidemillWebhookDisabled", DISABLED, [1] * 100 + [2] * 300, "{}"),
]


def pressure(*slacks):
    """What the autoscaler gets where results run with so many models, each with a slack."""
    idle = {f'tidemill_batches{{instance="{n}", status="in_progress"}}': 0 for n in range(2)}
    found = {f'tidemill_deadline_slack_seconds{{model="{n}"}}': slack for n, slack in enumerate(slacks)}
    value = max([max(0, 1 - slack / 3600) for slack in slacks], default=0)
    sample = {"labels": "tidemill:deadline_pressure:max", "value": value}
    asked = {"expr": "tidemill:deadline_pressure:max", "eval_time": "30m", "exp_samples": [sample]}
    return {"interval": "1m", "input_series": series(idle | found), "promql_expr_test": [asked]}


def without_results():
    """The autoscaler gets nothing, and changes nothing."""
    asked = {"expr": "tidemill:deadline_pressure:max", "eval_time": "30m", "exp_samples": []}
    return {"interval": "1m", "input_series": series({UP % "api": 1}), "promql_expr_test": [asked]}


def test_each_alert_fires_when_it_should_and_only_then(tmp_path):
    """In Prometheus' own engine. An alert ends after the burn, once the short window is clean."""
    rules = [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
    assert set(CASES) == {rule["alert"] for rule in rules if "alert" in rule}
    tests = [
        case(alert, found, fires=fires)
        for alert, both in CASES.items()
        for found, fires in zip(both, (True, False), strict=True)
    ]
    tests += [case(alert, {name: f"_x{MINUTES - 30} 1x30"}, fires=True) for alert, name in BEGUN.items()]
    tests += [case(alert, {name: f"_x{MINUTES - 30} 0x30"}, fires=False) for alert, name in BEGUN.items()]
    tests += LASTING
    tests += [after(0), after(10), pressure(), pressure(900), pressure(1800, 900), without_results()]
    written = tmp_path / "rules_test.yml"
    written.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", written)
    written.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": SAMPLES})
    )
    promtool("test", "rules", written)
    promtool("check", "config", ROOT / "deploy" / "prometheus.yml")
