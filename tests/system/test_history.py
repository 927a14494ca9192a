"""Bounded reads of a topic: from edge to edge, by time and by offset, on a real broker."""

import asyncio
import uuid

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from support.waiting import WAIT_SECONDS_MAX

from tidemill.configuration.security import Cluster
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.history import LogHistory, reading
from tidemill.kafka.producer import Log
from tidemill.schemas.ports import Edge

pytestmark = pytest.mark.kafka

PARTITIONS = 3
RECORDS = 300
"""In each partition; many polls' worth."""


@pytest.fixture
async def topic(kafka):
    """A topic of three partitions, each with its records; the last one has none."""
    name = f"history-{uuid.uuid4().hex}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(name, PARTITIONS, 1)])
    log = Log(Cluster(servers=kafka))
    for number in range(RECORDS):
        sends = (
            log.send(name, "k", b"%d/%d" % (partition, number), headers=[("h", b"v")], partition=partition)
            for partition in range(PARTITIONS - 1)
        )
        await asyncio.gather(*sends)
    yield name
    await log.stop()
    await admin.delete_topics([name])
    await admin.close()


async def read(kafka, topic, start, end=None):
    """The entries of a stretch."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        return [entry async for entry in LogHistory(Cluster(servers=kafka)).entries(topic, start, end)]


def numbers(entries, partition):
    """The records of a partition, in the order they came."""
    found = (entry.value.split(b"/") for entry in entries)
    return [int(number) for owner, number in found if int(owner) == partition]


async def test_stretches(kafka, topic):
    """All of it, a part by offsets, a part by times, and what lies beyond the end."""
    every = await read(kafka, topic, Edge(offset=0))
    assert {entry.headers for entry in every} == {(("h", b"v"),)}
    assert numbers(every, 0) == numbers(every, 1) == list(range(RECORDS))
    part = await read(kafka, topic, Edge(offset=10), Edge(offset=20))
    assert numbers(part, 0) == numbers(part, 1) == list(range(10, 20))
    middle = every[len(every) // 2].at_ms
    early = await read(kafka, topic, Edge(at_ms=0), Edge(at_ms=middle))
    late = await read(kafka, topic, Edge(at_ms=middle))
    assert {entry.value for entry in early} == {entry.value for entry in every if entry.at_ms < middle}
    assert {entry.value for entry in late} == {entry.value for entry in every if entry.at_ms >= middle}
    assert await read(kafka, topic, Edge(offset=RECORDS)) == []
    assert await read(kafka, topic, Edge(at_ms=every[-1].at_ms + 3_600_000)) == []
    assert await read(kafka, topic, Edge(offset=5), Edge(offset=5)) == []


async def test_partitions_of_their_own(kafka, topic):
    """Each partition has its own start, one that is not named is not read, and one reader serves several reads."""
    async with asyncio.timeout(WAIT_SECONDS_MAX), reading(Cluster(servers=kafka)) as reader:
        starts = {0: Edge(offset=RECORDS - 2), 2: Edge(at_ms=0)}
        found = [record.value async for record in reader.records(topic, starts)]
        assert found == [b"0/%d" % (RECORDS - 2), b"0/%d" % (RECORDS - 1)]
        assert await reader.value(topic, 1, 7) == b"1/7"
        assert await reader.value(topic, 1, RECORDS) is None
        (last,) = [record async for record in reader.records(topic, {0: Edge(offset=RECORDS - 1)})]
        assert await reader.newest(topic) == last.timestamp / 1000


async def test_what_the_log_no_longer_has(kafka, topic):
    """A read begins where the log begins; a record before it is not there."""
    cluster = Cluster(servers=kafka)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=5)})
    await admin.close()
    async with asyncio.timeout(WAIT_SECONDS_MAX), reading(cluster) as reader:
        assert await reader.value(topic, 0, 4) is None
        found = [record.offset async for record in reader.records(topic, {0: Edge(offset=0)}, end=Edge(offset=7))]
        assert found == [5, 6]


async def test_a_topic_that_is_not_there(kafka):
    """Has nothing, and is not made."""
    name = f"history-{uuid.uuid4().hex}"
    assert await read(kafka, name, Edge(offset=0)) == []
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    assert name not in await admin.list_topics()
    await admin.close()


async def test_a_broker_that_is_away():
    """Raises the error of an unreachable log."""
    with pytest.raises(LogUnavailable):
        await read("127.0.0.1:9", "t", Edge(offset=0))
