"""The rules and the dashboards: they are current, name metrics that exist, and each alert has a runbook."""

import json
import re
from pathlib import Path

import pytest
import yaml
from support.loading import loaded

from tidemill import metrics
from tidemill.instruments import METRICS

ROOT = Path(__file__).resolve().parents[2]
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "deploy" / "rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
NAMED_MIN = 30
SEVERITIES = {"critical", "warning"}
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RUNBOOKS = (ROOT / "docs" / "how-to" / "runbooks.md").read_text("utf-8")
SERIES = {
    metric.name + suffix
    for metric in METRICS
    for suffix in (("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",))
}


@pytest.fixture(scope="module")
def dashboards():
    return loaded(ROOT / "deploy" / "grafana" / "dashboards.py")


def test_the_dashboards_are_current(dashboards):
    """`make docs` was run."""
    for path, text in dashboards.files().items():
        assert path.read_text("utf-8") == text, path


def test_queries_name_metrics_that_exist(dashboards):
    """To Prometheus a misspelt metric is an absent one."""
    text = json.dumps(list(dashboards.files().values())) + json.dumps(RULES)
    named = set(re.findall(r"\btidemill_\w+", text))
    assert named <= SERIES
    assert metrics.SLACK.metric.name in named
    assert len(named) > NAMED_MIN


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_has_a_runbook(name):
    """With what it means, where to look and what to do."""
    page, _, anchor = ALERTS[name]["annotations"]["runbook_url"].partition("#")
    assert page == "docs/how-to/runbooks.md"
    sections = {
        heading.lower(): text
        for heading, text in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOKS, re.MULTILINE | re.DOTALL)
    }
    assert ALERTS[name]["labels"]["severity"] in SEVERITIES
    assert all(f"**{word}**" in sections[anchor] for word in ("Meaning.", "Look.", "Do."))


def test_no_runbook_is_left_over():
    """Of an alert that is gone."""
    anchors = {rule["annotations"]["runbook_url"].partition("#")[2] for rule in ALERTS.values()}
    assert {heading.lower() for heading in re.findall(r"^## (\w+)$", RUNBOOKS, re.MULTILINE)} == anchors
