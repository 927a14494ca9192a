"""The metrics: their names and labels keep to the rules, and their values are right."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.servers import server

from tidemill import metrics
from tidemill.instruments import METRICS, Buckets, Sampled
from tidemill.processors.backends.backend import Backend
from tidemill.processors.backends.call_metrics import CALLS_MAX, LineCounts
from tidemill.processors.failures import Answer, CallFailure, FailureKind
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.results.result_metrics import ResultMetrics, count_ended
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.resources.batch import Batch, Status

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"batch", "batch_id", "line", "project", "key", "url", "file", "path"}
SERIES_MAX = 5_000
UNITS = ("seconds", "bytes", "ratio")


def families():
    return {family.name: family for family in text_string_to_metric_families(metrics.text()[0].decode())}


def value(name, **labels):
    """The value of a sample; None if there is none."""
    for family in families().values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def test_names_keep_to_the_conventions():
    """Counters end with `_total`, and only they; a time or a size has a base unit, at the end."""
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        name = metric.name.removesuffix("_total")
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert re.fullmatch(r"tidemill(_[a-z]+)+", name), metric.name
        assert not re.search(r"_(ms|millis|minutes|kb|mb|percent|count|sum|bucket|info)(_|$)", name), metric.name
        assert metric.kind != "histogram" or name.endswith("_seconds"), metric.name
        assert all(f"_{unit}" not in name or name.endswith(f"_{unit}") for unit in UNITS), metric.name
        assert metric.stages, metric.name


def test_no_label_names_a_user_or_an_id():
    """Labels have few values, whatever runs."""
    assert not {label for metric in METRICS for label in metric.labels} & FORBIDDEN


def test_counters_start_at_zero():
    """With each label: a series that first appears with 1 has not increased, and raises no alert."""
    command = [sys.executable, "-c", "from tidemill import metrics; print(metrics.text()[0].decode())"]
    scraped = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    found = {family.name: family.samples for family in text_string_to_metric_families(scraped)}
    for name, samples in found.items():
        if name.startswith("tidemill_") and (totals := [one for one in samples if one.name.endswith("_total")]):
            assert {sample.value for sample in totals} == {0}, name
    assert [one for one in found["tidemill_batch_deadlines"] if one.labels == {"result": "missed"}]
    closed = {sample.labels["reason"] for sample in found["tidemill_api_connections_closed"] if sample.labels}
    assert closed | {"reason"} == set(
        re.findall(r"\| `(\w+)` \|$", (ROOT / "docs/reference/connections.md").read_text(), re.MULTILINE)
    )


def test_lines_are_counted_by_record():
    """With their backend calls."""
    counts = LineCounts()
    counts.add([LineMark(0, 1, False, attempts=1), LineMark(1, 1, True, attempts=3), LineMark(2, 1, False)])
    assert counts.lines == {"completed": 2, "failed": 1}
    assert counts.attempts == {"completed": 2, "failed": 3}


def test_buckets_are_those_of_the_library():
    """A value at a bound belongs to its bucket; the sum and the number are right."""
    buckets = Buckets((0.1, 1, 10))
    for seconds, times in ((0.1, 1), (0.2, 3), (1.5, 1), (99, 2)):
        buckets.observe(seconds, times)
    metrics.QUEUE_WAIT.sample(lambda: {"m": buckets})
    got = {
        bound: value("tidemill_line_queue_seconds_bucket", model="m", le=bound)
        for bound in ("0.1", "1.0", "10.0", "+Inf")
    }
    assert got == {"0.1": 1, "1.0": 4, "10.0": 5, "+Inf": 7}
    assert value("tidemill_line_queue_seconds_count", model="m") == 7
    assert value("tidemill_line_queue_seconds_sum", model="m") == pytest.approx(0.1 + 0.6 + 1.5 + 198)


def test_calls_are_counted_by_what_became_of_them():
    """By the reply's class, or why there was none; a call that was not made does not count."""
    backend = Backend(server("http://a", ConcurrencyLimit(1)))
    backend.metrics.answered("/v1/embeddings", 0.4, 0.3, 2.0, 5)
    for status in (404, 503, 999):
        failure = CallFailure(FailureKind.STATUS, "", status=status, answer=Answer(status, b"", first_byte=0.2))
        backend.metrics.failed("/v1/embeddings", failure, 0.5, None)
    for kind in FailureKind:
        backend.metrics.failed("/v1/embeddings", CallFailure(kind, ""), 0.5, 3.0)
    backend.metrics.refused("/v1/embeddings", 0.5)
    assert {status: calls for (_, status), calls in backend.metrics.folded().ended.items()} == {
        "2xx": 1, "4xx": 1, "5xx": 1, "other": 3, "unusable": 1, "connect": 1, "lost": 1, "timeout": 1,
    }  # fmt: skip
    assert backend.metrics.duration.scraped()[0][-1] == ("+Inf", 10)
    assert backend.metrics.waits.scraped()[0][-1] == ("+Inf", 6)
    assert backend.server.first_byte.scraped()[0][-1] == ("+Inf", 4)


def test_a_path_of_a_record_makes_no_series():
    """A producer may name any path; those that no settings know share a label. The list of calls has a bound."""
    backend = Backend(server("http://a", ConcurrencyLimit(1)))
    for number in range(2 * CALLS_MAX):
        backend.metrics.answered(f"/v1/{number}", 0.1, 0.1, 0.1, 5)
        assert len(backend.metrics._good) < CALLS_MAX
    assert backend.metrics.folded().ended == {("other", "2xx"): 2 * CALLS_MAX}


def test_results_of_removed_models_have_no_series():
    """Repeated results count apart, and into no duration."""
    counts, models = ResultMetrics(), {"a", "b"}
    counts.register(lambda: models)
    counts.folded("a", 10, new=8, size=100, seconds=2.0)
    counts.folded("b", 1, new=1, size=10, seconds=2.0)
    assert value("tidemill_results_lines_total", kind="new") == 9
    assert value("tidemill_results_lines_total", kind="repeated") == 2
    assert value("tidemill_results_bytes_total") == 110
    assert value("tidemill_line_duration_seconds_count", model="a") == 8
    models.discard("a")
    assert value("tidemill_line_duration_seconds_count", model="a") is None
    assert value("tidemill_line_duration_seconds_count", model="b") == 1


@pytest.mark.parametrize(
    ("status", "finalizing_at", "result"),
    [
        (Status.COMPLETED, 90, "met"),
        (Status.COMPLETED, 101, "missed"),
        (Status.EXPIRED, 101, "missed"),
        (Status.CANCELLED, 50, None),
        (Status.FAILED, None, None),
    ],
)
def test_batches_count_by_their_window(status, finalizing_at, result):
    """A batch that its user cancelled, or that never began, says nothing of the service."""
    batch = Batch(
        id="batch_1", endpoint="/v1/embeddings", input_file_id="f", completion_window="24h", status=status,
        created_at=0, expires_at=100, finalizing_at=finalizing_at,
    )  # fmt: skip
    before = {each: value("tidemill_batch_deadlines_total", result=each) for each in ("met", "missed")}
    count_ended(batch, 120.0)
    after = {each: value("tidemill_batch_deadlines_total", result=each) for each in ("met", "missed")}
    assert {each for each in after if after[each] > before[each]} == ({result} if result else set())
    assert value("tidemill_batch_duration_seconds_count", status=status.value)


def test_a_process_of_fifty_servers_has_few_series():
    """They are read at each scrape, and end with their source."""
    buckets = Buckets(metrics.CALL_SECONDS)
    before = sum(len(family.samples) for family in families().values())
    for one in (each for each in vars(metrics).values() if isinstance(each, Sampled)):
        if metrics.PROCESSORS in one.metric.stages:
            value = buckets if one.metric.kind == "histogram" else 1.0
            keys = [tuple(f"{label}-{number}" for label in one.metric.labels) for number in range(50)]
            made = dict.fromkeys(keys, value)
            one.sample(lambda made=made: made)
    found = families()
    assert len(found["tidemill_server_calls_in_flight"].samples) == 50
    assert sum(len(family.samples) for family in found.values()) < before + SERIES_MAX
    metrics.SERVER_IN_FLIGHT.sample(dict)
    assert not families()["tidemill_server_calls_in_flight"].samples
