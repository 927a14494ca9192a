"""The findings of `tidemill doctor`."""

import re
from pathlib import Path

import pytest

from tidemill.configuration.settings import Settings
from tidemill.kafka import admin
from tidemill.ops import doctor, findings
from tidemill.ops.findings import Verdict
from tidemill.schemas.log import topics
from tidemill.schemas.resources.waiting import Reason, Waiting
from tidemill.schemas.webhooks.messages import Health

ROOT = Path(__file__).resolve().parents[2]
WELL = {"cleanup.policy": "delete", "retention.ms": str(topics.OUTCOMES.retention_ms)}


def judged(row=topics.OUTCOMES, *, partitions=4, replicas=1, **configs):
    return findings.topic(
        row,
        replicas=[replicas] * partitions,
        configs={**WELL, **configs},
        wanted=admin.configs_of(row, replicas),
        replication=3,
    )


def test_a_correct_topic_has_no_finding():
    """Configuration and partitions are as needed."""
    assert judged() is None
    assert judged(topics.BATCHES, partitions=1, **{"cleanup.policy": "compact"}) is None
    assert judged(**{"retention.ms": "-1"}) is None
    assert judged(topics.COMMANDS, together=0) is None, "the finding is that outcomes is missing"
    assert judged(topics.KEYS, partitions=1, **{"retention.ms": "-1", "retention.bytes": "-1"}) is None


@pytest.mark.parametrize(
    ("row", "seen", "verdict", "words"),
    [
        (topics.OUTCOMES, {"partitions": 0}, Verdict.WARN, "does not exist"),
        (topics.OUTCOMES, {"retention.ms": "3600000"}, Verdict.WARN, "instead of 7"),
        (topics.OUTCOMES, {"retention.bytes": "1000000"}, Verdict.FAIL, "have not run"),
        (topics.requests("m"), {"retention.bytes": "0"}, Verdict.FAIL, "have not run"),
        (topics.AUDIT, {"partitions": 1, "retention.bytes": "9"}, Verdict.WARN, "whatever their age"),
        (topics.OUTCOMES, {"cleanup.policy": "compact,delete"}, Verdict.FAIL, "is compacted"),
        (topics.BATCHES, {"partitions": 1}, Verdict.FAIL, "would lose"),
        (topics.BATCHES, {"partitions": 2, "cleanup.policy": "compact"}, Verdict.FAIL, "instead of one"),
        (topics.KEYS, {"partitions": 1, "retention.ms": "604800000"}, Verdict.FAIL, "would be valid again"),
        (
            topics.KEYS,
            {"partitions": 1, "retention.ms": "-1", "retention.bytes": "9"},
            Verdict.FAIL,
            "valid again",
        ),
        (topics.KEYS, {"partitions": 1, "cleanup.policy": "compact"}, Verdict.FAIL, "is compacted"),
        (topics.OUTCOMES, {"max.message.bytes": "1000"}, Verdict.FAIL, "refuses large records"),
        (
            topics.BATCHES,
            {"partitions": 1, "cleanup.policy": "compact", "delete.retention.ms": "1000"},
            Verdict.FAIL,
            "misses deletions",
        ),
        (topics.INTAKE, {"message.timestamp.type": "CreateTime"}, Verdict.WARN, "clocks"),
        (topics.OUTCOMES, {"min.insync.replicas": "2"}, Verdict.FAIL, "=2 and 1 replica, so the broker refuses"),
        (topics.OUTCOMES, {"min.insync.replicas": "1", "replicas": 3}, Verdict.WARN, "one disk"),
        (
            topics.SECRETS,
            {"partitions": 1, "cleanup.policy": "compact", "max.compaction.lag.ms": "9223372036854775807"},
            Verdict.WARN,
            "stay for longer",
        ),
    ],
)
def test_a_wrong_topic_has_a_finding(row, seen, verdict, words):
    """It names the topic and says what to do."""
    finding = judged(row, **seen)
    assert finding.verdict is verdict
    assert words in finding.text
    assert finding.fix


def test_all_values_of_a_topic_that_are_wrong_are_named_at_once():
    """The worst of them decides."""
    seen = {"cleanup.policy": "compact", "segment.ms": "604800000", "delete.retention.ms": "1000"}
    finding = judged(topics.SECRETS, partitions=1, **seen)
    assert finding.verdict is Verdict.FAIL
    assert "has segment.ms=604800000, so" in finding.text
    assert finding.fix == "set delete.retention.ms=604800000, segment.ms=3600000"


def test_the_docs_make_a_topic_as_a_stage_does():
    """The page has the command for a service that refuses one of the values."""
    page = (ROOT / "docs" / "how-to" / "cluster.md").read_text("utf-8")
    command = page.partition("kafka-topics.sh")[2].partition("```")[0]
    assert f"--topic {topics.SECRETS.name} " in command
    values = dict(re.findall(r"--config ([a-z.]+)=(\S+)", command))
    assert values == admin.configs_of(topics.SECRETS, 3)


@pytest.mark.parametrize("row", [*topics.TOPICS, topics.requests("m")], ids=lambda row: row.name)
@pytest.mark.parametrize("replicas", [1, 3])
def test_what_a_stage_creates_has_no_finding(row, replicas):
    """And every value that it sets is judged."""
    wanted = admin.configs_of(row, replicas)
    assert judged(row, partitions=4 if row.spread else 1, replicas=replicas, **wanted) is None
    assert {*wanted} <= {*findings._RULES, "cleanup.policy", "retention.ms", "retention.bytes"}


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(None, "ok"), (-500.0, "ok"), (1.0, "ok"), (5.0, "warn"), (60.0, "fail")]
)
def test_a_clock_behind_the_log(seconds, verdict):
    """Records from the future show it."""
    assert findings.clock(seconds).verdict == verdict


def test_unsigned_records_of_keys():
    """They have no effect, but the writer must be found."""
    assert findings.keys(7, []).verdict is Verdict.OK
    found = findings.keys(7, [3, 5])
    assert (found.verdict, found.text[:7]) == (Verdict.WARN, "2 of 7 ")


def test_failing_webhooks_and_a_missing_key_file():
    """Each endpoint has a warning, up to a bound; none fails the check."""
    health = [
        Health(project="p", endpoint_id=f"we_{number}", failing_since=1, disabled_at=9 if number else None)
        for number in range(30)
    ]
    found = findings.webhooks(health, has_key_file=False)
    assert len(found) == 22
    assert ("failed since" in found[0].text, "disabled at" in found[1].text) == (True, True)
    assert ["enables it again" in each.fix for each in found[:2]] == [False, True]
    assert "10 more" in found[20].text
    assert findings.is_healthy(found)
    (fine,) = findings.webhooks([], has_key_file=True)
    assert fine.verdict is Verdict.OK


@pytest.mark.parametrize(
    ("free", "reserve", "verdict"),
    [(40, 20, "ok"), (39, 20, "warn"), (20, 20, "warn"), (19, 20, "fail"), (2 << 30, 1 << 30, "ok"), (0, 0, "ok")],
)
def test_free_space(free, reserve, verdict):
    """It is judged as the api does, which refuses uploads below twice the reserve."""
    assert findings.disk("disk", free, reserve).verdict == verdict


def test_a_server_that_lacks_an_endpoint():
    """The fix is a line of the settings; without any endpoint the address is suspect."""
    endpoints = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
    assert findings.server("b", "m", endpoints, ()).verdict == "ok"
    finding = findings.server("b", "m", endpoints, {"/v1/responses", "/v1/embeddings"})
    assert (finding.verdict, finding.text) == ("warn", "serves m, but not at /v1/embeddings, /v1/responses")
    assert finding.fix.startswith('set endpoints = ["/v1/chat/completions", "/v1/completions"] for the model')
    assert "address" in findings.server("b", "m", endpoints, set(endpoints)).fix


def test_a_warning_is_healthy():
    """A failure is not."""
    assert findings.is_healthy([findings.ok("a", ""), findings.warn("b", "", "")])
    assert not findings.is_healthy([findings.fail("c", "", "")])


def test_one_finding_for_each_stalled_server_and_reason():
    """It names the batch that has waited longest."""
    assert findings.stalled({}, days=30)[0].verdict is Verdict.OK
    away = Waiting(
        reason=Reason.SERVER_UNREACHABLE, lines=3, server="http://a/v1", message="It is away.", since=90
    )
    later = away.model_copy(update={"since": 120})
    hours = Waiting(reason=Reason.SCHEDULE, lines=1, server="http://b/v1", message="It is closed.", since=60)
    first, second = findings.stalled({"batch_1": [later, hours], "batch_2": [away]}, days=30)
    assert first.text == "batch_2 and 1 more wait since 1970-01-01 00:01:30 UTC: It is away."
    assert second.text == "batch_1 waits since 1970-01-01 00:01:00 UTC: It is closed."
    assert {first.verdict, second.verdict} == {Verdict.WARN}
    assert second.fix == "nothing: see `hours` (reason `schedule`)"


def test_a_finding_has_the_remedy_of_the_docs():
    """An installation by pip has no docs."""
    page = (ROOT / "docs" / "reference" / "waiting.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", page, re.MULTILINE)[1:]
    plain = {reason: re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", remedy) for reason, remedy in rows}
    assert plain == findings.REMEDIES
    assert plain.keys() == set(Reason)


async def test_without_a_broker_only_kafka_fails(tmp_path):
    """The checks that need it are left out; those of the store, the models and the disk run."""
    lines = []
    assert not await doctor.examine(
        Settings(data=tmp_path, port=0, kafka="127.0.0.1:1"), "127.0.0.1:1", lines.append
    )
    assert [line.split(":")[0] for line in lines if line.startswith("fail")] == ["fail  kafka"]
    assert {"warn  store", "warn  models"} <= {line.split(":")[0] for line in lines}


@pytest.mark.parametrize("disk_reserve_bytes", [0, 1 << 52])
async def test_the_disk_is_judged_by_the_reserve_of_the_settings(tmp_path, disk_reserve_bytes):
    """Data and store are on one disk here, which is named once."""
    lines = []
    settings = Settings(data=tmp_path, port=0, disk_reserve_bytes=disk_reserve_bytes)
    await doctor.examine(settings, None, lines.append)
    (line,) = [line for line in lines if "disk of" in line]
    assert line.startswith("fail" if disk_reserve_bytes else "ok")


def test_dead_letters_of_the_last_day():
    """They are worth a look, and no failure."""
    assert findings.dead_letters(0).verdict is Verdict.OK
    for count, words in (
        (1, "1 record of the last 24 hours is a dead letter"),
        (2, "2 records .* are dead letters"),
    ):
        found = findings.dead_letters(count)
        assert found.verdict is Verdict.WARN
        assert re.search(words, found.text)
        assert "tidemill dead list" in (found.fix or "")
