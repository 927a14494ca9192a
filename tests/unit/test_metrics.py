"""The metrics: their names and labels are those of the docs, and their values are right."""

import re
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tidemill import metrics
from tidemill.schemas.log.codec import LineMark

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"batch", "batch_id", "line", "project", "key", "url", "file"}
SERIES_MAX = 5_000


def defined():
    """Name, kind and labels of each metric, as a scrape shows them."""
    for counter in metrics.COUNTERS:
        yield f"{counter._name}_total", "counter", tuple(counter._labelnames)
    for asked in metrics.SAMPLED:
        yield asked.name, "gauge", (asked.label,)


def families():
    return {family.name: family for family in text_string_to_metric_families(metrics.text()[0].decode())}


def test_the_docs_have_the_same_metrics():
    """docs/reference/metrics.md has a row for each, with its kind and its label, and no others."""
    rows = re.findall(
        r"^\| `(tidemill_\w+)` \| (\w+) \| ([^|]*?) ?\|",
        (ROOT / "docs/reference/metrics.md").read_text(),
        re.MULTILINE,
    )
    documented = {(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert documented == set(defined())


def test_alert_rules_use_existing_metrics():
    """Prometheus treats a misspelt metric as an absent one."""
    asked = set(re.findall(r"\btidemill_\w+", (ROOT / "deploy/rules.yml").read_text()))
    assert "tidemill_dlq_messages_total" in asked
    assert asked <= {name for name, _, _ in defined()}


def test_no_label_names_a_user_or_an_id():
    """Labels have few values, whatever runs."""
    assert not {label for _, _, labels in defined() for label in labels} & FORBIDDEN


def test_counters_start_at_zero():
    """With each label: a series that first appears with 1 has not increased, and raises no alert."""
    command = [sys.executable, "-c", "from tidemill import metrics; print(metrics.text()[0].decode())"]
    scraped = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    found = {family.name: family.samples for family in text_string_to_metric_families(scraped)}
    for counter in metrics.COUNTERS:
        totals = [sample for sample in found[counter._name] if sample.name.endswith("_total")]
        assert totals, counter._name
        assert {sample.value for sample in totals} == {0}
    closed = {sample.labels["reason"] for sample in found["tidemill_api_connections_closed"] if sample.labels}
    assert closed | {"reason"} == set(
        re.findall(r"\| `(\w+)` \|$", (ROOT / "docs/reference/connections.md").read_text(), re.MULTILINE)
    )
    assert {sample.labels["stage"] for sample in found["tidemill_dlq_messages"] if sample.labels} == set(
        metrics.STAGES
    )


def test_lines_are_counted_by_record():
    """With their backend calls."""
    before = families()
    metrics.count_lines(
        [LineMark(0, 1, False, attempts=1), LineMark(1, 1, True, attempts=3), LineMark(2, 1, False)]
    )
    after = families()

    def moved(name):
        old = {
            sample.labels["outcome"]: sample.value for sample in before[name].samples if sample.name.endswith("l")
        }
        new = {
            sample.labels["outcome"]: sample.value for sample in after[name].samples if sample.name.endswith("l")
        }
        return {outcome: new[outcome] - old[outcome] for outcome in new}

    assert moved("tidemill_lines") == {"completed": 2, "failed": 1}
    assert moved("tidemill_line_attempts") == {"completed": 2, "failed": 3}


def test_gauges_are_computed_at_each_scrape():
    """A process of fifty models has few series."""
    values = {f"m-{number}": float(number) for number in range(50)}
    for asked in metrics.SAMPLED:
        metrics.sample(asked, lambda: values)
    found = families()
    assert {sample.value for sample in found["tidemill_server_inflight"].samples} == set(values.values())
    assert sum(len(family.samples) for family in found.values()) < SERIES_MAX
    values.clear()
    assert not families()["tidemill_server_inflight"].samples
