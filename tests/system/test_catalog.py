"""Two processes that write the catalog at the same time, on a real broker."""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from support.waiting import until

from tidemill.configuration import changes
from tidemill.configuration.catalog import PARTITIONS, Contents, Entry
from tidemill.configuration.settings import Settings
from tidemill.kafka import catalog
from tidemill.kafka.admin import PartitionsChanged, ensure_topics
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.offsets import is_unused
from tidemill.kafka.producer import Log
from tidemill.schemas.log import topics

pytestmark = pytest.mark.kafka

CHANGES = 15


class Writer:
    """A process with its own connections."""

    def __init__(self, kafka: str) -> None:
        self.catalog, self.log = Catalog(kafka), Log(kafka)

    async def change(self, wanted: Callable[[Contents], changes.Wanted]) -> None:
        def plan(contents: Contents) -> dict[str, Entry]:
            return changes.planned(contents, wanted(contents), author="k", at=1)

        await self.catalog.change(self.log, plan)


@pytest.fixture
async def writers(kafka):
    await ensure_topics(Settings(), kafka)
    made = [Writer(kafka), Writer(kafka)]
    for writer in made:
        await writer.catalog.start()
        await writer.catalog.follower.caught_up()
    yield made
    for writer in made:
        await writer.catalog.stop()
        await writer.log.stop()


async def test_no_change_of_either_is_lost(kafka, writers) -> None:
    """Each sets a setting of its own of one server, again and again."""
    name = f"s-{secrets.token_hex(4)}"
    key = f"server/{name}"
    await writers[0].change(lambda _: {key: {"url": f"http://{name}/v1"}})
    await writers[1].catalog.catch_up()

    async def work(writer: Writer, setting: str) -> None:
        for number in range(1, CHANGES + 1):
            await writer.change(lambda found, n=number: {key: {**found.entries[key].settings, setting: n}})

    await asyncio.gather(work(writers[0], "max_in_flight"), work(writers[1], "tokens_per_minute"))
    server = (await catalog.read(kafka)).serving.servers[name]
    assert (server.max_in_flight, server.tokens_per_minute) == (CHANGES, CHANGES)
    await writers[0].change(lambda _: {key: None})


async def test_contradictions_of_both_never_stay(kafka, writers) -> None:
    """One adds models to a server that the other removes: one of them is refused."""
    for _ in range(CHANGES):
        name = f"s-{secrets.token_hex(4)}"
        server, model = f"server/{name}", f"model/{name}"
        await writers[0].change(lambda _, key=server: {key: {"url": f"http://{key[7:]}/v1"}})
        await writers[1].catalog.catch_up()
        answers = await asyncio.gather(
            writers[0].change(lambda _, key=server: {key: None}),
            writers[1].change(lambda _, key=model: {key: {"servers": [key[6:]]}}),
            return_exceptions=True,
        )
        assert sum(isinstance(answer, ValueError) for answer in answers) == 1, answers
        contents = await catalog.read(kafka)
        assert not contents.faults
        assert (name in contents.serving.servers) == (name in contents.serving.models)
        await writers[0].change(lambda _, keys=(model, server): dict.fromkeys(keys))


async def test_the_number_of_partitions_is_kept(kafka, writers, monkeypatch) -> None:
    """Another one is refused, unless the topics are new."""
    catalog, log = writers[0].catalog, writers[0].log
    used = {
        name: replace(getattr(topics, name), name=f"{name}-{secrets.token_hex(4)}")
        for name in ("COMMANDS", "INTAKE", "OUTCOMES")
    }
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(topic.name, 3, 1) for topic in used.values()])
    await admin.close()

    async def has_leaders() -> bool:
        with suppress(LogUnavailable):
            return await is_unused(kafka, *used.values())
        return False

    await until(has_leaders)
    for name, topic in used.items():
        monkeypatch.setattr(topics, name, topic)
    before = catalog.contents.partitions
    for count in (3, 5, 5, 3):
        await catalog.keep_partitions(log, count)
        assert catalog.contents.partitions == count
    # An installation may have only streams, which need no command.
    await log.send(used["INTAKE"].name, "k", b"v")
    with pytest.raises(PartitionsChanged, match="have 5 partitions, and the batches were written to 3"):
        await catalog.keep_partitions(log, 5)
    await catalog.keep_partitions(log, 3)
    assert catalog.contents.partitions == 3
    await log.send(topics.CATALOG.name, PARTITIONS, None if before is None else b'{"count": %d}' % before)
