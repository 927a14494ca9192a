"""The configuration of new topics, and the check of partitions."""

import socket

import pytest

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


def test_existing_partitions_override_the_setting():
    """The tables of `results` must have as many partitions as its topics."""
    rows = topics.TOPICS
    found = {row.name: [1] * 5 for row in rows if row.spread}
    assert admin._copartitions(rows, found, 9) == 5
    assert admin._copartitions(rows, {}, 9) == 9
    with pytest.raises(admin.TopicError, match="TIDEMILL_PARTITIONS"):
        admin._copartitions(rows, found | {topics.STATES.name: [1] * 4}, 9)


async def test_a_broker_that_never_answers_is_reported(monkeypatch):
    """With words, though the error of a timeout has none."""
    monkeypatch.setattr(admin, "SECONDS_MAX", 0.2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        cluster = Cluster(servers=f"127.0.0.1:{mute.getsockname()[1]}")
        with pytest.raises(admin.TopicError, match="no answer in time"):
            await admin.ensure_topics(Settings(), cluster)
