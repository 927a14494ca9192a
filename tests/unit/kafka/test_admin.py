"""The configuration of new topics, and the check of partitions."""

import socket
from math import inf

import pytest
from aiokafka import errors

from tidemill import retrying
from tidemill.api.view.batch_tables import AWAY_SECONDS_MAX
from tidemill.configuration.security import Cluster
from tidemill.configuration.settings import Settings
from tidemill.kafka import admin
from tidemill.schemas.log import topics


@pytest.mark.parametrize(("copies", "in_sync"), [(1, None), (2, None), (3, "2"), (5, "2")])
def test_acknowledged_records_are_on_two_disks(copies, in_sync):
    """From replication factor 3 on; below it, one unavailable broker would stop all writes."""
    made = admin._new(topics.OUTCOMES, Settings(replication=copies, partitions=7))
    assert made.replication_factor == copies
    assert made.num_partitions == 7
    assert made.topic_configs.get("min.insync.replicas") == in_sync


@pytest.mark.parametrize(
    "row", [*topics.TOPICS, topics.requests("m"), topics.express("m")], ids=lambda row: row.name
)
def test_no_record_is_removed_by_size(row):
    """A default of the broker (`log.retention.bytes`) would remove lines of a large backlog before they run."""
    configs = admin._new(row, Settings()).topic_configs
    assert configs["cleanup.policy"] == "compact" or configs["retention.bytes"] == "-1"


@pytest.mark.parametrize("row", [row for row in topics.TOPICS if row.compacted], ids=lambda row: row.name)
def test_tombstones_outlive_the_trust_in_a_view(row):
    """The broker drops them after a day by default, and a process may be away for longer."""
    kept_ms = int(admin._new(row, Settings()).topic_configs["delete.retention.ms"])
    assert kept_ms >= (AWAY_SECONDS_MAX + 86_400) * 1000


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], (inf, inf, ())),
        ([("1000", "-1"), ("5000", "-1")], (1, 5, ())),
        ([("1000", "-1"), ("-1", "7")], (1, inf, ("t1",))),
        ([("-1", "-1")], (inf, inf, ())),
    ],
)
async def test_the_retention_of_what_batches_need(found, expected, monkeypatch):
    """Warnings need the shortest one, and what may be destroyed depends on the longest."""

    async def configs(*_, **__):
        return {
            f"t{number}": {"retention.ms": ms, "retention.bytes": size} for number, (ms, size) in enumerate(found)
        }

    monkeypatch.setattr(admin, "topic_configs", configs)
    assert await admin.retention(None, []) == expected


def test_existing_partitions_override_the_setting():
    """The tables of `results` must have as many partitions as its topics."""
    rows = topics.TOPICS
    found = {row.name: 5 for row in rows if row.spread}
    assert admin.copartitions(rows, found, 9) == 5
    assert admin.copartitions(rows, {}, 9) == 9
    with pytest.raises(admin.TopicError, match="Partitions cannot be added once there are batches"):
        admin.copartitions(rows, found | {topics.STATES.name: 4}, 9)
    del found[topics.STATES.name]
    with pytest.raises(admin.TopicError, match="Set TIDEMILL_PARTITIONS=5: the number of those that exist cannot"):
        admin.copartitions(rows, found, 9)


def test_partitions_that_were_added_end_the_start():
    """Before a line is lost: batches have records in the former ones."""
    admin.check_kept(None, 4)
    admin.check_kept(4, 4)
    with pytest.raises(admin.PartitionsChanged, match="have 6 partitions, and the batches were written to 4"):
        admin.check_kept(4, 6)


async def test_a_broker_that_never_answers_is_reported(monkeypatch):
    """With words, though the error of a timeout has none."""
    monkeypatch.setattr(admin, "SECONDS_MAX", 0.2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        cluster = Cluster(servers=f"127.0.0.1:{mute.getsockname()[1]}")
        with pytest.raises(admin.BrokerUnavailable, match="no answer in time"):
            await admin.ensure_topics(Settings(), cluster)


async def test_a_start_waits_for_a_broker_that_is_not_ready(unused_tcp_port, monkeypatch):
    """With words at each pause, and for a bounded time."""
    monkeypatch.setattr(retrying, "LONGEST_SECONDS", 0.01)
    cluster, words, tries = Cluster(servers=f"127.0.0.1:{unused_tcp_port}"), [], 0

    async def call():
        nonlocal tries
        tries += 1
        if tries > 2:
            return "ready"
        return await admin.ensure_topics(Settings(), cluster)

    assert await admin.once_ready(call, words.append) == "ready"
    assert len(words) == 2
    assert all(f"127.0.0.1:{unused_tcp_port}" in each and "; next attempt in 0.0 s" in each for each in words)
    monkeypatch.setattr(admin, "READY_SECONDS_MAX", 0.5)
    with pytest.raises(admin.BrokerUnavailable, match="Unable to bootstrap"):
        await admin.once_ready(lambda: admin.ensure_topics(Settings(), cluster), words.append)
    assert len(words) > 2


class Answer:
    """An answer of the controller: an error of each topic."""

    def __init__(self, kind):
        self.topic_errors = [("t", kind.errno, None)]


@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        (errors.NotControllerError, admin.BrokerUnavailable),
        (errors.RequestTimedOutError, admin.BrokerUnavailable),
        (errors.TopicAuthorizationFailedError, admin.TopicError),
        (errors.PolicyViolationError, admin.TopicError),
        (errors.InvalidReplicationFactorError, admin.TopicError),
    ],
)
async def test_a_refusal_ends_the_start(kind, failure, monkeypatch):
    """A controller that has not been elected yet does not."""
    monkeypatch.setattr(admin, "POLL_SECONDS", 0.0)

    class Controller:
        async def create_topics(self, _):
            return Answer(kind)

    words = []
    if failure is admin.BrokerUnavailable:
        monkeypatch.setattr(admin, "READY_SECONDS_MAX", 0.0)
    with pytest.raises(admin.TopicError, match=f"t: {kind.__name__}") as caught:
        await admin.once_ready(lambda: admin._create(Controller(), [topics.OUTCOMES], Settings()), words.append)
    assert type(caught.value) is failure
    assert not words
