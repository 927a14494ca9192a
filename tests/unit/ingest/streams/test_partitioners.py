"""Two clients with different partitioners send one stream to two partitions: only one of them has it."""

import asyncio

import pytest
from support.dependencies import batch_of
from support.intake import PARTITION, World, line, producing

from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.schemas import ids
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import BatchRecord, DeadLettered, Ended, Opened, Sealed
from tidemill.schemas.resources.batch import Extras, Status

OTHER = PARTITION + 4
ELSEWHERE = ids.stream_batch_id(OTHER, 17)


def published(project="acme", status=Status.IN_PROGRESS, **extras):
    """The record of a batch whose stream is open in another partition; with other fields."""
    fields = {"stream": "a", "open": True, "input_bytes": 0, "stream_partition": OTHER, **extras}
    return codec.encode(
        BatchRecord(project=project, batch=batch_of(ELSEWHERE, status=status, tidemill=Extras(**fields)))
    )


async def run(folder, *log, shown):
    """A partition that handles these records, after its process has read these records of the batch."""
    world = World(0, folder)
    world.chance.random = lambda: 1.0  # no cancel
    resources = world.resources()
    for offset, value in enumerate(shown):
        resources.quotas.batch(ELSEWHERE, value, offset)
    world.resources = lambda: resources
    world.log = list(log)
    await world.run(0)
    return world


@pytest.mark.parametrize("lines", [(line("acme/a/0/0"),), ()])
async def test_a_record_in_another_partition_is_rejected(lines, tmp_path):
    """An end without lines, too; the batch shows it."""
    world = await run(tmp_path, producing(b"a", *lines, ends=not lines), shown=[published()])
    ((_, headers),) = world.dead
    reason = headers["tidemill-dead-reason"].decode()
    assert reason.startswith(f"its stream is in partition {OTHER}, and it is in partition {PARTITION}: ")
    assert [(fact.batch_id, fact.reason) for fact in world.facts] == [(ELSEWHERE, reason)]
    assert isinstance(world.facts[0], DeadLettered)


NOT_ELSEWHERE = {
    "it is over": [published(), published(status=Status.COMPLETED, open=False, input_bytes=None)],
    "it is over, and a former owner of its results writes too late": [
        published(),
        published(status=Status.COMPLETED, open=False, input_bytes=None),
        published(),
    ],
    "it is cancelled": [published(), published(status=Status.CANCELLING)],
    "it is sealed": [published(), published(open=False, input_bytes=None)],
    "it is deleted": [published(), None],
    "another project has it": [published("else")],
    "another stream": [published(stream="b")],
    "it has just ended in this partition": [published(stream_partition=PARTITION)],
    "a version that did not publish the partition began it": [published(stream_partition=None)],
}


@pytest.mark.parametrize("case", NOT_ELSEWHERE)
async def test_other_batches_hinder_no_stream(case, tmp_path):
    """The record opens a batch, which says its partition."""
    world = await run(tmp_path, producing(b"a", line("acme/a/0/0"), ends=True), shown=NOT_ELSEWHERE[case])
    assert not world.dead
    (opened,) = [fact.batch for fact in world.facts if isinstance(fact, Opened)]
    assert opened.tidemill.stream_partition == PARTITION
    assert [fact.total for fact in world.facts if isinstance(fact, Sealed)] == [1]


async def test_a_stream_that_is_open_here_goes_on(tmp_path):
    """Both began before either process knew the other's batch: neither loses what it has accepted."""
    world = World(0, tmp_path)
    world.chance.random = lambda: 1.0  # no cancel
    world.chance.randint = min  # one record at a time
    resources = world.resources()
    world.resources = lambda: resources
    send = world.send

    async def sent(*record, **more):
        resources.quotas.batch(ELSEWHERE, published(), 0)
        return await send(*record, **more)

    world.send = sent
    world.log = [producing(b"a", line(f"acme/a/{place}/0"), ends=place == 2) for place in range(3)]
    world.log.append(producing(b"a", line("acme/a/3/0")))
    await world.run(0)
    assert [fact.total for fact in world.facts if isinstance(fact, Sealed)] == [3]
    assert len(world.dead) == 1


async def test_an_ended_stream_frees_its_name_before_its_input_is_joined(tmp_path):
    """However long the store refuses the input: the batch shows that it accepts no more lines."""
    world = World(0, tmp_path)

    async def refusing(*_):
        await asyncio.sleep(0)
        raise OSError

    world.store.write = refusing
    world.log = [producing(b"a", line("acme/a/0/0"), ends=True)]
    partition, _ = world.partition()
    await partition.load()
    await partition.take([world.arrival(AckGate(), 0)])
    kinds = [type(fact) for fact in world.facts]
    assert Ended in kinds
    assert Sealed not in kinds
    partition.abandon()
