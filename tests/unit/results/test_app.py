"""What the process of results may destroy: nothing that the log or a batch at work still needs."""

import pytest
from support.facts import batch_id, commands
from support.simulated import Simulation

from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import Retention
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.producer import partition_of
from tidemill.results.app import Results
from tidemill.schemas.log import codec

PARTITIONS = 4
DAY = 86_400.0


@pytest.fixture
def results(tmp_path):
    """The stage, not connected."""
    settings = Settings(kafka="127.0.0.1:1", data=tmp_path, partitions=PARTITIONS, windows={"24h": 0.5, "2d": 0.5})
    return Results(settings, settings.cluster, Catalog(None))


async def test_the_longest_retention_decides_what_may_go(results):
    """One topic with a short retention only brings the warnings forward; windows count, too."""
    limits = results._resources.limits
    assert limits.kept_seconds() == float("inf")
    results.app.retention = Retention(shortest=3600, longest=7 * DAY)
    assert (limits.retention_seconds(), limits.kept_seconds()) == (3600, 7 * DAY)
    results.app.retention = Retention(shortest=3600, longest=7200)
    assert limits.kept_seconds() == 2 * DAY


async def test_only_its_owner_says_that_a_batch_is_over(results, monkeypatch):
    """Other processes cannot know."""
    simulation = Simulation(1)
    partition = simulation.partition()
    await partition.load()
    monkeypatch.setattr(results, "_active_batches", lambda: [partition.active_batches])
    number = partition_of(batch_id(0), PARTITIONS)
    partition.active_batches.number = number
    assert results._is_over(batch_id(0))
    await partition.command(codec.decode_command(commands(0, 10)[0][2]), list)
    assert not results._is_over(batch_id(0))
    partition.active_batches.number = number + 1
    partition.active_batches.clear()
    assert not results._is_over(batch_id(0))
    partition.abandon()
