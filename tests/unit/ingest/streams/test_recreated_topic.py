"""The intake topic is deleted and created anew: its offsets begin again, and ids of batches repeat."""

import pytest
from support.dependencies import batch_of
from support.intake import PARTITION, World, line, producing

from tidemill.ingest.streams.tables import Streams
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord, Sealed
from tidemill.schemas.resources.batch import Status

FIRST = "cluster/first"


def sealed(world):
    """The lines of each batch that is sealed."""
    return [fact.total for fact in world.facts if isinstance(fact, Sealed)]


async def of_three_records(folder):
    """A partition whose three records are in batches that are sealed."""
    world = World(0, folder)
    world.topic = FIRST
    world.log = [producing(b"a", line(f"acme/a/{offset}/0"), ends=offset == 2) for offset in range(3)]
    await world.run(0)
    assert sealed(world) == [3]
    return world


@pytest.mark.parametrize(("topic", "taken"), [(FIRST, False), ("cluster/second", True)])
async def test_its_records_are_new_ones(topic, taken, tmp_path, caplog):
    """Their offsets are those of former records, which the table has decided on."""
    world = await of_three_records(tmp_path)
    world.topic, world.committed = topic, 0
    world.log = [producing(b"b", line("acme/b/0/0"), ends=True)]
    await world.run(0)
    assert sealed(world) == [3, 1] if taken else [3]
    assert ("was created anew" in caplog.text) is taken


async def test_streams_end_without_the_records_that_are_gone(tmp_path):
    """A journal names offsets of the former topic, where the new one has other records."""
    world = World(0, tmp_path)
    world.topic = FIRST
    world.log = [producing(b"a", line("acme/a/0/0"))]
    partition, _ = world.partition()
    await partition.load()
    await world._take_all(partition)
    partition.abandon()
    _, (before,) = await Streams(world.tables, 2, FIRST).take_over()
    decided, (after,) = await Streams(world.tables, 3, "cluster/second").take_over()
    assert (len(before.journal), before.ended) == (1, False)
    assert (decided, after.journal, after.ended) == (-1, (), True)


async def test_a_stream_never_gets_the_batch_of_a_former_one(tmp_path):
    """The id comes from the place of its first record; the producer sees a dead letter, and no other's answers."""
    world = World(0, tmp_path)
    batch_id = ids.stream_batch_id(PARTITION, 0)
    record = BatchRecord(project="acme", batch=batch_of(batch_id, status=Status.COMPLETED))
    resources = world.resources()
    resources.quotas.batch(batch_id, codec.encode(record), 0)
    world.resources = lambda: resources
    world.log = [producing(b"a", line("acme/a/0/0"), ends=True)]
    await world.run(0)
    assert sealed(world) == []
    ((key, headers),) = world.dead
    assert key == f"{topics.INTAKE.name}/{PARTITION}/0"
    assert b"was created anew" in b"".join(headers.values())
