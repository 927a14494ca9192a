"""Prometheus scrapes an installation, and every query of the dashboards and of the rules finds its series."""

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml
from openai import OpenAI
from support import ports
from support.backend import Behaviour
from support.go_tools import promtool, tools
from support.stack import KEY
from support.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.timeout(7_200)]

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "rules.yml"
CHAT = "/v1/chat/completions"
STAGES = ("api", "ingest", "processors", "results", "webhooks")
LINES = 20
VARIABLES = {"$__rate_interval": "1m", "$model": ".*", "$server": ".*"}
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: tidemill
    static_configs: {targets}
"""
AS_THEY_COME = {"tidemill_api_requests_total"}
"""Metrics without a series until an event occurs."""
QUERIES_MIN = 70
OF_THE_TARGET = {"stage", "instance", "job", "le", "__name__"}


def queries():
    """Every query of the dashboards, as Grafana sends it, and of the rules."""
    for path in sorted((ROOT / "deploy" / "grafana").glob("*.json")):
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for target in panel["targets"]:
                found = target["expr"]
                for name, value in VARIABLES.items():
                    found = found.replace(name, value)
                yield found
    for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


class Prometheus:
    """A server that scrapes the stages once a second."""

    def __init__(self, url):
        self.url = url

    def ask(self, path, **parameters):
        """The API's answer; raises if the query is faulty."""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
            return json.load(answer)["data"]

    def has(self, query, count=1):
        """Whether a query finds so many series; not before the server listens."""
        try:
            return len(self.find(query)) >= count
        except OSError:
            return False

    def find(self, query):
        """The labels of what a query finds."""
        return [each["metric"] for each in self.ask("query", query=query)["result"]]

    def selectors(self, query):
        """Each selection of a query: the name of the metric, its matchers, and the labels that sums keep."""
        found, kept = [], set()

        def walk(node):
            if isinstance(node, list):
                for each in node:
                    walk(each)
            elif isinstance(node, dict):
                if node.get("type") in {"vectorSelector", "matrixSelector"}:
                    found.append(node)
                if node.get("type") == "aggregation" and not node["without"]:
                    kept.update(node["grouping"])
                for each in node.values():
                    walk(each)

        walk(self.ask("parse_query", query=query))
        return found, kept


def scraped(address):
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        return answer.read().decode()


@pytest.fixture
def addresses(stack):
    """Where each stage serves its metrics."""
    return json.loads((stack.data / "run.json").read_text())["health"]


@pytest.fixture
def prometheus(addresses, tmp_path):
    """Prometheus, once it has scraped each stage."""
    targets = [
        {"targets": [urllib.parse.urlsplit(addresses[stage]).netloc], "labels": {"stage": stage}}
        for stage in STAGES
    ]
    config = tmp_path / "prometheus.yml"
    config.write_text(CONFIG.format(rules=RULES, targets=json.dumps(targets)))
    listen = f"127.0.0.1:{ports.free_port()}"
    command = [
        tools() / "prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address={listen}", "--log.level=warn",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            server = Prometheus(f"http://{listen}")
            wait_until(lambda: server.has("up == 1", len(STAGES)), "a scrape of each stage")
            yield server
        finally:
            process.kill()


def run_a_batch(stack, backend, prometheus):
    """One whose first line fails; Prometheus sees it at work."""
    client = OpenAI(base_url=stack.api, api_key=KEY)
    lines = [
        {
            "custom_id": f"{n}", "method": "POST", "url": CHAT,
            "body": {"model": "chat", "messages": [{"role": "user", "content": "good" if n else "bad"}]},
        }
        for n in range(LINES)
    ]  # fmt: skip
    file = client.files.create(file=("in.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    wait_until(lambda: prometheus.has("tidemill_deadline_slack_seconds"), "a batch at work")
    backend.release()
    wait_until(lambda: client.batches.retrieve(made.id).status == "completed", "the end of the batch")
    assert client.batches.retrieve(made.id).request_counts.failed == 1
    # Other tests may have run batches in this installation.
    after = f"timestamp(up) > {time.time()}"
    wait_until(lambda: prometheus.has(after, len(STAGES)), "a scrape of each stage after the end")


def check_selector(prometheus, selector):
    """A selector finds series, now or a while ago; returns their labels."""
    name = selector["name"]
    if name.startswith("tidemill:"):
        assert re.search(rf"record: {name}$", RULES.read_text(), re.MULTILINE), name
        return set()
    matchers = [each for each in selector["matchers"] if each["name"] != "__name__"]
    if name in AS_THEY_COME:
        where = ", ".join(f'{each["name"]}!=""' for each in matchers)
    else:
        where = ", ".join(f"{each['name']}{each['type']}{json.dumps(each['value'])}" for each in matchers)
    found = prometheus.find(f"last_over_time({name}{{{where}}}[1h])")
    assert found, (name, where)
    return set().union(*found)


def test_every_query_finds_its_series(stack, backend, addresses, prometheus):
    """Each metric with each matcher and each label that a sum keeps; `promtool` finds no fault in any stage."""

    def rule(body, nth):
        """The server is at fault once, and then the line is."""
        return Behaviour(status=(500 if nth == 1 else 400) if "bad" in json.dumps(body) else 200)

    backend.reset(rule)
    backend.hold()
    run_a_batch(stack, backend, prometheus)
    for stage in STAGES:
        # The library's own names are its matter.
        text = re.sub(r"(?m)^(# (HELP|TYPE) )?python_.*\n", "", scraped(addresses[stage]))
        assert "tidemill_kafka_produce_duration_seconds_bucket" in text
        promtool("check", "metrics", text=text)
    asked = list(queries())
    assert len(asked) > QUERIES_MIN
    for query in asked:
        prometheus.find(query)
        selectors, kept = prometheus.selectors(query)
        assert selectors, query
        labels = set().union(*(check_selector(prometheus, each) for each in selectors))
        assert kept - OF_THE_TARGET <= labels or any(":" in each["name"] for each in selectors), query
