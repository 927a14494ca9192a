"""Runs of lines go to the partitions of a topic in rotation."""

from collections import Counter

import pytest

from tidemill.ingest.kafka import RequestProducer
from tidemill.kafka.producer import Log
from tidemill.schemas import ids
from tidemill.sealing.vault import Vault

KAFKA = "127.0.0.1:9"
PARTITIONS = 4


@pytest.fixture
async def place():
    """The partition of a key, of a topic with so many partitions."""
    requests = RequestProducer(KAFKA, Log(KAFKA), partitions=PARTITIONS, ensure_topics=print, vault=Vault(None))
    client = requests._producer._new()
    yield lambda key, partitions: client._partitioner(key.encode(), [*range(partitions)][::-1], [])
    await client.stop()


async def test_the_runs_of_a_batch_go_to_all_partitions_alike(place):
    """No partition gets more than another."""
    batch_id = ids.new_batch_id()
    counts = Counter(place(f"{batch_id}/{run}", PARTITIONS) for run in range(12))
    assert counts == dict.fromkeys(range(PARTITIONS), 3)


@pytest.mark.parametrize("grown", [5, 8])
async def test_a_copy_of_a_run_finds_the_original_in_its_partition(place, grown):
    """The topic may have got more partitions before a restarted ingest publishes the run again."""
    for run in range(12):
        key = f"{ids.new_batch_id()}/{run}"
        assert place(key, grown) == place(key, PARTITIONS)


async def test_a_topic_may_have_fewer_partitions(place):
    """All of them get runs."""
    batch_id = ids.new_batch_id()
    assert {place(f"{batch_id}/{run}", 3) for run in range(3)} == {0, 1, 2}
