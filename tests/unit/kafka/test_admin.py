"""What a topic is made with, as far as it can be seen without a broker."""

import pytest

from tidemill.configuration.settings import Settings
from tidemill.kafka import admin
from tidemill.schemas.log import topics


@pytest.mark.parametrize(("copies", "in_sync"), [(1, None), (2, None), (3, "2"), (5, "2")])
def test_what_is_acknowledged_is_on_two_disks(copies, in_sync):
    """From three copies on; with fewer, one broker that is away would stop everything."""
    made = admin._new(topics.OUTCOMES, Settings(replication=copies, partitions=7))
    assert made.replication_factor == copies
    assert made.num_partitions == 7
    assert made.topic_configs.get("min.insync.replicas") == in_sync


def test_partitions_that_are_there_count():
    """Whatever is set now: the tables of `results` must have as many as the topics that they are fed from."""
    rows = admin.wanted(())
    found = {row.name: [1] * 5 for row in rows if row.spread}
    assert admin._copartitions(rows, found, 9) == 5
    assert admin._copartitions(rows, {}, 9) == 9
    with pytest.raises(admin.TopicError, match="TIDEMILL_PARTITIONS"):
        admin._copartitions(rows, found | {topics.STATES.name: [1] * 4}, 9)
