"""An owner dies after it published an input, before it has kept that; then the input or its batch is deleted."""

import asyncio

import pytest
from support.intake import World, line, producing, streams_left
from support.waiting import WAIT_SECONDS_MAX

from tidemill import retrying
from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord, Erasure, Opened, Sealed
from tidemill.schemas.log.part import file_key
from tidemill.schemas.resources.batch import Status
from tidemill.sealing.vault import Vault


class Owners(World):
    """The owners of a partition, one after the other, and the files that they publish."""

    def __init__(self, folder):
        super().__init__(0, folder)
        self.fuse.left, self.vault, self.files, self.shown = -1, Vault(None), [], []

    async def send(self, topic, key, value, *, headers=()):
        """Keep the key of a file."""
        if topic == topics.FILES.name:
            self.files.append(key)
        return await super().send(topic, key, value, headers=headers)

    def resources(self):
        """Those of a process that has read `tidemill.batches`."""
        made = super().resources()
        for key, value in self.shown:
            made.quotas.batch(key, value, 0)
        return made

    async def begin(self):
        """Let a new owner take the partition over."""
        self.crashes += 1
        found = self.partition()
        await found[0].load()
        return found

    async def publish_input(self):
        """Let an owner publish the input of a stream, and die."""
        self.log = [producing(b"s", line("1"), ends=True)]
        partition, assembly = await self.begin()
        await partition.take([self.arrival(AckGate(), 0)])
        await asyncio.gather(*assembly._background._tasks)
        partition.abandon()

    @property
    def batch(self):
        """The batch, as it began."""
        (opened,) = (fact for fact in self.facts if isinstance(fact, Opened))
        return opened.batch

    def show(self, **changes):
        """Let `tidemill.batches` have the batch."""
        batch = self.batch.model_copy(update=changes)
        self.shown = [(batch.id, codec.encode(BatchRecord(project="acme", batch=batch)))]

    def erase(self):
        """Let the log say that the batch is deleted."""
        self.shown = []
        self.vault.apply(self.batch.id, codec.encode(Erasure(project="acme", at=1)))


@pytest.mark.parametrize("how", ["sealed", "over", "deleted"])
async def test_a_deleted_input_stays_deleted(tmp_path, how):
    """The next owner only removes the parts and the row."""
    owners = Owners(tmp_path)
    await owners.publish_input()
    (file_id,) = owners.files
    del owners.store.objects[file_key(file_id)]
    if how == "deleted":
        owners.erase()
    elif how == "over":
        owners.show(status=Status.COMPLETED)
    else:
        extras = owners.batch.tidemill.model_copy(update={"open": False, "input_bytes": None})
        owners.show(tidemill=extras)
    partition, assembly = await owners.begin()
    await asyncio.gather(*assembly._background._tasks)
    await partition.tick(lambda _: False)
    assert (owners.files, owners.store.objects) == ([file_id], {})
    assert len([fact for fact in owners.facts if isinstance(fact, Sealed)]) == 1
    assert not await streams_left(owners)


@pytest.mark.parametrize("closed", [False, True])
async def test_the_input_of_a_batch_that_waits_for_it_is_published_again(tmp_path, closed):
    """Results may not have read that it is there; the api refuses appends before the stream is sealed."""
    owners = Owners(tmp_path)
    await owners.publish_input()
    owners.show(tidemill=owners.batch.tidemill.model_copy(update={"open": not closed}))
    _, assembly = await owners.begin()
    await asyncio.gather(*assembly._background._tasks)
    assert len(owners.files) == 2
    assert len([fact for fact in owners.facts if isinstance(fact, Sealed)]) == 2


async def test_a_join_that_fails_ends_with_its_batch(tmp_path, monkeypatch):
    """It would otherwise be tried for ever, or bring the input back."""
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 0.0)
    owners = Owners(tmp_path)
    await owners.publish_input()

    async def refused(*_):
        owners.erase()
        raise PermissionError

    monkeypatch.setattr(owners.store, "join", refused)
    _, assembly = await owners.begin()
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        await asyncio.gather(*assembly._background._tasks)
    assert len(owners.files) == 1
